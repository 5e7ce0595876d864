"""Are the SLOs met, and for how long? From counters, and from the alerts where `tgi-probe rules` is loaded."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, SLO, TARGET, WORKLOAD, Row
from grafana.panels import lines, numbers
from grafana.style import Panel, Query, Text, judged, steps
from grafana.tables import Column, rows

UID = "tgi-probe-slo"
REQUESTS = "tgi_probe_slo_requests_total"
ATTEMPTS = "tgi_probe_attempts_total"
CHOSEN = f'slo=~"$slo", {promql.CHOSEN}'
SERIES = "target, workload, batch_size"
EACH = "slo, target"
LEGEND = "{{slo}} on {{target}}"
OBJECTIVE = 'max by (slo) (tgi_probe_slo_objective_ratio{slo=~"$slo"})'
LIMIT = 'max by (slo) (tgi_probe_slo_threshold_seconds{slo=~"$slo"})'
PERIOD, PERIOD_SECONDS = "30d", 30 * 86400
# Both windows of a pair above its factor: a page, or a ticket.
PAGES = ((14.4, "5m", "1h"), (6, "30m", "6h"))
TICKETS = ((3, "2h", "1d"), (1, "6h", "3d"))
WINDOWS = (("5m", 14.4), ("30m", 6), ("1h", 14.4), ("2h", 3), ("6h", 6), ("1d", 3), ("3d", 1))
FINE, TICKET, PAGE = range(3)
STATES = ((FINE, "fine"), (TICKET, "ticket"), (PAGE, "page"))
BY_STATE = steps((None, colours.GOOD), (TICKET, colours.WARNING), (PAGE, colours.BAD))
BY_BUDGET = steps((None, colours.BAD), (0, colours.WARNING), (0.5, colours.GOOD))
TOKENS = "inter_token_latency|time_per_output_token"
ALERTS = 'ALERTS{alertstate="firing", alertname=~"TgiProbe.*"}'


def share(verdict: str, window: str, by: str = EACH) -> str:
    found = promql.increase(REQUESTS, by, window, f'{CHOSEN}, verdict="{verdict}"')
    return f"{found} / ({promql.increase(REQUESTS, by, window, CHOSEN)} > 0)"


def burn(window: str) -> str:
    """How many times faster than allowed the budget is spent: 1 spends it in exactly its period."""
    return f"({share('bad', window)}) / on (slo) group_left () (1 - {OBJECTIVE})"


def budget() -> str:
    return f"1 - ({share('bad', PERIOD)}) / on (slo) group_left () (1 - {OBJECTIVE})"


def each(value: str, *labels: str) -> str:
    """A value that all targets of an SLO share, for each of them."""
    series = f"group by ({EACH}) (increase({REQUESTS}{{{CHOSEN}}}[{promql.RANGE}]))"
    return f"{series} * on (slo) group_left ({', '.join(labels)}) ({value})"


def state() -> str:
    """What the alerts say where the rules are loaded; else what the burn rates say."""

    def beyond(pairs: tuple[tuple[float, str, str], ...]) -> str:
        return " or ".join(f"({burn(short)} > {factor} and {burn(long)} > {factor})" for factor, short, long in pairs)

    def firing(severity: str) -> str:
        own = f'alertstate="firing", alertname="TgiProbeErrorBudgetBurn", severity="{severity}"'
        return f'max by ({EACH}) (ALERTS{{{own}, slo=~"$slo", target=~"$target"}})'

    ruled = f'group by ({EACH}) (slo:objective:ratio{{slo=~"$slo", target=~"$target"}})'
    series = f"group by ({EACH}) (increase({REQUESTS}{{{CHOSEN}}}[{promql.RANGE}]))"
    return (
        f"{PAGE} * {firing('page')} or {TICKET} * {firing('ticket')} or {FINE} * {ruled}"
        f" or {PAGE} * ({beyond(PAGES)}) ^ 0 or {TICKET} * ({beyond(TICKETS)}) ^ 0 or {FINE} * {series}"
    )


def time_left() -> str:
    """Seconds until the budget is spent at the pace of the last hour; of those only that spend any."""
    return f"clamp_min({budget()}, 0) * {PERIOD_SECONDS} / ({burn('1h')} > 0)"


def first_spent() -> str:
    """The shortest time left. Of budgets that are spent already, at 0, it is that of the one that burns fastest: each
    unit of burn rate counts as a microsecond less, and what that makes negative is 0 again.
    """
    return f"clamp_min(bottomk(1, {time_left()} - 1e-6 * {burn('1h')}), 0)"


def slowest(newest: str, measures: str) -> Query:
    """The newest value of each target's slowest batch size, of those that a chosen SLO with such a measure judges."""
    judges = f'{REQUESTS}{{{CHOSEN}}} and on (slo) tgi_probe_slo_info{{measure=~"{measures}"}}'
    values = f"tgi_probe_last_{newest}{{{promql.CHOSEN}}} >= 0"
    return Query(f"max by (target) (({values}) and on ({SERIES}) ({judges}))", "{{target}}")


