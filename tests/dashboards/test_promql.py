"""The expressions that decide something, asked of promtool over made-up series: what must come out is known."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from grafana import batch_sizes, exporter, fleet, promql, slo
from tests import real_parts
from tests.dashboards.asked import Asked

MINUTES = 20
VALUES = {
    "__rate_interval": "10m",
    "__range": "10m",
    "__interval": "1m",
    "instance": ".*",
    "target": ".*",
    "workload": ".*",
    "batch_size": ".*",
    "slo": ".*",
}
Counts = Mapping[str, float]  # series → increase in a minute


def check(folder: Path, series: Counts, asked: Mapping[str, Sequence[str]], constants: Counts | None = None) -> None:
    """promtool: does each expression, evaluated at the end, give exactly these label sets?"""

    def tested(expr: str, labels: Sequence[str]) -> dict[str, object]:
        filled = Asked("made-up series", "", expr, instant=True).filled(VALUES)
        return {
            "expr": f"group without () ({filled})",
            "eval_time": f"{MINUTES}m",
            "exp_samples": [{"labels": label, "value": 1} for label in labels],
        }

    document = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    *({"series": name, "values": f"0+{step}x{MINUTES}"} for name, step in series.items()),
                    *({"series": name, "values": f"{value}+0x{MINUTES}"} for name, value in (constants or {}).items()),
                ],
                "promql_expr_test": [tested(expr, labels) for expr, labels in asked.items()],
            }
        ],
    }
    file = folder / "test.json"
    file.write_text(json.dumps(document, indent=1))
    done = subprocess.run(
        [real_parts.promtool(), "test", "rules", str(file)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def histogram(name: str, labels: str, cumulative: Mapping[str, float], total: float = 0) -> Counts:
    """Series of a histogram that takes so many observations up to each edge in a minute; `total` seconds or tokens."""
    buckets = {f'{name}_bucket{{le="{edge}", {labels}}}': count for edge, count in cumulative.items()}
    return {**buckets, f"{name}_count{{{labels}}}": cumulative["+Inf"], f"{name}_sum{{{labels}}}": total}


def batch(
    size: int, ttft: Mapping[str, float], tokens_per_second: float, ms_per_token: float = 10, failed: float = 0
) -> Counts:
    """Ten good probes a minute of one batch size, and some that failed, judged by two SLOs."""
    labels = f'target="a", workload="chat", batch_size="{size}"'
    judged = {
        f'{batch_sizes.REQUESTS}{{{labels}, slo="{slo}", verdict="{verdict}"}}': count
        for slo in ("chat-ttft", "second")
        for verdict, count in (("good", ttft["0.2"]), ("bad", ttft["+Inf"] - ttft["0.2"] + failed))
    } | {
        f'{batch_sizes.ATTEMPTS}{{{labels}, outcome="{outcome}", code="x"}}': count
        for outcome, count in (("ok", 10), ("timeout", failed), ("disturbed", 3))
    }
    return {
        **judged,
        **histogram(batch_sizes.TTFT, labels, ttft, total=ttft["+Inf"] * size / 100),
        **histogram(batch_sizes.TOKEN, labels, {"0.05": 10, "+Inf": 10}, total=10 * ms_per_token / 1000),
        **histogram(batch_sizes.DECODE_RATE, labels, {"+Inf": 10}, total=10 * tokens_per_second),
    }


FAST, SLOW, RARELY_SLOW = {"0.2": 10, "+Inf": 10}, {"0.2": 0, "+Inf": 10}, {"0.2": 9.5, "+Inf": 10}
SLO = {
    'tgi_probe_slo_info{slo="chat-ttft", workload="chat", measure="ttft"}': 1,
    'tgi_probe_slo_objective_ratio{slo="chat-ttft"}': 0.99,
}


def test_the_batch_size_to_run_is_the_fastest_of_those_that_keep_the_limits(tmp_path: Path) -> None:
    series = {**batch(1, FAST, 100), **batch(8, FAST, 800), **batch(16, RARELY_SLOW, 1600), **batch(32, SLOW, 3200)}
    asked = {batch_sizes.best(): ['{workload="chat", batch_size="8"}'], batch_sizes.unreached(): []}
    check(tmp_path, series, asked, SLO)


def test_failed_probes_do_not_decide_on_the_batch_size(tmp_path: Path) -> None:
    series = {**batch(1, FAST, 100), **batch(8, FAST, 800, failed=5), **batch(16, RARELY_SLOW, 1600, failed=5)}
    check(tmp_path, series, {batch_sizes.best(): ['{workload="chat", batch_size="8"}']}, SLO)


def test_an_slo_for_some_batch_sizes_says_nothing_of_others(tmp_path: Path) -> None:
    series = {**batch(8, FAST, 800), **batch(16, FAST, 1600)}
    of_8 = {name: value for name, value in series.items() if "slo=" not in name or 'batch_size="8"' in name}
    check(tmp_path, of_8, {batch_sizes.best(): ['{workload="chat", batch_size="8"}']}, SLO)


def test_a_looser_objective_allows_a_larger_batch(tmp_path: Path) -> None:
    series = {**batch(8, FAST, 800), **batch(16, RARELY_SLOW, 1600), **batch(32, SLOW, 3200)}
    looser = {**SLO, 'tgi_probe_slo_objective_ratio{slo="chat-ttft"}': 0.95}
    check(tmp_path, series, {batch_sizes.best(): ['{workload="chat", batch_size="16"}']}, looser)


def test_of_two_slos_the_stricter_counts(tmp_path: Path) -> None:
    second = {name.replace("chat-ttft", "second"): value for name, value in SLO.items()}
    second['tgi_probe_slo_objective_ratio{slo="second"}'] = 0.9
    series = {**batch(8, FAST, 800), **batch(16, RARELY_SLOW, 1600)}
    check(tmp_path, series, {batch_sizes.best(): ['{workload="chat", batch_size="8"}']}, {**SLO, **second})


def test_where_no_batch_size_keeps_the_limits_a_row_says_none(tmp_path: Path) -> None:
    none = f'{{workload="chat", batch_size="none", goal="{batch_sizes.WITHIN}"}}'
    asked = {batch_sizes.best(): [], batch_sizes.unreached(): [none]}
    check(tmp_path, {**batch(1, SLOW, 100), **batch(8, SLOW, 800)}, asked, SLO)


def test_every_goal_names_its_batch_size(tmp_path: Path) -> None:
    series = {**batch(1, FAST, 100, ms_per_token=12), **batch(8, FAST, 800), **batch(32, SLOW, 3200, ms_per_token=20)}
    expected = {batch_sizes.WITHIN: 8, "2 · throughput": 32, "3 · time to first token": 1, "4 · token latency": 8}
    labels = [f'{{workload="chat", batch_size="{size}", goal="{goal}"}}' for goal, size in expected.items()]
    check(tmp_path, series, {batch_sizes.goals(): labels}, SLO)


@pytest.mark.parametrize(
    ("bad_per_minute", "state"),
    [(0, 0), (0.0011, 0), (0.011, 1), (0.07, 2), (1, 2)],
    ids=["none", "within the budget", "slow burn", "fast burn", "outage"],
)
def test_the_state_of_an_slo_follows_the_burn_rate(tmp_path: Path, bad_per_minute: float, state: int) -> None:
    labels = 'slo="chat-ttft", target="a", workload="chat", batch_size="1"'
    series = {
        f'{slo.REQUESTS}{{{labels}, verdict="bad"}}': bad_per_minute,
        f'{slo.REQUESTS}{{{labels}, verdict="good"}}': 1 - bad_per_minute,
    }
    check(tmp_path, series, {f"({slo.state()}) == {state}": ['{slo="chat-ttft", target="a"}']}, SLO)


def test_without_requests_an_slo_has_no_state(tmp_path: Path) -> None:
    check(tmp_path, {}, {slo.state(): []}, SLO)


@pytest.mark.parametrize(("severities", "state"), [((), 0), (("ticket",), 1), (("ticket", "page"), 2)])
def test_where_the_rules_are_loaded_the_state_is_what_the_alerts_say(
    tmp_path: Path, severities: tuple[str, ...], state: int
) -> None:
    """Here every request is bad, but the rules ask for more than a burn rate before an alert fires."""
    labels = 'slo="chat-ttft", target="a"'
    series = {f'{slo.REQUESTS}{{{labels}, workload="chat", batch_size="1", verdict="bad"}}': 1}
    alert = f'ALERTS{{alertname="TgiProbeErrorBudgetBurn", alertstate="firing", severity="%s", {labels}}}'
    there = {**SLO, f"slo:objective:ratio{{{labels}}}": 0.99} | {alert % severity: 1 for severity in severities}
    check(tmp_path, series, {f"({slo.state()}) == {state}": [f"{{{labels}}}"]}, there)


def test_at_the_present_pace_the_budget_lasts_so_long(tmp_path: Path) -> None:
    """2 % bad instead of 1 %: the budget of 30 days lasts 15 days, of which the last 20 minutes have spent some."""
    labels = 'slo="chat-ttft", target="a", workload="chat", batch_size="1"'
    series = {f'{slo.REQUESTS}{{{labels}, verdict="{verdict}"}}': n for verdict, n in (("bad", 0.5), ("good", 99.5))}
    half = slo.PERIOD_SECONDS / 0.5 * (1 - 0.5)
    check(tmp_path, series, {f"abs(({slo.time_left()}) - {half}) < 1": ['{slo="chat-ttft", target="a"}']}, SLO)
    spent = {**series, f'{slo.REQUESTS}{{{labels}, verdict="bad"}}': 50}
    check(tmp_path, spent, {f"({slo.time_left()}) == 0": ['{slo="chat-ttft", target="a"}']}, SLO)
    good = {f'{slo.REQUESTS}{{{labels}, verdict="good"}}': 1, f'{slo.REQUESTS}{{{labels}, verdict="bad"}}': 0}
    check(tmp_path, good, {slo.time_left(): []}, SLO)


def test_of_two_spent_budgets_the_one_that_burns_faster_is_named(tmp_path: Path) -> None:
    series = {
        f'{slo.REQUESTS}{{slo="chat-ttft", target="{target}", workload="chat", batch_size="1", verdict="{verdict}"}}': n
        for target, bad in (("a", 50), ("b", 90), ("c", 60))
        for verdict, n in (("bad", bad), ("good", 100 - bad))
    }
    check(tmp_path, series, {f"({slo.first_spent()}) == 0": ['{slo="chat-ttft", target="b"}']}, SLO)


def test_a_young_target_says_from_when_on_it_can_be_compared(tmp_path: Path) -> None:
    """It began 20 minutes ago; compared with an hour ago from 40 minutes on. With 6 minutes ago, it is old enough."""
    there = {'tgi_probe_target_up{target="a"}': 1}
    expr = fleet.comparable_from()
    hour, ago = (expr.replace("$compare", window) for window in ("1h", "10m"))
    soon = (MINUTES * 60 + 40 * 60) * 1000
    check(tmp_path, {}, {f"abs(({hour}) - {soon}) <= 600000": ['{target="a"}'], ago: []}, there)


def test_the_share_of_late_starts_is_exact_at_an_edge_of_the_buckets(tmp_path: Path) -> None:
    series = histogram(
        "tgi_probe_schedule_lateness_seconds", 'target="a", instance="i"', {"0.01": 9, "0.1": 10, "+Inf": 10}
    )
    late, very_late = (exporter.late(seconds) for seconds in (0.01, 0.1))
    check(tmp_path, series, {f"abs({late} - 0.1) < 1e-9": ["{}"], f"abs({very_late}) < 1e-9": ["{}"]})


@pytest.mark.parametrize(
    ("late", "disturbed", "skipped", "verdict"),
    [(0, 0, 0, 0), (0.2, 0, 0, 1), (1, 0, 0, 2), (0, 1, 0, 1), (0, 8, 0, 2), (0, 0, 2, 1), (0, 0, 5, 2)],
    ids=["all well", "late", "very late", "some disturbed", "most disturbed", "some skipped", "many skipped"],
)
def test_whether_the_latencies_can_be_believed(
    tmp_path: Path, late: float, disturbed: float, skipped: float, verdict: int
) -> None:
    """Of 10 probes a minute."""
    labels = 'instance="i", target="a", workload="w", batch_size="1"'
    very_late = late if late == 1 else 0
    edges = {"0.01": 10 - late, "0.1": 10 - very_late, "+Inf": 10}
    series = {
        **histogram("tgi_probe_schedule_lateness_seconds", 'target="a", instance="i"', edges),
        f'{exporter.ATTEMPTS}{{{labels}, outcome="ok"}}': 10 - disturbed,
        f'{exporter.ATTEMPTS}{{{labels}, outcome="disturbed"}}': disturbed,
        f'{exporter.SKIPS}{{{labels}, reason="busy"}}': skipped,
    }
    check(tmp_path, series, {f"({exporter.verdict()}) == {verdict}": ["{}"]})


def test_a_quantile_of_the_newest_probes_is_a_value_that_was_measured(tmp_path: Path) -> None:
    labels = 'target="a", workload="w", batch_size="1"'
    there = {f"tgi_probe_last_time_to_first_token_seconds{{{labels}}}": 0.3}
    expr = promql.newest_quantile(0.99, "time_to_first_token_seconds", "target")
    check(tmp_path, {}, {f"({expr}) == 0.3": ['{target="a"}']}, there)


def test_a_replica_is_compared_with_the_middle_of_the_fleet_at_the_same_work(tmp_path: Path) -> None:
    series: dict[str, float] = {}
    for target, seconds in (("a", 0.1), ("b", 0.1), ("c", 0.15)):
        for size in (1, 8):
            labels = f'target="{target}", workload="w", batch_size="{size}"'
            series |= histogram(fleet.TTFT, labels, {"+Inf": 10}, total=10 * seconds * size)
    ratio = fleet.against_fleet(fleet.TTFT, promql.RANGE)
    equal = ['{target="a"}', '{target="b"}']
    check(tmp_path, series, {f"abs({ratio} - 1) < 1e-6": equal, f"abs({ratio} - 1.5) < 1e-6": ['{target="c"}']})
