"""The generated files as a whole: promtool and amtool take them, what is committed is what is generated."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from exporter.alerting.rule_file import rule_file, rule_groups
from exporter.alerting.rule_types import Options
from exporter.cli import main
from exporter.config.settings import Settings
from exporter.config.sources import load
from tests import real_parts

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXAMPLE = DEPLOY / "prometheus" / "tgi-probe.yaml"


def refusal(file: Path) -> str:
    """What promtool finds wrong with a rule file; empty when nothing."""
    command = [real_parts.promtool(), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_committed_rules_are_those_of_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--config", str(EXAMPLE)]) == 0
    golden = (DEPLOY / "prometheus" / "tgi-probe.rules.yml").read_text()
    assert capsys.readouterr().out == golden, "run `make rules`"


def test_promtool_takes_the_committed_rules_and_configuration() -> None:
    assert not refusal(DEPLOY / "prometheus" / "tgi-probe.rules.yml")
    command = [real_parts.promtool(), "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tgi-probe.rules.yml" in done.stdout


def test_amtool_takes_the_committed_configuration() -> None:
    command = [real_parts.amtool(), "check-config", str(DEPLOY / "alertmanager" / "alertmanager.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("alertname=TgiProbeErrorBudgetBurn severity=page", "page"),
        ("alertname=TgiProbeErrorBudgetBurn severity=ticket", "ticket"),
        ("alertname=Other", "ticket"),
    ],
)
def test_pages_and_tickets_go_different_ways(labels: str, receiver: str) -> None:
    config = DEPLOY / "alertmanager" / "alertmanager.yml"
    command = [real_parts.amtool(), "config", "routes", "test", f"--config.file={config}", *labels.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == receiver, done.stdout + done.stderr


def names_of_alerts() -> set[str]:
    groups = rule_groups(load(EXAMPLE), Options())
    return {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}


def test_every_alert_has_its_section_in_the_runbook_and_the_runbook_no_other() -> None:
    runbook = (ROOT / "docs" / "runbooks.md").read_text()
    sections = re.findall(r"^## (TgiProbe\w+)$", runbook, re.MULTILINE)
    assert sorted(sections) == sorted(names_of_alerts())
    for section in runbook.split("\n## ")[1:]:
        for part in ("**Meaning.**", "**First look.**", "**Likely causes.**", "**Mend.**"):
            assert part in section, (section.splitlines()[0], part)


def test_every_alert_has_a_severity_that_is_routed_and_a_link_to_its_section() -> None:
    document = yaml.safe_load(rule_file(load(EXAMPLE), Options(runbooks="https://docs.example/runbooks"), []))
    found = [rule for group in document["groups"] for rule in group["rules"] if "alert" in rule]
    assert {rule["labels"]["severity"] for rule in found} == {"page", "ticket"}
    for rule in found:
        assert rule["annotations"]["runbook_url"] == f"https://docs.example/runbooks#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


def test_without_the_address_of_the_runbooks_no_alert_has_a_link() -> None:
    assert "runbook_url" not in rule_file(load(EXAMPLE), Options(), [])


def test_every_symptom_is_inhibited_while_its_target_is_down() -> None:
    config = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    down = next(rule for rule in config["inhibit_rules"] if "TgiProbeTargetDown" in rule["source_matchers"][0])
    pattern = re.fullmatch(r'alertname=~"(.*)"', down["target_matchers"][0])
    assert pattern is not None
    about_the_daemon = {"TgiProbeTargetDown", "TgiProbeAbsent", "TgiProbeExporterDown", "TgiProbeReloadFailed"}
    of_ours = about_the_daemon | {"TgiProbeLate", "TgiProbeDisturbed"}
    for name in names_of_alerts() - of_ours:
        assert re.fullmatch(pattern[1], name), name


def test_the_kubernetes_resource_holds_the_same_rules() -> None:
    settings, options = load(EXAMPLE), Options()
    resource = yaml.safe_load(rule_file(settings, options, [], "llm"))
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert resource["metadata"]["name"] == "llm"
    assert resource["spec"] == yaml.safe_load(rule_file(settings, options, []))


NAMES = st.from_regex(r"[A-Za-z0-9_.:/-]{1,20}", fullmatch=True)
MEASURES = st.one_of(
    st.fixed_dictionaries({"ttft": st.integers(1, 99999).map("{}ms".format)}),
    st.fixed_dictionaries({"inter_token_latency": st.integers(1, 300).map("{}s".format)}),
    st.fixed_dictionaries({"time_per_output_token": st.just("0.5ms")}),
    st.fixed_dictionaries({"request_duration": st.just("1m30s")}),
    st.fixed_dictionaries({"availability": st.just(True)}),
)


@st.composite
def configurations(draw: st.DrawFn) -> Settings:
    sizes = draw(st.lists(st.integers(1, 4096), min_size=1, max_size=4, unique=True))
    interval = draw(st.sampled_from(["0s", "250ms", "1s", "30s", "7m", "6h"]))
    workload: dict[str, Any] = {"name": "w", "batch_sizes": sizes, "interval": interval}
    if (
        load := draw(st.sampled_from([None, {"mode": "open", "rate": "0.5/s"}, {"mode": "closed", "users": 3}]))
    ) is not None:
        sizes, workload = [1], {"name": "w", "load": load}
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    slos: list[dict[str, Any]] = []
    for name in names:
        objective = draw(st.floats(0.0001, 0.99999))
        period = draw(st.sampled_from(["1h", "1d", "7d", "28d", "30d", "90d", "366d"]))
        slos.append({"name": name, "workload": "w", "objective": objective, "period": period} | draw(MEASURES))
        if draw(st.booleans()):
            slos[-1]["batch_sizes"] = draw(st.lists(st.sampled_from(sizes), min_size=1, unique=True))
    targets = [
        {"name": name, "kind": "fmaas", "address": "a:1"}
        for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    ]
    return Settings.model_validate({"targets": targets, "workloads": [workload], "slos": slos})


@given(
    settings=configurations(),
    scrape=st.sampled_from([0.5, 15.0, 60.0]),
    scale=st.sampled_from([1.0, 0.01]),
    drop=st.sampled_from([(), ("pod", "instance"), ("instance", "job")]),
)
@effort(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_promtool_takes_the_rules_of_any_configuration(
    settings: Settings, scrape: float, scale: float, drop: tuple[str, ...], tmp_path: Path
) -> None:
    options = Options(scrape_interval=scrape, time_scale=scale, drop_labels=drop)
    (tmp_path / "rules.yml").write_text(rule_file(settings, options, ["a remark"]))
    assert not refusal(tmp_path / "rules.yml")
