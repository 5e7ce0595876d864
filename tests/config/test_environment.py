"""The environment: single-target variables, nested keys over the file, what Kubernetes puts there, mistakes."""

import re
from pathlib import Path

import pytest

from exporter.config import variables
from exporter.config.errors import SettingsError
from exporter.config.settings import Settings
from exporter.config.slo import Slo
from exporter.config.sources import load
from exporter.config.target import Target
from exporter.config.workload import Workload

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


def service_links(name: str) -> dict[str, str]:
    """What Kubernetes sets for a Service tgi-probe-…; `name` is the rest of its name, as in variables."""
    first = f"{name}_" if name else ""
    return {
        f"{first}SERVICE_HOST": "10.0.0.1",
        f"{first}SERVICE_PORT": "9477",
        f"{first}SERVICE_PORT_HTTP_METRICS": "9477",
        f"{first}PORT": "tcp://10.0.0.1:9477",
        f"{first}PORT_9477_TCP": "tcp://10.0.0.1:9477",
        f"{first}PORT_9477_TCP_PROTO": "tcp",
        f"{first}PORT_9477_TCP_PORT": "9477",
        f"{first}PORT_9477_TCP_ADDR": "10.0.0.1",
        f"{first}PORT_53_UDP": "udp://10.0.0.1:53",
    }


@pytest.mark.parametrize(
    "name",
    ["", "METRICS", "WEB", "TARGETS", "EU_1", "PORT", "SERVICE", "WEB__X", "TARGETS__0", "TARGETS__0__LABELS", "_X"],
)
def test_what_kubernetes_sets_for_a_service_whose_name_begins_so_is_no_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert loaded(monkeypatch, TARGET | service_links(name)) == loaded(monkeypatch, TARGET)
    assert loaded(monkeypatch, {}).targets[0].address == "h:1"


def test_keys_of_ours_that_look_like_those_of_a_service_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"TARGETS__0__LABELS__METRICS_PORT": "9477", "TARGETS__0__LABELS__A_SERVICE_HOST": "b"}
    [target] = loaded(monkeypatch, TARGET | keys | service_links("WEB__X")).targets
    assert target.labels == {"metrics_port": "9477", "a_service_host": "b"}


HTTP = {"TARGET": "http://h:1", "KIND": "http", "TARGETS__0__API": "chat"}
BODY = '{"ignore_eos": true, "user": "7", "n": 7, "deep": {"Big": [1.5, null]}}'


def test_a_mapping_may_be_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"EXTRA_BODY": BODY, "LABELS": '{"zone": "eu"}', "TLS": ' {"ca_file": "/ca"}', "HEADERS": '{"X-A": "b"}'}
    environment = HTTP | {f"TARGETS__0__{key}": value for key, value in keys.items()}
    environment |= {"TARGET": "https://h:1", "WORKLOADS__0__PARAMETERS": '{"top_k": 5}'}
    environment |= {"WORKLOADS__0__LOAD": '{"mode": "open", "rate": "2/s"}'}
    settings = loaded(monkeypatch, environment)
    [target], [workload] = settings.targets, settings.workloads
    assert target.extra_body == {"ignore_eos": True, "user": "7", "n": 7, "deep": {"Big": [1.5, None]}}
    assert (target.labels, target.tls and target.tls.ca_file) == ({"zone": "eu"}, "/ca")
    assert target.headers == {"x-a": "b"}
    assert (workload.parameters.top_k, workload.load.rate) == (5, 2.0)


def test_every_key_that_holds_a_mapping_is_known_as_one() -> None:
    """So that a new one can be written as JSON too."""
    for block, model in (("targets", Target), ("workloads", Workload), ("slos", Slo)):
        kinds = {key: str(field.annotation) for key, field in model.model_fields.items()}
        mappings = {key for key, kind in kinds.items() if "dict" in kind or "exporter.config" in kind}
        assert mappings == set(variables.MAPPINGS[block])


def test_a_whole_item_may_be_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TARGETS__0": '{"name": "a", "address": "h:1"}', "WORKLOADS": '[{"name": "w"}]'}
    assert loaded(monkeypatch, environment).targets[0].address == "h:1"


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("7", 7), ("0.5", 0.5), ("null", None), ('"7"', "7"), ("[1, 2]", [1, 2]), ('{"A": 1}', {"A": 1})]
    + [(text, text) for text in ("abc", "", "NaN", "True", "{a}", "0644", '{"a": 1, "a": 2}')],
)
def test_a_variable_inside_extra_body_is_json_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, text: str, value: object
) -> None:
    keys = {"TARGETS__0__EXTRA_BODY__KEY": text, "TARGETS__0__EXTRA_BODY__INNER__KEY": text}
    assert loaded(monkeypatch, HTTP | keys).targets[0].extra_body == {"key": value, "inner": {"key": value}}


