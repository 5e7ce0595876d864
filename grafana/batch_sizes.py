"""Which batch size should I run? What the TGI benchmark answers, live, for one target and one workload."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, ONE_TARGET, ONE_WORKLOAD, Row
from grafana.panels import lines, numbers
from grafana.scatter import Axis, scatter
from grafana.style import TOKENS_PER_SECOND, Panel, Query, Text, steps
from grafana.tables import Column, rows

UID = "tgi-probe-batch-sizes"
TTFT = "tgi_probe_time_to_first_token_seconds"
TOKEN = "tgi_probe_inter_token_latency_seconds"
REQUEST = "tgi_probe_request_duration_seconds"
PREFILL_RATE = "tgi_probe_prefill_throughput_tokens_per_second"
DECODE_RATE = "tgi_probe_decode_throughput_tokens_per_second"
SHAPE = "workload, batch_size"
SERIES = f"target, {SHAPE}"
REQUESTS = "tgi_probe_slo_requests_total"
ATTEMPTS = "tgi_probe_attempts_total"
OK = f'{promql.CHOSEN}, outcome="ok"'
OF_LATENCY = 'measure!="availability", workload=~"$workload"'
LEGEND = "batch {{batch_size}}"
WITHIN = "1 · throughput within the SLOs"
NO_SLO = "No SLO limits a latency of this workload: see the table below"
NO_ANSWER = "No batch size meets the SLOs: see the table below"


def margin() -> str:
    """By how much the successful probes of each batch size meet the latency SLOs that judge them: the least share of
    good requests, less the objective.

    A verdict counts failed requests as bad. An outage says nothing about batch sizes, so the share of good requests is
    divided by the share of probes that succeeded: of each batch size, all probes have the same number of requests.
    """
    by = f"slo, {SHAPE}"
    good = promql.increase(REQUESTS, by, where=f'{promql.CHOSEN}, verdict="good"')
    objective = f"max by (slo) (tgi_probe_slo_objective_ratio) and on (slo) tgi_probe_slo_info{{{OF_LATENCY}}}"
    share = f"{good} / ({promql.increase(REQUESTS, by)} > 0) / ({judged_probes(OK)} / {judged_probes(promql.JUDGED)})"
    return f"min by ({SHAPE}) ({share} - on (slo) group_left () ({objective}))"


def kept() -> str:
    """The batch sizes that meet the SLOs."""
    return f"{margin()} > -1e-9"


def judged_probes(outcomes: str) -> str:
    """How many probes with these outcomes there were, of the series that each SLO judges."""
    series = f"group by (slo, {SERIES}) (increase({REQUESTS}{{{promql.CHOSEN}}}[{promql.RANGE}]))"
    probes = promql.increase(ATTEMPTS, SERIES, where=outcomes)
    return f"sum by (slo, {SHAPE}) ({series} * on ({SERIES}) group_left () {probes})"


def best() -> str:
    """Throughput of the fastest batch size within the SLOs, one for each workload."""
    return f"topk by (workload) (1, {promql.within(promql.mean(DECODE_RATE, SHAPE), kept(), SHAPE)})"


def goals() -> str:
    """One sample for each workload and goal, with the batch size that reaches it best."""
    throughput, ttft, token = (promql.mean(name, SHAPE) for name in (DECODE_RATE, TTFT, TOKEN))
    found = (
        (best(), WITHIN),
        (f"topk by (workload) (1, {throughput})", "2 · throughput"),
        (f"bottomk by (workload) (1, {ttft})", "3 · time to first token"),
        (f"bottomk by (workload) (1, {token})", "4 · token latency"),
    )
    return "(" + " or ".join(promql.named(value, "goal", goal) for value, goal in found) + ")"


def of_chosen(value: str) -> str:
    return f"{goals()} ^ 0 * on ({SHAPE}) group_left () ({value})"


def unreached() -> str:
    """A row with batch size `none` for each workload whose SLOs no batch size meets."""
    judged = f"max by (workload) (tgi_probe_slo_info{{{OF_LATENCY}}})"
    missing = f"{judged} unless on (workload) ({kept()})"
    return promql.named(promql.named(missing, "goal", WITHIN), "batch_size", "none")


def answers() -> list[Panel]:
    def of_best(histogram: str) -> str:
        return promql.within(promql.mean(histogram, SHAPE), best(), SHAPE)

    throughput, first, token = "tokens per second", "to the first token", "per token after it"
    return [
        numbers(
            Text(
                "Batch size to run",
                "Run the batch size named here: of those whose successful probes met the latency SLOs in the "
                "time range, it generates most tokens per second.",
                empty=NO_SLO,
            ),
            [Query(best(), LEGEND), Query(f"0 * ({unreached()})", "none")],
            width=7,
            height=6,
            words_only=True,
            by=steps((None, colours.WARNING), (0.001, colours.GOOD)),
        ),
        numbers(
            Text(
                "What that batch size gives, on average",
                "What users of this batch size get; the table below shows what another one would give.",
                "s",
                empty=NO_ANSWER,
            ),
            [Query(best(), throughput), Query(of_best(TTFT), first), Query(of_best(TOKEN), token)],
            width=17,
            height=6,
            names=True,
            own={throughput: {"unit": "locale", "decimals": 0}, first: {"decimals": 1}, token: {"decimals": 1}},
        ),
        rows(
            Text(
                "Best batch size by goal",
                "Choose the row of what matters most; where rows differ, the columns show what each choice costs.",
            ),
            [
                Query(f"{goals()} ^ 0 or ({unreached()})"),
                Query(of_chosen(promql.mean(DECODE_RATE, SHAPE))),
                Query(of_chosen(promql.mean(TTFT, SHAPE))),
                Query(of_chosen(promql.mean(TOKEN, SHAPE))),
            ],
            [
                Column("goal", "Best for", width=240),
                Column("batch_size", "Batch size", width=90),
                Column(1, "Throughput", TOKENS_PER_SECOND, decimals=0),
                Column(2, "First token", "s", decimals=1),
                Column(3, "Token latency", "s", decimals=1),
            ],
            width=12,
            height=9,
            sort=[("Best for", False)],
        ),
        rows(
            Text(
                "Every batch size",
                "Go down the rows as long as throughput grows much and the waits grow little; broken: its probes "
                "missed an SLO.",
            ),
            [
                Query(promql.mean(DECODE_RATE, SHAPE)),
                Query(promql.mean(TTFT, SHAPE)),
                Query(promql.mean(TOKEN, SHAPE)),
                Query(f"{margin()} > bool -1e-9"),
            ],
            [
                Column("batch_size", "Batch size", width=105, number=True),
                Column(0, "Throughput", TOKENS_PER_SECOND, decimals=0, bar=True),
                Column(1, "First token", "s", decimals=1, bar=True),
                Column(2, "Token latency", "s", decimals=1, bar=True),
                Column(
                    3,
                    "SLOs",
                    width=70,
                    by=steps((None, colours.BAD), (1, colours.GOOD)),
                    texts=((0, "broken"), (1, "met")),
                ),
            ],
            width=12,
            height=9,
            sort=[("Batch size", False)],
        ),
    ]


def trade_offs() -> list[Panel]:
    return [
        scatter(
            Text(
                "Decode: throughput over latency, joined from the smallest batch",
                "Follow the line from the smallest batch: while it goes straight up, a larger batch is free; where it "
                "bends right, users wait longer for each token.",
            ),
            Axis("Token latency", "s", promql.mean(TOKEN, SHAPE)),
            Axis("Decode throughput", TOKENS_PER_SECOND, promql.mean(DECODE_RATE, SHAPE)),
        ),
        scatter(
            Text(
                "Prefill: throughput over latency, joined from the smallest batch",
                "Stop at the point after which the line only goes right: a larger batch then adds waiting and no "
                "throughput.",
            ),
            Axis("Time to first token", "s", promql.mean(TTFT, SHAPE)),
            Axis("Prefill throughput", TOKENS_PER_SECOND, promql.mean(PREFILL_RATE, SHAPE)),
        ),
    ]


def statistics() -> Panel:
    def quantiles(what: str) -> list[Query]:
        return [Query(promql.newest_quantile(q, what, SHAPE)) for q in (0.5, 0.9, 0.99)]

    titles = [f"{what} {name}" for what in ("TTFT", "Token") for name in ("p50", "p90", "p99")]
    return rows(
        Text(
            "Statistics of the time range",
            "A p99 far above the p50 means that some probes had to wait; of a few probes it is a guess, so look at "
            "their number first.",
        ),
        [
            Query(f"{promql.increase(ATTEMPTS, SHAPE, where=OK)} > 0"),
            *quantiles("time_to_first_token_seconds"),
            *quantiles("inter_token_latency_seconds"),
            Query(promql.mean(REQUEST, SHAPE)),
            Query(promql.mean(PREFILL_RATE, SHAPE)),
        ],
        [
            Column("batch_size", "Batch size", width=105, number=True),
            Column(0, "Probes", "locale", decimals=0, width=75),
            *(Column(number, title, "s", decimals=1) for number, title in enumerate(titles, start=1)),
            Column(7, "Whole request", "s", decimals=1),
            Column(8, "Prefill", TOKENS_PER_SECOND, decimals=0),
        ],
        height=9,
        min_width=90,
        sort=[("Batch size", False)],
    )


def history() -> list[Panel]:
    def latest(title: str, metric: str, unit: str = "s") -> Panel:
        sentence = "A step in all lines is the server; a step in one is that batch size alone."
        newest = f"avg by ({SHAPE}) (tgi_probe_last_{metric}{{{promql.CHOSEN}}} >= 0)"
        return lines(Text(title, sentence, unit), [Query(newest, LEGEND)], width=8, by_batch_size=True)

    return [
        latest("Time to first token", "time_to_first_token_seconds"),
        latest("Token latency", "inter_token_latency_seconds"),
        latest("Decode throughput", "decode_throughput_tokens_per_second", TOKENS_PER_SECOND),
    ]


def build() -> Dashboard:
    return frame.build(
        UID,
        "Batch sizes",
        "Which batch size should I run?",
        [ONE_TARGET, ONE_WORKLOAD, BATCH_SIZE],
        [
            Row("The answer", answers()),
            Row("What a larger batch gains and costs", trade_offs()),
            Row("In detail", [statistics()]),
            Row("Over time (newest probes)", history()),
        ],
    )
