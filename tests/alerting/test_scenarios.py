"""Histories of a target, replayed by promtool through the generated rules: what fires when, and what must not.

At every minute that a scenario names, exactly the alerts it lists are firing, of all that the rules know. Tickets get
three minutes of grace, since recordings over days are made every two and a half. The scenarios of a world happen side
by side, each to a target and a daemon of its own: to evaluate the rules once costs nearly as much as for one target.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from exporter.alerting import promql
from exporter.alerting.rule_file import rule_file
from exporter.alerting.rule_types import Options
from exporter.config.settings import Settings
from exporter.config.sources import load
from tests import real_parts
from tests.alerting.histories import Phase, firing, series

pytestmark = pytest.mark.slow

CONFIG = """
targets: [{targets}]
workloads: [{{name: chat, batch_sizes: [1], interval: 30s}}]
slos: [{{name: chat-ttft, workload: chat, ttft: 200ms, objective: {objective}}}]
histograms: {{classic: fine}}
"""
PAGE, TICKET = ("TgiProbeErrorBudgetBurn", "page"), ("TgiProbeErrorBudgetBurn", "ticket")
QUIET = ("TgiProbeBatchSizeStale", "ticket")
STALE = ("TgiProbeStale", "page")
DOWN = ("TgiProbeTargetDown", "page")
BLIND = {("TgiProbeAbsent", "page"), ("TgiProbeExporterDown", "ticket")}
REFUSED, SKIPPED = ("TgiProbeRefused", "ticket"), ("TgiProbeSkipped", "ticket")
DISTURBED = ("TgiProbeDisturbed", "ticket")
QUARANTINED = ("TgiProbeQuarantined", "ticket")
LATE, RELOAD = ("TgiProbeLate", "ticket"), ("TgiProbeReloadFailed", "ticket")
TTFT, ITL = ("TgiProbeTtftRegressed", "ticket"), ("TgiProbeInterTokenLatencyRegressed", "ticket")
THROUGHPUT = ("TgiProbeThroughputRegressed", "ticket")
NOTHING: set[tuple[str, str]] = set()
HOURS, DAY = 60, 1440
# The group of rules that need a day of history. Where only they matter, the others are left out: it takes long.
BASELINES = "tgi-probe-baselines"
DEFAULTS = Options()


@dataclass(frozen=True)
class Scenario:
    """`firing`: minute to (alert, severity)."""

    name: str
    phases: tuple[Phase, ...]
    firing: dict[int, set[tuple[str, str]]]
    objective: float = 0.99


SCENARIOS = (
    Scenario("all is well", (Phase(6 * HOURS),), {0: NOTHING, 1: NOTHING, 5: NOTHING, 60: NOTHING, 359: NOTHING}),
    Scenario(
        "a fast burn pages within nine minutes",
        (Phase(6 * HOURS), Phase(60, bad=1)),
        {359: NOTHING, 366: NOTHING, 369: {PAGE}, 390: {PAGE}, 401: {PAGE, TICKET}, 419: {PAGE, TICKET}},
    ),
    Scenario(
        "a slow burn of five times the budget tickets and never pages",
        (Phase(6 * HOURS), Phase(760, bad=0.05)),
        {359: NOTHING, 445: NOTHING, 1000: NOTHING, 1075: {TICKET}, 1119: {TICKET}},
    ),
    Scenario(
        "a blip of three minutes wakes nobody",
        (Phase(6 * HOURS), Phase(3, bad=1), Phase(60)),
        {minute: NOTHING for minute in (360, 361, 363, 365, 368, 380, 422)},
    ),
    Scenario(
        "after a recovery the page ends with the 30 minutes, the ticket with the 6 hours",
        (Phase(6 * HOURS), Phase(40, bad=1), Phase(7 * HOURS)),
        {
            370: {PAGE},
            392: {PAGE},
            405: {PAGE, TICKET},
            420: {PAGE, TICKET},
            435: {TICKET},
            745: {TICKET},
            770: NOTHING,
        },
    ),
    Scenario(
        "without traffic no objective is judged, and the silence itself pages",
        (Phase(6 * HOURS), Phase(60, probes=0, ok=False)),
        {361: NOTHING, 368: {STALE}, 419: {STALE}},
    ),
    Scenario(
        "a target that is gone pages as down, and neither as stale nor as a burn, not when it is back either",
        (Phase(6 * HOURS), Phase(60, bad=1, ok=False, target_up=False), Phase(40)),
        {361: NOTHING, 362: {DOWN}, 369: {DOWN}, 419: {DOWN, TICKET}, 422: {TICKET}, 425: {TICKET}, 459: {TICKET}},
    ),
    Scenario(
        "an exporter that is gone is noticed after five minutes, and nothing else is made up meanwhile",
        (Phase(6 * HOURS), Phase(60, exporter_up=False), Phase(30)),
        {361: NOTHING, 364: NOTHING, 366: BLIND, 419: BLIND, 421: NOTHING, 449: NOTHING},
    ),
    Scenario(
        "a restart of the daemon with its counters back at zero fires nothing",
        (Phase(6 * HOURS), Phase(3, exporter_up=False), Phase(60, restart=True)),
        {minute: NOTHING for minute in (360, 362, 363, 364, 366, 370, 422)},
    ),
    Scenario(
        "a restart in the middle of a burn does not hide it",
        (Phase(6 * HOURS), Phase(6, bad=1), Phase(1, bad=1, restart=True), Phase(60, bad=1)),
        {361: NOTHING, 372: {PAGE}, 425: {PAGE, TICKET}},
    ),
    Scenario(
        "one bad probe at 99.9 % wakes nobody, with a history",
        (Phase(6 * HOURS), Phase(1, bad=0.5), Phase(60)),
        {minute: NOTHING for minute in (360, 361, 362, 363, 364, 365, 370, 420)},
        0.999,
    ),
    Scenario(
        "one bad probe at 99.9 % wakes nobody, in the first minutes of a daemon",
        (Phase(2), Phase(1, bad=0.5), Phase(60)),
        {minute: NOTHING for minute in range(12)} | {40: NOTHING, 62: NOTHING},
        0.999,
    ),
    Scenario(
        "a second bad probe at 99.9 % pages",
        (Phase(6 * HOURS), Phase(1, bad=1), Phase(60)),
        {359: NOTHING, 364: {PAGE}, 370: NOTHING, 422: NOTHING},
        0.999,
    ),
    Scenario(
        "four bad probes in the first minutes of a daemon are not yet worth waking somebody",
        (Phase(4), Phase(2, bad=1), Phase(60)),
        {minute: NOTHING for minute in range(12)} | {30: NOTHING, 65: NOTHING},
    ),
    Scenario(
        "a target that is bad from the daemon's first minute pages soon",
        (Phase(15, bad=1),),
        {0: NOTHING, 5: NOTHING, 9: {PAGE}, 14: {PAGE}},
    ),
    Scenario(
        "refused probes are not judged, and make a ticket",
        (Phase(6 * HOURS), Phase(60, probes=0, refused=2, ok=False)),
        {362: NOTHING, 367: {REFUSED}, 390: {REFUSED}, 419: {REFUSED}},
    ),
    Scenario(
        "a silence in which all probes are disturbed is not explained",
        (Phase(6 * HOURS), Phase(60, probes=0, disturbed=2, ok=False), Phase(60)),
        {359: NOTHING, 362: NOTHING, 390: {STALE, DISTURBED}, 419: {STALE, DISTURBED}, 450: NOTHING},
    ),
    Scenario(
        "when most probes are disturbed it is a ticket, and a few are nothing",
        (Phase(3 * HOURS, probes=2, disturbed=1), Phase(3 * HOURS, probes=2, disturbed=6)),
        {60: NOTHING, 179: NOTHING, 240: {DISTURBED}, 359: {DISTURBED}},
    ),
    Scenario(
        "what ended a server is a ticket until it is released, and never a page",
        (Phase(6 * HOURS), Phase(60, probes=0, quarantined=2, ok=False), Phase(60)),
        {359: NOTHING, 362: {QUARANTINED}, 390: {QUARANTINED}, 419: {QUARANTINED}, 422: NOTHING},
    ),
    Scenario(
        "a shard that is only ever refused is a ticket and never a page",
        (Phase(6 * HOURS, probes=0, refused=2, ok=False),),
        {10: {REFUSED}, 20: {REFUSED}, 60: {REFUSED}, 359: {REFUSED, QUIET}},
    ),
    Scenario(
        "a rollout with ten minutes of loading a model pages nobody, neither meanwhile nor afterwards",
        (Phase(10, bad=1, ok=False, target_up=False), Phase(2 * HOURS)),
        {minute: NOTHING for minute in range(2, 129)},
    ),
    Scenario(
        "a daemon that is replaced with its server pages nobody while that loads",
        (
            Phase(6 * HOURS),
            Phase(1, exporter_up=False),
            Phase(1, bad=1, ok=False, target_up=False, restart=True),
            Phase(11, bad=1, ok=False, target_up=False),
            Phase(60),
        ),
        {minute: NOTHING for minute in range(361, 432)},
    ),
    Scenario(
        "a target that never comes pages after the grace",
        (Phase(40, bad=1, ok=False, target_up=False),),
        {4: NOTHING, 14: NOTHING, 18: {DOWN}, 22: {DOWN}},
    ),
    Scenario(
        "a target that is slow from its first success pages soon after it",
        (Phase(10, bad=1, ok=False, target_up=False), Phase(30, bad=1)),
        {9: NOTHING, 12: NOTHING, 18: {PAGE}},
    ),
    Scenario(
        "users who wait for hours and are yielded to are a ticket and never a page",
        (Phase(6 * HOURS), Phase(3 * HOURS, probes=0, skipped=2, ok=False), Phase(60)),
        {
            361: NOTHING,
            368: NOTHING,
            375: NOTHING,
            415: {SKIPPED},
            450: {SKIPPED, QUIET},
            539: {SKIPPED, QUIET},
            542: {SKIPPED},
        },
    ),
    Scenario(
        "a server that hangs pages as stale and not as a burn, though turns are skipped while its failures last",
        (Phase(6 * HOURS), Phase(60, probes=0, skipped=1, failed=1, ok=False), Phase(30)),
        {361: NOTHING, 368: {STALE}, 390: {STALE}, 419: {SKIPPED, STALE, TICKET}, 425: {SKIPPED}},
    ),
    Scenario(
        "what is slow after an outage pages as a burn five minutes after it",
        (Phase(6 * HOURS), Phase(20, probes=0, failed=2, ok=False, target_up=False), Phase(20, bad=1)),
        {362: {DOWN}, 379: {DOWN}, 382: NOTHING, 389: {PAGE}},
    ),
    Scenario(
        "a server that fails at half of its probes pages as a burn",
        (Phase(6 * HOURS), Phase(60, probes=1, failed=1)),
        {361: NOTHING, 384: {PAGE}, 415: {PAGE}},
    ),
    Scenario(
        "even where the second bad probe is enough, an outage pages as down alone",
        (Phase(6 * HOURS), Phase(40, probes=0, failed=2, ok=False, target_up=False), Phase(40)),
        {
            361: NOTHING,
            362: {DOWN},
            366: {DOWN},
            375: {DOWN, TICKET},
            399: {DOWN, TICKET},
            405: {TICKET},
            439: {TICKET},
        },
        0.999,
    ),
    Scenario(
        "even where the second bad probe is enough, a server that hangs pages as stale alone",
        (Phase(6 * HOURS), Phase(40, probes=0, failed=2, ok=False), Phase(40)),
        {
            362: NOTHING,
            363: {STALE},
            366: {STALE},
            375: {STALE, TICKET},
            399: {STALE, TICKET},
            405: {TICKET},
            439: {TICKET},
        },
        0.999,
    ),
    Scenario(
        "skipping a third of the probes makes a ticket, skipping a few does not",
        (Phase(6 * HOURS), Phase(2 * HOURS, probes=9, skipped=1), Phase(2 * HOURS, probes=2, skipped=1)),
        {479: NOTHING, 490: NOTHING, 590: {SKIPPED}},
    ),
    Scenario(
        "late starts make a ticket, a single one does not",
        (Phase(6 * HOURS), Phase(1, late=1), Phase(60), Phase(60, late=1)),
        {361: NOTHING, 380: NOTHING, 450: {LATE}},
    ),
    Scenario(
        "a refused configuration makes a ticket after five minutes",
        (Phase(60), Phase(30, reload_ok=False), Phase(10)),
        {63: NOTHING, 66: {RELOAD}, 91: NOTHING},
    ),
    Scenario(
        "twice the latency or half the throughput is a regression, though the objective is met; a fifth more is none",
        (Phase(DAY + 90), Phase(100, ttft=0.12, itl=0.026), Phase(120, ttft=0.16, itl=0.038, throughput=40)),
        {1529: NOTHING, 1629: NOTHING, 1650: NOTHING, 1740: {TTFT, ITL, THROUGHPUT}},
    ),
    Scenario(
        "without a day of history nothing is a regression",
        (Phase(DAY // 2), Phase(2 * HOURS, ttft=0.18, itl=0.08, throughput=33)),
        {720: NOTHING, 800: NOTHING, 839: NOTHING},
    ),
)


def lasts(scenario: Scenario) -> int:
    return max(scenario.firing)


# Of about the same length, for all in a world are evaluated until the last one has been asked about.
WORLDS = {
    "short": [one for one in SCENARIOS if one.objective == 0.99 and lasts(one) <= 10 * HOURS],
    "long": [one for one in SCENARIOS if one.objective == 0.99 and 10 * HOURS < lasts(one) <= DAY],
    BASELINES: [one for one in SCENARIOS if lasts(one) > DAY],
    "three nines": [one for one in SCENARIOS if one.objective == 0.999],
}


def config(objective: float = 0.99, targets: Sequence[str] = ("llama",)) -> str:
    listed = ", ".join(f'{{name: {name}, address: "localhost:{50051 + at}"}}' for at, name in enumerate(targets))
    return CONFIG.format(objective=objective, targets=listed)


def settings_of(folder: Path) -> Settings:
    (folder / "probe.yaml").write_text(config())
    return load(folder / "probe.yaml")


def replayed(
    folder: Path, config: str, tests: list[dict[str, object]], options: Options = DEFAULTS, only: str = ""
) -> str:
    """promtool's verdict: empty when every test passed, else what it found. `only`: the one group of rules to use."""
    (folder / "probe.yaml").write_text(config)
    rules = rule_file(load(folder / "probe.yaml"), options, [])
    if only:
        groups = [group for group in yaml.safe_load(rules)["groups"] if group["name"] == only]
        rules = yaml.safe_dump({"groups": groups})
    (folder / "rules.yml").write_text(rules)
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(document))
    command = [real_parts.promtool(), "test", "rules", str(folder / "tests.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def name_of(scenario: Scenario) -> str:
    """That of its target, so that what promtool says of a failure names the scenario."""
    return re.sub("[^a-z0-9]+", "-", scenario.name)


@pytest.mark.parametrize("world", WORLDS)
def test_exactly_these_alerts_fire(world: str, tmp_path: Path) -> None:
    scenarios = WORLDS[world]
    [objective] = {scenario.objective for scenario in scenarios}
    known, checks = [], []
    for scenario in scenarios:
        name = name_of(scenario)
        instance = f"{name}:9477"
        known += series(scenario.phases, name, instance)
        for minute, expected in scenario.firing.items():
            checks.append(firing(minute, expected, f'target="{name}"', f'instance="{instance}"'))
            checks.append(firing(minute, NOTHING, 'target="",instance=""'))  # that of nobody
    test: dict[str, object] = {"interval": "1m", "input_series": known, "promql_expr_test": checks}
    targets = [name_of(scenario) for scenario in scenarios]
    found = replayed(tmp_path, config(objective, targets), [test], only=BASELINES if world == BASELINES else "")
    assert not found, found


KNEE = """
targets: [{name: llama, address: "localhost:50051"}]
workloads: [{name: chat, batch_sizes: [1, 2, 4], interval: 30s}]
slos: [{name: chat-tokens, workload: chat, inter_token_latency: 50ms, objective: 0.95}]
"""


def verdicts(batch_size: int, bad_minutes: range, minutes: int) -> list[dict[str, str]]:
    """Two probes a minute of one batch size, all bad in some minutes."""
    counts = {"good": 0, "bad": 0}
    values: dict[str, list[int]] = {"good": [], "bad": []}
    for minute in range(minutes):
        counts["bad" if minute in bad_minutes else "good"] += 2 * batch_size
        for verdict, seen in values.items():
            seen.append(counts[verdict])
    labels = f'slo="chat-tokens",workload="chat",batch_size="{batch_size}",target="llama",job="j",instance="i"'
    return [
        {
            "series": f'tgi_probe_slo_requests_total{{{labels},verdict="{verdict}"}}',
            "values": " ".join(map(str, values[verdict])),
        }
        for verdict in values
    ]


def test_the_knee_moves_when_the_largest_batch_size_stays_bad_and_not_for_two_bad_probes(tmp_path: Path) -> None:
    minutes, moved = DAY + 300, range(DAY + 200, DAY + 300)
    blip = range(DAY + 100, DAY + 101)
    series = verdicts(1, range(0), minutes) + verdicts(2, blip, minutes) + verdicts(4, moved, minutes)
    firing = 'group by (alertname, slo, target) (ALERTS{alertname="TgiProbeKneeMoved",alertstate="firing"})'
    size = 'slo:largest_good_batch_size:now{slo="chat-tokens"}'
    labels = 'slo="chat-tokens",target="llama",job="j",instance="i"'
    fires = [{"labels": '{alertname="TgiProbeKneeMoved", slo="chat-tokens", target="llama"}', "value": 1}]

    def knee(value: int) -> list[dict[str, object]]:
        return [{"labels": f"slo:largest_good_batch_size:now{{{labels}}}", "value": value}]

    expected: list[tuple[int, str, list[dict[str, object]]]] = [
        (DAY + 130, size, knee(4)),
        (DAY + 130, firing, []),
        (DAY + 250, size, knee(2)),
        (DAY + 299, firing, fires),
    ]
    checks = [{"expr": expr, "eval_time": f"{at}m", "exp_samples": samples} for at, expr, samples in expected]
    test: dict[str, object] = {"interval": "1m", "input_series": series, "promql_expr_test": checks}
    found = replayed(tmp_path, KNEE, [test], only=BASELINES)
    assert not found, found


def test_a_dropped_label_is_on_no_alert_about_a_target_so_that_one_still_inhibits_the_others(tmp_path: Path) -> None:
    about = 'ALERTS{alertstate="firing",target="llama"'
    check = {
        "expr": f'group by (alertname, severity, instance) ({about},alertname!="TgiProbeAbsent"}})',
        "eval_time": "79m",
        "exp_samples": [
            {"labels": f'{{alertname="{name}", severity="{severity}"}}', "value": 1} for name, severity in (DOWN, LATE)
        ],
    }
    known = series([Phase(HOURS), Phase(20, bad=1, ok=False, target_up=False, late=1)])
    test: dict[str, object] = {"interval": "1m", "input_series": known, "promql_expr_test": [check]}
    found = replayed(tmp_path, config(), [test], Options(drop_labels=("instance",)))
    assert not found, found


def test_one_bad_probe_never_counts_as_two_however_few_scrapes_there_are(tmp_path: Path) -> None:
    """A long-running daemon that Prometheus has only just found: its first scrapes, asked about at every second."""
    labels = 'slo="chat-ttft",target="llama",workload="chat",batch_size="1",verdict="bad"'
    spared = "slo:bad_requests:increase5m"
    rules = yaml.safe_load(rule_file(settings_of(tmp_path), Options(), []))
    [expr] = [rule["expr"] for group in rules["groups"] for rule in group["rules"] if rule.get("record") == spared]
    tests: list[dict[str, object]] = [
        {
            "interval": "15s",
            "input_series": [{"series": f"tgi_probe_slo_requests_total{{{labels}}}", "values": values}],
            "promql_expr_test": [
                {"expr": f"{expr} > {promql.EXTRAPOLATION}", "eval_time": f"{second}s", "exp_samples": []}
                for second in range(0, 300, 4)
            ],
        }
        for values in (
            "100 101x40",
            "0 1x40",
            "100 100 101x40",
            "100 101 _ _ 101x40",
            "_ _ 7 7 7 7 8x40",
        )
    ]
    found = replayed(tmp_path, config(), tests)
    assert not found, found