def limit(measures: str) -> Query:
    chosen = f'tgi_probe_slo_info{{measure=~"{measures}", workload=~"$workload"}}'
    return Query(f"{LIMIT} and on (slo) {chosen}", "{{slo}} limit")


def verdicts() -> list[Panel]:
    def number_of(which: int) -> str:
        return f"count(({state()}) == {which}) or vector(0)"

    info = 'max by (slo, workload, measure) (tgi_probe_slo_info{slo=~"$slo"})'
    return [
        numbers(
            Text(
                "SLOs now, each on each target",
                "Page: act now; ticket: look today; fine: nothing to do; the table below names them.",
                "none",
            ),
            [Query(number_of(PAGE), "page"), Query(number_of(TICKET), "ticket"), Query(number_of(FINE), "fine")],
            width=12,
            height=5,
            names=True,
            own={
                "page": judged((None, colours.GREY), (1, colours.BAD)),
                "ticket": judged((None, colours.GREY), (1, colours.WARNING)),
                "fine": judged((None, colours.GREY), (1, colours.GOOD)),
            },
        ),
        numbers(
            Text(
                "First budget to be spent, at the pace of the last hour",
                "How long the objective still holds if nothing changes: hours are a page, days a ticket.",
                "s",
                empty="No budget was spent in the last hour",
            ),
            [Query(first_spent(), LEGEND)],
            width=12,
            height=5,
            names=True,
            decimals=0,
            texts=((0, "already"),),
            by=steps((None, colours.BAD), (5 * 86400, colours.WARNING), (30 * 86400, colours.GOOD)),
        ),
        rows(
            Text(
                "Every SLO on every target, the worst first",
                "The first row is what to look into; the state is about now, so an SLO can be fine although its budget "
                "of 30 days is spent (below 0 %); requests are counted over the dashboard's time range.",
            ),
            [
                Query(each(info, "workload", "measure")),
                Query(state()),
                Query(budget()),
                Query(burn("1h")),
                Query(share("good", promql.RANGE)),
                Query(each(OBJECTIVE)),
                Query(each(LIMIT)),
                Query(promql.increase(REQUESTS, EACH, where=f'{CHOSEN}, verdict="bad"')),
                Query(promql.increase(REQUESTS, EACH, where=CHOSEN)),
            ],
            [
                Column("slo", "SLO", width=130),
                Column("target", "Target", width=130),
                Column(1, "State", "none", width=80, by=BY_STATE, texts=STATES),
                Column(2, "Budget left", "percentunit", decimals=0, width=115, by=BY_BUDGET),
                Column(3, "Burn, last hour", "suffix:×", decimals=1, width=115),
                Column(4, "Good", "percentunit", decimals=2),
                Column(5, "Objective", "percentunit", decimals=2),
                Column(6, "Limit", "s", decimals=0),
                Column(7, "Bad requests", "locale", decimals=0, width=105),
                Column(8, "Requests", "locale", decimals=0),
                Column("measure", "Judges", width=185),
                Column("workload", "Workload"),
            ],
            height=9,
            sort=[("State", True), ("Budget left", False)],
        ),
    ]


