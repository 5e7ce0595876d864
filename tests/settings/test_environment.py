"""The environment: single-target variables, nested keys over the file, what Kubernetes puts there, mistakes."""

from pathlib import Path

import pytest

from exporter.settings import Settings
from exporter.sources import SettingsError, load

FILE = """\
targets: [{name: a, address: "h:1"}, {name: b, address: "h:2"}]
workloads: [{name: chat, interval: 10s}]
"""
TARGET = {"TARGET": "h:1"}


def loaded(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], text: str | None = None, folder: Path | None = None
) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(f"TGI_PROBE_{name}", value)
    if text is None or folder is None:
        return load(None)
    file = folder / "c.yaml"
    file.write_text(text)
    return load(file)


def test_single_target_variables_make_a_whole_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "TARGET": "unix:///tmp/text-generation-server-0",
        "KIND": "shard",
        "KV_CACHE": "exclusive",
        "BATCH_SIZES": "1, 2,4",
        "SEQUENCE_LENGTH": "512",
        "DECODE_LENGTH": "64",
        "INTERVAL": "1m",
        "TIMEOUT": "5s",
        "TTFT_SLO": "200ms",
        "TTFT_OBJECTIVE": "0.95",
    }
    settings = loaded(monkeypatch, environment)
    [target], [workload], [slo] = settings.targets, settings.workloads, settings.slos
    assert (target.name, target.address, target.kv_cache) == ("default", environment["TARGET"], "exclusive")
    assert (workload.batch_sizes, workload.sequence_length, workload.decode_length) == ((1, 2, 4), 512, 64)
    assert (workload.interval, workload.timeout) == (60.0, 5.0)
    assert (slo.ttft, slo.objective) == (0.2, 0.95)


@pytest.mark.parametrize("sizes", ["7", "[7]", " 7 "])
def test_one_batch_size_is_a_list_of_one(monkeypatch: pytest.MonkeyPatch, sizes: str) -> None:
    environment = TARGET | {"WORKLOADS__0__BATCH_SIZES": sizes}
    assert loaded(monkeypatch, environment).workloads[0].batch_sizes == (7,)


def test_a_variable_overrules_one_key_of_one_item_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment = {
        "TARGETS__1__ADDRESS": "h:9",
        "WORKLOADS__0__BATCH_SIZES": "1,2",
        "WEB__LISTEN_ADDRESS": ":0",
        "MAX_DUTY_CYCLE": "1",
    }
    settings = loaded(monkeypatch, environment, FILE, tmp_path)
    assert [target.address for target in settings.targets] == ["h:1", "h:9"]
    assert settings.workloads[0].batch_sizes == (1, 2)
    assert settings.workloads[0].interval == 10
    assert (settings.web.listen_address, settings.max_duty_cycle) == (":0", 1)


def test_what_kubernetes_sets_for_a_service_of_this_name_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = TARGET | {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "9477",
        "SERVICE_PORT_HTTP": "9477",
        "PORT": "tcp://10.0.0.1:9477",
        "PORT_9477_TCP": "tcp://10.0.0.1:9477",
        "PORT_9477_TCP_PROTO": "tcp",
    }
    assert loaded(monkeypatch, environment).targets[0].address == "h:1"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "targets: must hold at least one target (or set TGI_PROBE_TARGET)"),
        (
            {"TARGET": "https://user:secret@h"},
            "TGI_PROBE_TARGET: a URL needs kind: http; set it, or write unix:///path or host:port",
        ),
        (
            {"TARGET": "nowhere"},
            "TGI_PROBE_TARGET: must be unix:///absolute/path of the socket, or host:port, not 'nowhere'",
        ),
        (TARGET | {"BATCH_SIZES": "1,x"}, "TGI_PROBE_BATCH_SIZES: must be a whole number, not 'x'"),
        (TARGET | {"BATCH_SIZES": ""}, "TGI_PROBE_BATCH_SIZES: must hold at least 1, not ''"),
        (
            TARGET | {"INTERVAL": "30"},
            "TGI_PROBE_INTERVAL: must be a duration with a unit, such as 250ms, 15s or 2m, not '30'",
        ),
        (TARGET | {"DECODE_LENGTH": "0"}, "TGI_PROBE_DECODE_LENGTH: must be ≥ 1, not '0'"),
        (
            TARGET | {"SEQUENCE_LENGTH": "12 tokens"},
            "TGI_PROBE_SEQUENCE_LENGTH: must be a whole number, not '12 tokens'",
        ),
        (TARGET | {"KV_CACHE": "mine"}, "TGI_PROBE_KV_CACHE: must be 'exclusive' or 'reserved_block', not 'mine'"),
        (TARGET | {"KIND": "vllm"}, "TGI_PROBE_KIND: must be 'shard', 'fmaas' or 'http', not 'vllm'"),
        (TARGET | {"TTFT_SLO": "0s"}, "TGI_PROBE_TTFT_SLO: must be longer than 0s, not '0s'"),
        (
            TARGET | {"TTFT_SLO": "1s", "TTFT_OBJECTIVE": "99"},
            "TGI_PROBE_TTFT_OBJECTIVE: must be < 1, not '99'",
        ),
        (
            TARGET | {"TTFT_OBJECTIVE": "0.9"},
            "TGI_PROBE_TTFT_OBJECTIVE: works together with TGI_PROBE_TTFT_SLO only; set it, such as 200ms",
        ),
        (
            {"BATCH_SIZES": "1"},
            "TGI_PROBE_BATCH_SIZES: works together with TGI_PROBE_TARGET only; set it to the address of the server",
        ),
        (TARGET | {"MAX_DUTY_CYCLE": "2"}, "TGI_PROBE_MAX_DUTY_CYCLE: must be ≤ 1, not '2'"),
        (TARGET | {"WEB__PORT": "1"}, "TGI_PROBE_WEB__PORT: is not a known key; check the spelling, or remove it"),
        (
            {"TARGETS": "[{"},
            "TGI_PROBE_TARGETS: is not JSON; write a JSON value, or set one key each,"
            " such as TGI_PROBE_TARGETS__0__NAME",
        ),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_the_mend(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], line: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, environment)
    assert caught.value.problems[0] == line


def test_a_misspelt_variable_is_named_with_all_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"^TGI_PROBE_TARGE: is not a known variable; known are TGI_PROBE_BATCH"):
        loaded(monkeypatch, {"TARGE": "h:1"})


def test_single_target_variables_and_a_file_with_targets_are_one_too_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"c\.yaml: targets: cannot stand beside TGI_PROBE_TARGET; remove one"):
        loaded(monkeypatch, TARGET, FILE, tmp_path)
