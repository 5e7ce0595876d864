"""What people read: the texts of every alert that fires in a scenario, as Prometheus writes them.

UPDATE_GOLDENS=1 writes them anew, for the diff.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.alerting.rule_file import rule_groups
from exporter.alerting.rule_types import Options
from exporter.config.sources import load
from tests import real_parts
from tests.alerting.histories import Phase, series

pytestmark = pytest.mark.slow

GOLDENS = Path(__file__).parent / "goldens"
CONFIG = """
targets: [{name: llama, address: "localhost:50051"}]
workloads: [{name: chat, batch_sizes: [1], interval: 30s}]
slos:
  - {name: chat-ttft, workload: chat, ttft: 200ms, objective: 0.99}
histograms: {classic: fine}
"""
WELL = Phase(120)
# The phases after two good hours, and the minute at which the alerts are read.
SCENARIOS = {
    "slow": ((Phase(60, bad=1, ttft=8.2),), 170),
    "slow and failing": ((Phase(60, probes=3, bad=1, ttft=0.3, failed=2),), 170),
    "some failing": ((Phase(60, probes=2, failed=1),), 170),
    "failing (timeout)": ((Phase(60, probes=0, skipped=1, failed=1, ok=False),), 130),
    "failing (unreachable)": (
        (Phase(60, probes=0, failed=2, failed_as="unreachable", ok=False, target_up=False),),
        170,
    ),
    "back from an outage": (
        (Phase(40, probes=0, failed=2, failed_as="unreachable", ok=False, target_up=False), Phase(20)),
        170,
    ),
    "skipped": ((Phase(120, probes=0, skipped=2, ok=False),), 200),
    "refused": ((Phase(120, probes=0, refused=2, ok=False),), 200),
    "disturbed": ((Phase(60, disturbed=6),), 170),
    "quarantined": ((Phase(60, probes=0, quarantined=2, ok=False),), 150),
    "stale": ((Phase(60, probes=0, ok=False),), 130),
    "late": ((Phase(60, late=1),), 170),
    "exporter gone": ((Phase(60, exporter_up=False),), 130),
    "regressed": ((Phase(1410), Phase(120, ttft=0.16, itl=0.038, throughput=40)), 1640),
    "configuration refused": ((Phase(60, reload_ok=False),), 130),
}


def test_the_texts_of_the_alerts_say_what_was_observed(tmp_path: Path) -> None:
    (tmp_path / "probe.yaml").write_text(CONFIG)
    groups = rule_groups(load(tmp_path / "probe.yaml"), Options())
    baselines = [group for group in groups if group["name"] == "tgi-probe-baselines"]
    read = {
        # Over a day, only the rules that need it: it takes long.
        name: texts(tmp_path, groups if minute < 1440 else baselines, (WELL, *phases), minute)
        for name, (phases, minute) in SCENARIOS.items()
    }
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDENS.mkdir(exist_ok=True)
        for name, text in read.items():
            golden(name).write_text(text)
    for name, text in read.items():
        assert text == golden(name).read_text(), name
    assert {golden(name) for name in SCENARIOS} == set(GOLDENS.iterdir())


def golden(name: str) -> Path:
    return GOLDENS / (re.sub("[^a-z]+", "-", name).strip("-") + ".txt")


def texts(folder: Path, groups: list[dict[str, Any]], phases: Sequence[Phase], minute: int) -> str:
    """Name, severity, summary and description of all that fire at this minute."""
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    names = sorted({rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule})
    # promtool prints the alerts that it did not expect.
    nothing = [{"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []} for name in names]
    test = {"interval": "1m", "input_series": series(phases), "alert_rule_test": nothing}
    document = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "group_eval_order": [group["name"] for group in groups],  # else it is another in each run
        "tests": [test],
    }
    (folder / "tests.yml").write_text(yaml.safe_dump(document))
    command = [real_parts.promtool(), "test", "rules", str(folder / "tests.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    found = re.findall(r"Labels:(\{.*\})\s+Annotations:(\{.*\})", done.stdout + done.stderr)
    assert done.returncode == 1, done.stdout + done.stderr
    assert found, done.stdout + done.stderr
    alerts = []
    for labels, annotations in ((values(one), values(two)) for one, two in found):
        assert set(annotations) == {"summary", "description"}
        name, severity = labels["alertname"], labels["severity"]
        alerts.append(f"{name} ({severity})\n{annotations['summary']}\n{annotations['description']}\n")
    return "\n".join(sorted(alerts))


def values(labels: str) -> dict[str, str]:
    """As Prometheus prints labels."""
    return dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))
