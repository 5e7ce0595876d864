"""Which batch size should I run? The tables and charts of the TGI benchmark, live."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from exporter.observation import NOT_JUDGED
from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, TARGET, WORKLOAD, Row
from grafana.histograms import bars
from grafana.panels import lines, numbers
from grafana.scatter import Axis, scatter
from grafana.style import TOKENS_PER_SECOND, Panel, Query, Text, steps
from grafana.tables import Column, rows

UID = "tgi-probe-batch-sizes"
TTFT = "tgi_probe_time_to_first_token_seconds"
TOKEN = "tgi_probe_inter_token_latency_seconds"
REQUEST = "tgi_probe_request_duration_seconds"
DECODE = "tgi_probe_decode_duration_seconds"
PREFILL_RATE = "tgi_probe_prefill_throughput_tokens_per_second"
DECODE_RATE = "tgi_probe_decode_throughput_tokens_per_second"
SHAPE = "workload, batch_size"
SERIES = f"target, {SHAPE}"
REQUESTS = "tgi_probe_slo_requests_total"
ATTEMPTS = "tgi_probe_attempts_total"
OK, JUDGED = 'outcome="ok"', f'outcome!~"{"|".join(sorted(NOT_JUDGED))}"'
OF_LATENCY = 'measure!="availability", workload=~"$workload"'
POINTS = {str(size): shade for size, shade in colours.BATCH_SIZES.items()}
LEGEND = "{{workload}} batch {{batch_size}}"
WITHIN = "1 · throughput within SLOs"
NO_SLO = "No SLO limits a latency of these workloads: configure one"


def kept() -> str:
    """Batch sizes whose successful probes meet the latency SLOs that judge them.

    A verdict counts failed requests as bad. An outage says nothing about batch sizes, so the share of good requests is
    divided by the share of probes that succeeded: of each batch size, all probes have the same number of requests.
    """
    by = f"slo, {SHAPE}"
    good = promql.increase(REQUESTS, by, where=f'{promql.CHOSEN}, verdict="good"')
    objective = f"max by (slo) (tgi_probe_slo_objective_ratio) and on (slo) tgi_probe_slo_info{{{OF_LATENCY}}}"
    share = f"{good} / ({promql.increase(REQUESTS, by)} > 0) / ({judged_probes(OK)} / {judged_probes(JUDGED)})"
    return f"min by ({SHAPE}) ({share} - on (slo) group_left () ({objective})) > -1e-9"


def judged_probes(outcomes: str) -> str:
    """How many probes with these outcomes there were, of the series that each SLO judges."""
    series = f"group by (slo, {SERIES}) (increase({REQUESTS}{{{promql.CHOSEN}}}[{promql.RANGE}]))"
    probes = promql.increase(ATTEMPTS, SERIES, where=f"{promql.CHOSEN}, {outcomes}")
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
    return [
        numbers(
            Text(
                "Batch size to run",
                "Run the batch size named here: of those whose successful probes met the latency SLOs in the "
                "time range, it generates most tokens per second.",
                TOKENS_PER_SECOND,
                empty=NO_SLO,
            ),
            [Query(f"{best()} or 0 * ({unreached()})", "{{workload}}: batch {{batch_size}}")],
            width=8,
            height=11,
            names=True,
            decimals=0,
            by=steps((None, colours.WARNING), (0.001, colours.GOOD)),
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
                Column("workload", "Workload", width=95),
                Column("goal", "Best", width=205),
                Column("batch_size", "Batch size", width=90),
                Column(1, "Throughput", TOKENS_PER_SECOND, decimals=0),
                Column(2, "First token", "s", decimals=1),
                Column(3, "Token latency", "s", decimals=1),
            ],
            width=16,
            height=11,
            sort=[("Workload", False), ("Best", False)],
        ),
    ]


def trade_offs() -> list[Panel]:
    by = f"target, {SHAPE}"

    def over_latency(text: Text, latency: Axis, throughput: Axis) -> Panel:
        return scatter(text, latency, throughput, per="batch_size", legend="batch ${__field.name}", colour=POINTS)

    def by_size(text: Text, value: Axis) -> Panel:
        return scatter(text, Axis("Batch size", "short"), value, per="series", width=8)

    def per_target(histogram: str) -> str:
        return f'label_join({promql.mean(histogram, by)}, "series", " ", "target", "workload")'

    return [
        over_latency(
            Text(
                "Prefill: throughput over latency",
                "Stop at the point after which the dots only move right: a larger batch then adds waiting and no "
                "throughput.",
            ),
            Axis("Time to first token", "s", promql.mean(TTFT, by)),
            Axis("Prefill throughput", TOKENS_PER_SECOND, promql.mean(PREFILL_RATE, by)),
        ),
        over_latency(
            Text(
                "Decode: throughput over latency",
                "While the dots go straight up, a larger batch is free; where they bend right, users wait longer for "
                "each token.",
            ),
            Axis("Token latency", "s", promql.mean(TOKEN, by)),
            Axis("Decode throughput", TOKENS_PER_SECOND, promql.mean(DECODE_RATE, by)),
        ),
        by_size(
            Text(
                "Time to first token by batch size",
                "Read where your limit for the first token cuts the line: no larger batch keeps it.",
            ),
            Axis("First token", "s", per_target(TTFT)),
        ),
        by_size(
            Text(
                "Token latency by batch size",
                "A flat line means that larger batches cost the users nothing while they read.",
            ),
            Axis("Token latency", "s", per_target(TOKEN)),
        ),
        by_size(
            Text(
                "Decode throughput by batch size",
                "Where the line flattens the server is full, and more requests at once only wait.",
            ),
            Axis("Throughput", TOKENS_PER_SECOND, per_target(DECODE_RATE)),
        ),
    ]


def statistics(text: Text, histogram: str) -> Panel:
    found = [
        promql.mean(histogram, SHAPE),
        *(promql.quantile(q, histogram, SHAPE) for q in (promql.LOWEST, 0.5, 0.9, 0.99, promql.HIGHEST)),
    ]
    titles = ("Average", "Lowest", "p50", "p90", "p99", "Highest")
    return rows(
        text,
        [Query(expr) for expr in found],
        [
            Column("workload", "Workload", width=100),
            Column("batch_size", "Batch", width=70, number=True),
            *(Column(number, title, text.unit, decimals=1) for number, title in enumerate(titles)),
        ],
        width=12,
        height=10,
        sort=[("Workload", False), ("Batch", False)],
    )


def details() -> list[Panel]:
    return [
        statistics(
            Text(
                "Time to first token",
                "Compare p99 with the average: far apart means that some requests wait; read off buckets, so within "
                "a tenth.",
                "s",
            ),
            TTFT,
        ),
        statistics(
            Text(
                "Prefill throughput, tokens per second",
                "Prompt tokens of the whole batch; when it no longer grows with the batch, the GPU "
                "computes at its limit.",
                "short",
            ),
            PREFILL_RATE,
        ),
        statistics(
            Text(
                "Token latency", "The wait for each token after the first; p99 far above p50 is felt as stutter.", "s"
            ),
            TOKEN,
        ),
        statistics(
            Text(
                "Decode throughput, tokens per second",
                "Plan capacity with the average of the whole batch: the buckets of throughput are wide, so quantiles "
                "are rough.",
                "short",
            ),
            DECODE_RATE,
        ),
        statistics(
            Text(
                "Decode duration",
                "What the answer costs after it has begun, for the whole batch; the buckets are wide, so trust the "
                "average.",
                "s",
            ),
            DECODE,
        ),
        statistics(
            Text(
                "Request duration",
                "What a user waits for in all, from sending to the last token; the buckets are wide, so trust the "
                "average.",
                "s",
            ),
            REQUEST,
        ),
    ]


def spread() -> list[Panel]:
    def of(text: Text, histogram: str) -> Panel:
        shares = (("fastest", promql.LOWEST), ("p25", 0.25), ("p50", 0.5), ("p75", 0.75), ("p90", 0.9), ("p99", 0.99))
        queries = [Query(promql.quantile(q, histogram), name) for name, q in (*shares, ("slowest", promql.HIGHEST))]
        return bars(text, queries, height=11)

    return [
        of(
            Text(
                "Spread of the time to first token",
                "A large step from one bar to the next means that two things are mixed, such as batch sizes (choose "
                "one above) or a queue.",
                "s",
            ),
            TTFT,
        ),
        of(
            Text(
                "Spread of the token latency",
                "A p99 far above the p50 is what users feel as stutter, even when the average is fine.",
                "s",
            ),
            TOKEN,
        ),
    ]


def history() -> list[Panel]:
    def latest(metric: str) -> Query:
        return Query(f"avg by ({SHAPE}) (tgi_probe_last_{metric}{{{promql.CHOSEN}}} >= 0)", LEGEND)

    return [
        lines(
            Text(
                "Time to first token", "A step in all lines is the server; a step in one is that batch size alone.", "s"
            ),
            [latest("time_to_first_token_seconds")],
            width=8,
            by_batch_size=True,
        ),
        lines(
            Text("Token latency", "A step in all lines is the server; a step in one is that batch size alone.", "s"),
            [latest("inter_token_latency_seconds")],
            width=8,
            by_batch_size=True,
        ),
        lines(
            Text(
                "Decode throughput",
                "Must not sink over days; a drop after a release is a regression.",
                TOKENS_PER_SECOND,
            ),
            [latest("decode_throughput_tokens_per_second")],
            width=8,
            by_batch_size=True,
        ),
    ]


def build() -> Dashboard:
    return frame.build(
        UID,
        "Batch sizes",
        "Which batch size should I run?",
        [TARGET, WORKLOAD, BATCH_SIZE],
        [
            Row("The answer", answers()),
            Row("What a larger batch gains and costs", trade_offs()),
            Row("Statistics of the time range", [*details(), *spread()]),
            Row("Over time (newest probes)", history()),
        ],
    )
