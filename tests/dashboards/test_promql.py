"""The expressions that decide something, asked of promtool over made-up series: what must come out is known."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from grafana import batch_sizes, fleet, promql, slo
from tests import real_parts
from tests.dashboards.asked import Asked

MINUTES = 20
VALUES = {
    "__rate_interval": "10m",
    "__range": "10m",
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
    check(tmp_path, series, {f"({slo.state()}) == {state}": ['{slo="chat-ttft"}']}, SLO)


def test_the_lowest_and_highest_are_edges_of_buckets_in_use(tmp_path: Path) -> None:
    cumulative = {"0.1": 0, "0.2": 3, "0.5": 10, "1.0": 10, "+Inf": 10}
    series = histogram("h", 'target="a", workload="w", batch_size="1"', cumulative)
    lowest, highest = (promql.quantile(q, "h", "target") for q in (promql.LOWEST, promql.HIGHEST))
    asked = {f"abs(({lowest}) - 0.1) < 1e-6": ['{target="a"}'], f"abs(({highest}) - 0.5) < 1e-6": ['{target="a"}']}
    check(tmp_path, series, asked)


def test_a_replica_is_compared_with_the_middle_of_the_fleet_at_the_same_work(tmp_path: Path) -> None:
    series: dict[str, float] = {}
    for target, seconds in (("a", 0.1), ("b", 0.1), ("c", 0.15)):
        for size in (1, 8):
            labels = f'target="{target}", workload="w", batch_size="{size}"'
            series |= histogram(fleet.TTFT, labels, {"+Inf": 10}, total=10 * seconds * size)
    ratio = fleet.against_fleet(fleet.TTFT, promql.RANGE)
    equal = ['{target="a"}', '{target="b"}']
    check(tmp_path, series, {f"abs({ratio} - 1) < 1e-6": equal, f"abs({ratio} - 1.5) < 1e-6": ['{target="c"}']})