def test_a_mapping_by_variable_overrules_single_keys_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "targets: [{name: a, kind: http, address: 'http://h', extra_body: {a: 1, b: '2'}}]\nworkloads: [{name: w}]"
    [target] = loaded(monkeypatch, {"TARGETS__0__EXTRA_BODY": '{"a": 3}'}, text, tmp_path).targets
    assert target.extra_body == {"a": 3, "b": "2"}


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
        (
            TARGET | {"KIND": "tensorrt"},
            "TGI_PROBE_KIND: must be 'shard', 'fmaas', 'http', 'vllm' or 'sglang', not 'tensorrt'",
        ),
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
        (
            HTTP | {"TARGETS__0__EXTRA_BODY": '{"a": 1'},
            "TGI_PROBE_TARGETS__0__EXTRA_BODY: is not JSON (Expecting ',' delimiter: line 1 column 8 (char 7));"
            ' write it as in {"key": true}',
        ),
        (
            HTTP | {"TARGETS__0__EXTRA_BODY": '{"a": 1, "a": 2}'},
            "TGI_PROBE_TARGETS__0__EXTRA_BODY: is not JSON (the key a stands there twice); write it as in"
            ' {"key": true}',
        ),
        (
            HTTP | {"TARGETS__0__EXTRA_BODY": "[1]"},
            "TGI_PROBE_TARGETS__0__EXTRA_BODY: must be a mapping, not '[1]'",
        ),
        (
            HTTP | {"TARGETS__0__EXTRA_BODY__A": "1e999"},
            "TGI_PROBE_TARGETS__0__EXTRA_BODY__A: must be what JSON has, a finite number, not inf",
        ),
        (
            HTTP | {"TARGETS__0__EXTRA_BODY": "{}", "TARGETS__0__EXTRA_BODY__A": "1"},
            "TGI_PROBE_TARGETS__0__EXTRA_BODY: cannot stand beside TGI_PROBE_TARGETS__0__EXTRA_BODY__A;"
            " remove one of the two",
        ),
        (TARGET | {"WEB__PORT": "1"}, "TGI_PROBE_WEB__PORT: is not a known key; check the spelling, or remove it"),
        (
            TARGET | {"WORKLOADS__0__BATCH_SIZE": "1"},
            "TGI_PROBE_WORKLOADS__0__BATCH_SIZE: is not a known key; did you mean batch_sizes?",
        ),
        (
            {"TARGETS": "[{"},
            "TGI_PROBE_TARGETS: is not JSON; write a JSON value, or set one key each,"
            " such as TGI_PROBE_TARGETS__0__NAME",
        ),
        (
            TARGET | {"HISTOGRAMS": "fine"},
            "TGI_PROBE_HISTOGRAMS: is not JSON; write a JSON value, or set one key each,"
            " such as TGI_PROBE_HISTOGRAMS__CLASSIC",
        ),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_the_mend(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], line: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, environment)
    assert caught.value.problems[0] == line


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("TARGE", "did you mean TGI_PROBE_TARGET?"),
        ("TARGTES__0__NAME", "did you mean TGI_PROBE_TARGETS__0__NAME?"),
        ("FOO", "known are TGI_PROBE_BATCH_SIZES, "),
        ("METRICS_PORTS", "known are TGI_PROBE_BATCH_SIZES, "),
    ],
)
def test_a_misspelt_variable_is_named_with_the_one_that_is_meant_or_all_that_are_known(
    monkeypatch: pytest.MonkeyPatch, name: str, mend: str
) -> None:
    with pytest.raises(SettingsError, match=rf"^TGI_PROBE_{name}: is not a known variable; {re.escape(mend)}"):
        loaded(monkeypatch, {name: "h:1"})


def test_single_target_variables_and_a_file_with_targets_are_one_too_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"c\.yaml: targets: cannot stand beside TGI_PROBE_TARGET; remove one"):
        loaded(monkeypatch, TARGET, FILE, tmp_path)
