"""Everything under deploy/, held against the schemas of those who read it, and rendered as they render it."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from compose_spec.compose_spec import PyCompose

from exporter.cli import main
from exporter.config.sources import load
from tests.real_parts import real_part

CHECKOUT = Path(__file__).parent.parent.parent
DEPLOY = CHECKOUT / "deploy"
GOLDENS = Path(__file__).parent / "goldens"
BASES = ("sidecar", "standalone", "monitoring")
KUBERNETES = "1.37"  # the newest that kubernetes-validate has
DASHBOARDS = CHECKOUT / "grafana/dashboards"


def rendered(folder: Path) -> str:
    done = subprocess.run([real_part("kubectl"), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources(text: str) -> list[dict[str, Any]]:
    return sorted(yaml.safe_load_all(text), key=lambda one: (one["kind"], one["metadata"]["name"]))


def pods(text: str) -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in resources(text) if one["kind"] == "Deployment"]


@pytest.mark.parametrize("base", BASES)
def test_a_base_renders_as_its_golden(base: str) -> None:
    text, golden = rendered(DEPLOY / "kubernetes" / base), GOLDENS / f"{base}.yaml"
    # The rules have a test of their own below: here they would have to be brought up to date with each change of them.
    text = "---\n".join(part for part in text.split("---\n") if "kind: PrometheusRule\n" not in part)
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(text)
    assert resources(text) == resources(golden.read_text())  # as data: versions of kustomize differ in order and quotes


@pytest.mark.parametrize("base", BASES)
def test_every_resource_is_valid_in_the_schemas_of_kubernetes_and_the_operator(base: str) -> None:
    for resource in resources(rendered(DEPLOY / "kubernetes" / base)):
        validate(resource)


def validate(resource: dict[str, Any]) -> None:
    if resource["apiVersion"].startswith("monitoring.coreos.com/"):
        schemas = json.loads((DEPLOY / "kubernetes/operator-schemas.json").read_text())
        jsonschema.validate(resource, schemas[resource["kind"]])
    else:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize("mistake", [{"replica": 2}, {"replicas": "two"}])
def test_the_schemas_do_find_mistakes(mistake: dict[str, Any]) -> None:
    [deployment] = [one for one in resources((GOLDENS / "standalone.yaml").read_text()) if one["kind"] == "Deployment"]
    deployment["spec"].update(mistake)
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment)


@pytest.mark.parametrize("base", ["sidecar", "standalone"])
def test_pods_follow_the_restricted_standard(base: str) -> None:
    for pod in pods(rendered(DEPLOY / "kubernetes" / base)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "emptyDir", "configMap"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_sidecars_variables_are_a_right_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    [pod] = pods(rendered(DEPLOY / "kubernetes/sidecar"))
    [probe] = [container for container in pod["containers"] if container["name"] == "tgi-probe"]
    for variable in probe["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    settings = load(None)
    mounts = {mount["mountPath"] for mount in probe["volumeMounts"]}
    assert os.path.dirname(settings.targets[0].address.removeprefix("unix://")) in mounts


def test_the_config_maps_of_the_dashboards_hold_the_dashboards() -> None:
    maps = resources(rendered(DASHBOARDS))
    held = {name: text for one in maps for name, text in one["data"].items()}
    assert held == {file.name: file.read_text() for file in DASHBOARDS.glob("*.json")}
    for one in maps:
        validate(one)
        assert one["metadata"]["labels"] == {"grafana_dashboard": "1"}


def compose() -> dict[str, Any]:
    text = (DEPLOY / "compose/compose.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return document


def test_the_compose_file_is_one() -> None:
    PyCompose.from_json(json.dumps(compose())).validate()


def test_what_the_compose_file_mounts_is_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / "compose" / source).exists(), source


def test_either_profile_has_one_server_and_all_the_rest() -> None:
    services = compose()["services"]
    rest = {"tgi-probe", "prometheus", "alertmanager", "grafana"}
    for profile, server in (("tgi", "tgi"), ("simulate", "simulated-tgi")):
        assert {name for name, service in services.items() if profile in service["profiles"]} == {server, *rest}


@pytest.mark.parametrize("file", ["compose/tgi-probe.yaml", "kubernetes/standalone/tgi-probe.yaml"])
def test_a_configuration_that_is_deployed_is_right(file: str) -> None:
    load(DEPLOY / file)


PODS = ["--format", "k8s", "--drop-label", "pod", "--drop-label", "instance", "--drop-label", "container"]


@pytest.mark.parametrize(
    ("configuration", "rules", "options"),
    [
        ("compose/tgi-probe.yaml", "compose/tgi-probe.rules.yml", []),
        ("kubernetes/standalone/tgi-probe.yaml", "kubernetes/monitoring/prometheusrule.yaml", PODS),
    ],
)
def test_the_rules_are_those_of_the_configuration(
    configuration: str, rules: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rules", "--config", str(DEPLOY / configuration), *options]) == 0
    assert capsys.readouterr().out == (DEPLOY / rules).read_text(), "run: make rules"


def test_the_sidecars_rules_are_those_of_its_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [pod] = pods(rendered(DEPLOY / "kubernetes/sidecar"))
    [probe] = [container for container in pod["containers"] if container["name"] == "tgi-probe"]
    for variable in probe["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    assert main(["rules", *PODS]) == 0
    text = (DEPLOY / "kubernetes/monitoring/prometheusrule-sidecar.yaml").read_text()
    assert capsys.readouterr().out == text, "change SIDECAR in the Makefile too, and run: make rules"
    validate(yaml.safe_load(text))


def test_prometheus_takes_its_file() -> None:
    done = subprocess.run(
        [real_part("promtool"), "check", "config", str(DEPLOY / "compose/prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "tgi-probe.service"
    # It looks whether the program is there; in its place stands one that is.
    unit.write_text(
        (DEPLOY / "systemd/tgi-probe.service").read_text().replace("/opt/tgi-probe/bin/tgi-probe", "/bin/true")
    )
    done = subprocess.run([real_part("systemd-analyze"), "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
