"""Are the SLOs met, and how fast are their budgets spent? All from counters, without recording rules."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, SLO, TARGET, WORKLOAD, Row
from grafana.histograms import buckets
from grafana.panels import lines, numbers
from grafana.style import Panel, Query, Text, steps
from grafana.tables import Column, rows

UID = "tgi-probe-slo"
REQUESTS = "tgi_probe_slo_requests_total"
CHOSEN = f'slo=~"$slo", {promql.CHOSEN}'
SERIES = "target, workload, batch_size"
OBJECTIVE = 'max by (slo) (tgi_probe_slo_objective_ratio{slo=~"$slo"})'
PERIOD = "30d"
# Both windows of a pair above its factor: a page, or a ticket.
PAGES = ((14.4, "5m", "1h"), (6, "30m", "6h"))
TICKETS = ((3, "2h", "1d"), (1, "6h", "3d"))
WINDOWS = (("5m", 14.4), ("30m", 6), ("1h", 14.4), ("2h", 3), ("6h", 6), ("1d", 3), ("3d", 1))
STATES = ((0, "fine"), (1, "ticket"), (2, "page"))
BY_STATE = steps((None, colours.GOOD), (1, colours.WARNING), (2, colours.BAD))


def share(verdict: str, window: str, by: str = "slo") -> str:
    found = promql.increase(REQUESTS, by, window, f'{CHOSEN}, verdict="{verdict}"')
    return f"{found} / ({promql.increase(REQUESTS, by, window, CHOSEN)} > 0)"


def burn(window: str) -> str:
    """How many times faster than allowed the budget is spent: 1 spends it in exactly its period."""
    return f"({share('bad', window)}) / on (slo) (1 - {OBJECTIVE})"


def state() -> str:
    def beyond(pairs: tuple[tuple[float, str, str], ...]) -> str:
        return " or ".join(f"({burn(short)} > {factor} and {burn(long)} > {factor})" for factor, short, long in pairs)

    return f"2 * ({beyond(PAGES)}) ^ 0 or ({beyond(TICKETS)}) ^ 0 or 0 * {OBJECTIVE}"


def budget() -> str:
    return f"1 - ({share('bad', PERIOD)}) / on (slo) (1 - {OBJECTIVE})"


def judged(histogram: str, q: float, measures: str) -> str:
    """A quantile by workload, of exactly those series that a chosen SLO with such a measure judges."""
    judges = f'{REQUESTS}{{{CHOSEN}}} and on (slo) tgi_probe_slo_info{{measure=~"{measures}"}}'

    def of(name: str, by: str) -> str:
        found = f"rate({name}{{{promql.CHOSEN}}}[{promql.RATE}]) and on ({SERIES}) ({judges})"
        return f"histogram_quantile({q:g}, sum by ({by}) ({found}))"

    return f"({of(histogram, 'workload')} or {of(f'{histogram}_bucket', 'le, workload')}) >= 0"


def limit(measures: str) -> Query:
    threshold = 'max by (slo) (tgi_probe_slo_threshold_seconds{slo=~"$slo"})'
    chosen = f'tgi_probe_slo_info{{measure=~"{measures}", workload=~"$workload"}}'
    return Query(f"{threshold} and on (slo) {chosen}", "{{slo}} limit")


def verdicts() -> list[Panel]:
    info = 'max by (slo, workload, measure) (tgi_probe_slo_info{slo=~"$slo"})'
    return [
        numbers(
            Text(
                "State now",
                "Page: act now; ticket: look today; fine: nothing to do; raw burn of a budget of 30 days, without the "
                "conditions of the rules (own period, few probes, a start), so that fewer alerts may fire.",
                "none",
            ),
            [Query(state(), "{{slo}}")],
            width=24,
            height=4,
            names=True,
            by=BY_STATE,
            texts=STATES,
        ),
        rows(
            Text(
                "Objectives",
                "Budget left below 0 means that the objective is broken for the last 30 days, whatever happens today, "
                "and whatever other period the SLO has.",
            ),
            [
                Query(info),
                Query(OBJECTIVE),
                Query('max by (slo) (tgi_probe_slo_threshold_seconds{slo=~"$slo"})'),
                Query(share("good", promql.RANGE)),
                Query(budget()),
                Query(promql.increase(REQUESTS, "slo", where=f'{CHOSEN}, verdict="bad"')),
                Query(promql.increase(REQUESTS, "slo", where=CHOSEN)),
            ],
            [
                Column("slo", "SLO", width=130),
                Column(4, "Budget left", "percentunit", decimals=0, width=110, by=BY_BUDGET),
                Column(3, "Good", "percentunit", decimals=2, width=100),
                Column(1, "Objective", "percentunit", decimals=2),
                Column(5, "Bad requests", "locale", decimals=0),
                Column(6, "Requests", "locale", decimals=0),
                Column(2, "Limit", "s", decimals=0),
                Column("measure", "Judges"),
                Column("workload", "Workload"),
            ],
            height=6,
            sort=[("Budget left", False)],
        ),
    ]


BY_BUDGET = steps((None, colours.BAD), (0, colours.WARNING), (0.5, colours.GOOD))


def burning() -> list[Panel]:
    return [
        rows(
            Text(
                "Burn rate per window",
                "1× spends the budget in exactly 30 days; a cell is coloured above the factor at which its window "
                "takes part in an alert of an SLO over 30 days; the rules scale windows and add conditions.",
            ),
            [Query(burn(window)) for window, _ in WINDOWS],
            [
                Column("slo", "SLO", width=130),
                *(
                    Column(
                        number, window, "suffix:×", decimals=1, by=steps((None, colours.GOOD), (factor, colours.BAD))
                    )
                    for number, (window, factor) in enumerate(WINDOWS)
                ),
            ],
            height=6,
            sort=[("1h", True)],
        ),
        lines(
            Text(
                "Fast burn: the last hour",
                "Above the dashed line at 14.4× the budget of 30 days lasts two days: a page.",
                "suffix:×",
            ),
            [Query(burn("1h"), "{{slo}}")],
            width=8,
            limits=[14.4],
            most=16,
        ),
        lines(
            Text(
                "Slow burn: the last 6 hours",
                "Above the dashed line at 6× the budget of 30 days lasts five days: a page.",
                "suffix:×",
            ),
            [Query(burn("6h"), "{{slo}}")],
            width=8,
            limits=[6],
            most=8,
        ),
        lines(
            Text(
                "Error budget left, 30 days",
                "The slope tells how long it lasts; below the dashed line at 0 the objective is broken.",
                "percentunit",
            ),
            [Query(budget(), "{{slo}}")],
            width=8,
            limits=[0],
            from_zero=False,
            most=1,
        ),
    ]


def seen() -> list[Panel]:
    ttft, token = "tgi_probe_time_to_first_token_seconds", "tgi_probe_inter_token_latency_seconds"
    tokens = "inter_token_latency|time_per_output_token"
    return [
        lines(
            Text(
                "Time to first token and its limits",
                "A p99 line above its dashed limit means bad requests; one far below it, a limit that is too lax.",
                "s",
            ),
            [
                Query(judged(ttft, 0.99, "ttft"), "{{workload}} p99"),
                Query(judged(ttft, 0.5, "ttft"), "{{workload}} p50"),
                limit("ttft"),
            ],
        ),
        lines(
            Text(
                "Token latency and its limits",
                "A p99 line above its dashed limit means stutter that the SLO counts; one slow token makes a request "
                "bad.",
                "s",
            ),
            [
                Query(judged(token, 0.99, tokens), "{{workload}} p99"),
                Query(judged(token, 0.5, tokens), "{{workload}} p50"),
                limit(tokens),
            ],
        ),
        buckets(
            Text(
                "Time to first token",
                "A band that moves up is a slower server; a second band above it is a queue, or a larger batch size.",
                "s",
            ),
            promql.buckets(ttft, promql.RATE),
            height=10,
        ),
        buckets(
            Text("Token latency", "Dark cells far above the band are the stalls that users notice.", "s"),
            promql.buckets(token, promql.RATE),
            height=10,
        ),
    ]


def failing() -> list[Panel]:
    return [
        lines(
            Text(
                "Bad requests by SLO and target",
                "The target that spends the budget: 100 % is an outage, a few per cent a slow server.",
                "percentunit",
            ),
            [Query(share("bad", promql.RATE, "slo, target"), "{{slo}} on {{target}}")],
            width=9,
            height=9,
            most=0.05,
        ),
        lines(
            Text(
                "Failed probes by outcome",
                "Per minute; unreachable and timeout: the server; rejected and malformed: what is sent; flat at 0: "
                "only slowness can break an SLO.",
                "short",
            ),
            [Query(f"60 * {promql.rate('tgi_probe_attempts_total', 'outcome', where=FAILED)}", "{{outcome}}")],
            width=6,
            height=9,
            colour=colours.OUTCOMES,
            most=1,
        ),
        rows(
            Text(
                "Firing alerts",
                "The alerts of `tgi-probe rules` that fire now; a row named none: no alert fires.",
            ),
            [
                Query(f"{ALERTS} or {promql.named(f'absent({ALERTS})', 'alertname', 'none')}"),
            ],
            [
                Column("alertname", "Alert", width=210),
                Column("severity", "Severity", width=80),
                Column("slo", "SLO"),
                Column("target", "Target"),
            ],
            width=9,
            height=9,
        ),
    ]


FAILED = f'{promql.CHOSEN}, outcome!="ok"'
ALERTS = 'ALERTS{alertstate="firing", alertname=~"TgiProbe.*"}'


def build() -> Dashboard:
    return frame.build(
        UID,
        "SLO",
        "Is the time to first token fine, and for how long?",
        [SLO, TARGET, WORKLOAD, BATCH_SIZE],
        [
            Row("Verdict", verdicts()),
            Row("How fast the budgets burn", burning()),
            Row("What users see", seen()),
            Row("What is bad", failing()),
        ],
        since="now-3h",
    )