def causes() -> list[Panel]:
    return [
        lines(
            Text(
                "Bad requests",
                "The target that spends the budget: 100 % is an outage, a few per cent a slow server.",
                "percentunit",
            ),
            [Query(share("bad", promql.RATE), LEGEND)],
            width=8,
            most=0.05,
        ),
        lines(
            Text(
                "Failed probes per minute, by outcome",
                "Unreachable and timeout: the server; rejected and malformed: what is sent; flat at 0: "
                "only slowness can break an SLO.",
                "short",
                empty="No probe failed in this time range",
            ),
            [
                Query(
                    f"60 * {promql.rate('tgi_probe_attempts_total', 'outcome', where=promql.FAILED)} > 0", "{{outcome}}"
                )
            ],
            width=7,
            colour=colours.OUTCOMES,
            most=1,
        ),
        rows(
            Text(
                "Firing alerts",
                "The alerts of `tgi-probe rules` that fire now; a row named none: no alert fires, or the rules are "
                "not loaded.",
            ),
            [Query(f"{ALERTS} or {promql.named(f'absent({ALERTS})', 'alertname', 'none')}")],
            [
                Column("alertname", "Alert", width=215),
                Column("severity", "Severity", width=75),
                Column("slo", "SLO"),
                Column("target", "Target"),
            ],
            width=9,
        ),
        lines(
            Text(
                "Time to first token of the slowest batch size, and the limits",
                "A line above a dashed limit means bad requests; one far below it, a limit that is too lax.",
                "s",
            ),
            [slowest("time_to_first_token_seconds", "ttft"), limit("ttft")],
        ),
        lines(
            Text(
                "Token latency of the slowest batch size, and the limits",
                "A line above its dashed limit means stutter; below it, a single slow token can still be bad where "
                "the SLO judges every token.",
                "s",
            ),
            [slowest("inter_token_latency_seconds", TOKENS), limit(TOKENS)],
        ),
    ]


def budgets() -> list[Panel]:
    return [
        lines(
            Text(
                "Error budget left of 30 days",
                "The slope tells how long it lasts; below the dashed line at 0 the objective is broken; −100 % stands "
                "for all that is worse.",
                "percentunit",
            ),
            [Query(f"clamp_min({budget()}, -1)", LEGEND)],
            limits=[0],
            from_zero=False,
            most=1,
        ),
        lines(
            Text(
                "Burn rate of the last hour",
                "Above the dashed line at 14.4× the budget of 30 days lasts two days: a page.",
                "suffix:×",
            ),
            [Query(burn("1h"), LEGEND)],
            limits=[14.4],
            most=16,
        ),
        rows(
            Text(
                "Burn rate per window",
                "1× spends the budget in exactly 30 days; a cell is coloured above the factor at which its window "
                "takes part in an alert of an SLO over 30 days; the rules scale windows and add conditions.",
            ),
            [Query(burn(window)) for window, _ in WINDOWS],
            [
                Column("slo", "SLO", width=130),
                Column("target", "Target", width=130),
                *(
                    Column(
                        number,
                        window,
                        "suffix:×",
                        decimals=1,
                        by=steps((None, colours.GREY), (factor, colours.BAD)),
                    )
                    for number, (window, factor) in enumerate(WINDOWS)
                ),
            ],
            height=8,
            sort=[("1h", True)],
        ),
    ]


def build() -> Dashboard:
    return frame.build(
        UID,
        "SLO",
        "Is the time to first token fine, and for how long?",
        [SLO, TARGET, WORKLOAD, BATCH_SIZE],
        [
            Row("The answer", verdicts()),
            Row("Slow or failing?", causes()),
            Row("How fast the budgets are spent", budgets()),
        ],
        since="now-3h",
    )
