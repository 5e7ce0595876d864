"""One page for one outage: what answers nothing is paged as down or as stale, and not as a fast burn too. Pure."""

from exporter.alerting import promql
from exporter.alerting.burn_rates import FILLED, ProbeSchedule, WindowPair, firing_threshold, rounded_up
from exporter.alerting.rule_types import Options

DOWN, STALE = "TgiProbeTargetDown", "TgiProbeStale"
# Between the moment at which an alert is due and its evaluation: a scrape, and an interval between evaluations.
LAG_SCRAPES = 2


def unless_paged(options: Options, window: float, matchers: str) -> str:
    """The end of an expression that must not fire while another page fires, nor `window` seconds after it."""
    paged = f'ALERTS{{{matchers},alertstate="firing"}}[{promql.duration(window)}]'
    return f"\nunless on ({options.on('target')}) last_over_time({paged})"


def burn_wait(pairs: tuple[WindowPair, ...], schedule: ProbeSchedule, objective: float, earliest_page: float) -> float:
    """Seconds for which the alerts of a burn wait, so that its page does not come before `earliest_page` (seconds from
    the begin of an outage), and its ticket not before its page. A burn that takes longer by itself does not wait.
    """
    found = (firing_threshold(pair, schedule, objective) for pair in pairs if pair.severity == "page")
    quickest = min((FILLED * one.outage for one in found if one is not None), default=0.0)
    return rounded_up(max(0.0, earliest_page - quickest))
