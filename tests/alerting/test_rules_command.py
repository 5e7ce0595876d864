"""`tgi-probe rules` and what `tgi-probe check` says of objectives."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exporter.cli import main

CONFIG = """
targets: [{{name: llama, address: "a:1"}}, {{name: idle, address: "a:2"}}]
workloads: [{{name: chat, batch_sizes: [1], interval: {interval}, targets: [llama]}}]
slos: [{{name: fast, workload: chat, ttft: 200ms, objective: {objective}{more}}}]
"""


def config(folder: Path, interval: str, objective: float, more: str = "") -> str:
    file = folder / "probe.yaml"
    file.write_text(CONFIG.format(interval=interval, objective=objective, more=more))
    return str(file)


def test_check_says_how_many_bad_probes_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", config(tmp_path, "15s", 0.99)]) == 0
    said = capsys.readouterr()
    after = "if all are bad, after"
    assert said.out.splitlines()[1:] == [
        f"slo fast: pages when at least 35 of 240 probes in 1h are bad and 3 in the last 5m; {after} 8m38s",
        f"slo fast: pages when at least 87 of 1440 probes in 6h are bad and 8 in the last 30m; {after} 21m36s",
        f"slo fast: tickets when at least 173 of 5760 probes in 1d are bad and 15 in the last 2h; {after} 43m12s",
        f"slo fast: tickets when at least 173 of 17280 probes in 3d are bad and 15 in the last 6h; {after} 43m12s",
    ]
    assert said.err == ""


@pytest.mark.parametrize(
    ("interval", "objective", "more", "warning"),
    [
        (
            "1m",
            0.999,
            "",
            "warning: slo fast: one bad probe alone burns 14.4× its budget in 1h and would page; the rules wait for a "
            "second one. Mend: an interval of at most 51s or an objective of at most 0.9988",
        ),
        (
            "30s",
            0.9,
            "",
            "warning: slo fast: objective 0.9 is too low for the page at 14.4×: a total outage does not burn so fast. "
            "Mend: more than 0.9306",
        ),
        (
            "30s",
            0.99,
            ", targets: [idle]",
            "warning: slo fast: judges nothing and has no rules. "
            "Mend: give workload chat one of the SLO's targets, or the SLO one of the workload's",
        ),
    ],
)
def test_what_cannot_work_as_meant_is_warned_of_with_its_mend(
    interval: str, objective: float, more: str, warning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(tmp_path, interval, objective, more)
    for command in ("check", "rules"):
        assert main([command, "--config", file]) == 0
        said = capsys.readouterr()
        assert said.err.splitlines()[0] == warning
        assert (f"# {warning}\n" in said.out) == (command == "rules")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--time-scale", "0", "must be a number above 0, at most 1, not '0'"),
        ("--startup-grace", "15", "must be a duration with a unit, such as 250ms, 15s or 2m, not '15'"),
        ("--scrape-interval", "15", "must be a duration with a unit, such as 250ms, 15s or 2m, not '15'"),
        ("--runbooks", "foo", "must be an http:// or https:// address without #, not 'foo'"),
        ("--runbooks", "https://", "must be an http:// or https:// address without #, not 'https://'"),
        (
            "--name",
            "Foo_Bar",
            "must be lower-case letters, digits, - and ., as Kubernetes names resources, not 'Foo_Bar'",
        ),
        ("--regression-factor", "1", "must be a number above 1, at most 1000, not '1'"),
        (
            "--drop-label",
            "target",
            "must be a label name, and none of slo, target, workload, batch_size, not 'target'",
        ),
    ],
)
def test_a_bad_option_is_one_clear_line(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rules", option, value])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{option}: {message}")


def test_without_a_grace_no_rule_knows_of_a_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(tmp_path, "30s", 0.99)
    assert main(["rules", "--config", file]) == 0
    assert "process_start_time_seconds < 900" in capsys.readouterr().out
    assert main(["rules", "--config", file, "--startup-grace", "0s"]) == 0
    assert "starting" not in capsys.readouterr().out


@pytest.mark.parametrize(("classic", "reads"), [("lean", False), ("fine", True), ("off", False)])
def test_no_median_is_read_off_lean_edges(
    classic: str, reads: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 24 and 26 ms, on both sides of the edge of 25, the medians would be 17.5 and 37.5 ms."""
    file = Path(config(tmp_path, "30s", 0.99))
    file.write_text(f"{file.read_text()}\nhistograms: {{classic: {classic}}}\n")
    assert main(["rules", "--config", str(file)]) == 0
    [baselines] = [
        group for group in yaml.safe_load(capsys.readouterr().out)["groups"] if group["name"] == "tgi-probe-baselines"
    ]
    medians = [rule["expr"] for rule in baselines["rules"] if ":median_" in rule.get("record", "")]
    assert len(medians) == 2
    assert all(("_bucket" in expr) == reads for expr in medians)


def test_a_configuration_with_errors_has_no_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--config", config(tmp_path, "30s", 0.99, ", period: 10m")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"{tmp_path}/probe.yaml: slos.0.period: must be from 1h to 366d, not '10m'"]


def test_the_daemon_does_not_load_the_alerting() -> None:
    code = (
        "import sys, exporter.cli, exporter.daemon.app; exporter.cli.build_parser(['run']);"
        "print([name for name in sys.modules if name.startswith('exporter.alerting')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_table_in_the_guide_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--arithmetic"]) == 0
    assert capsys.readouterr().out in (Path(__file__).parents[2] / "docs" / "slo.md").read_text()
