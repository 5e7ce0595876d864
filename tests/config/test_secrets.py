"""A secret in the configuration is neither shown nor sent in the open without a word."""

from pathlib import Path

import pytest
import yaml

from exporter.cli import main
from exporter.config import dump
from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.plan.check_warnings import sent_in_the_open
from exporter.probes.router.hints import doubled_paths

BODY = {
    "ignore_eos": True,
    "api_key": "sk-1",
    "max_tokens": 7,
    "Options": {"X-API-KEY": "sk-2", "clientSecret": "sk-3", "mode": "fast", "headers": {"Authorization": ["sk-4"]}},
    "tokens": {"first": "sk-5", "bias": 1},
    "list": [{"PASSWORD": "sk-6"}, "kept"],
}
SEEN = {
    "ignore_eos": True,
    "api_key": "<hidden>",
    "max_tokens": 7,
    "Options": {
        "X-API-KEY": "<hidden>",
        "clientSecret": "<hidden>",
        "mode": "fast",
        "headers": {"Authorization": ["<hidden>"]},
    },
    "tokens": {"first": "<hidden>", "bias": 1},
    "list": [{"PASSWORD": "<hidden>"}, "kept"],
}


def settings(address: str, **keys: object) -> Settings:
    target = Target.model_validate({"name": "t", "kind": "http", "api": "chat", "address": address} | keys)
    return Settings(targets=(target,), workloads=(Workload(name="w"),))


def test_what_looks_like_a_secret_in_extra_body_is_not_shown_and_is_still_sent() -> None:
    found = settings("http://h:1", extra_body=BODY)
    assert yaml.safe_load(dump.text(found))["targets"][0]["extra_body"] == SEEN
    assert found.targets[0].extra_body == BODY


def test_a_header_that_looks_like_a_secret_is_not_shown_and_is_still_sent() -> None:
    found = settings("http://h:1", headers={"X-API-Key": "sk-1", "x-gateway-inference-objective": "probes"})
    shown = {"x-api-key": "<hidden>", "x-gateway-inference-objective": "probes"}
    assert yaml.safe_load(dump.text(found))["targets"][0]["headers"] == shown
    assert found.targets[0].headers["x-api-key"] == "sk-1"


@pytest.mark.parametrize(
    ("address", "keys", "warned"),
    [
        ("http://llm.example:8000", {"bearer_token_env": "T"}, True),
        ("http://10.0.0.1/v1", {"bearer_token_file": "/t"}, True),
        ("http://[2001:db8::1]:80", {"bearer_token_env": "T"}, True),
        ("http://localhost.example", {"bearer_token_env": "T"}, True),
        ("https://llm.example", {"bearer_token_env": "T"}, False),
        ("http://llm.example:8000", {}, False),
        ("http://localhost:8000", {"bearer_token_env": "T"}, False),
        ("http://127.0.0.2:8000", {"bearer_token_env": "T"}, False),
        ("http://[::1]:8000", {"bearer_token_env": "T"}, False),
        ("http://llm.example:8000", {"headers": {"x-api-key": "k"}}, True),
        ("https://llm.example:8000", {"headers": {"x-api-key": "k"}}, False),
        ("http://llm.example:8000", {"headers": {"x-gateway-inference-objective": "k"}}, False),
    ],
)
def test_a_token_that_goes_over_a_network_unencrypted_is_warned_of(
    address: str, keys: dict[str, object], warned: bool
) -> None:
    lines = sent_in_the_open(settings(address, **keys))
    assert len(lines) == warned
    assert all("unencrypted to " + address in line for line in lines)


@pytest.mark.parametrize(
    ("address", "keys", "warned"),
    [
        ("router.llm:8033", {}, True),
        ("router.llm:8033", {"tls": {}}, False),
        ("localhost:8033", {}, False),
        ("[::1]:8033", {}, False),
        ("unix:///run/router", {}, False),
    ],
)
def test_so_is_a_secret_header_to_a_grpc_router(address: str, keys: dict[str, object], warned: bool) -> None:
    values = {"name": "t", "kind": "fmaas", "address": address, "headers": {"x-api-key": "k"}} | keys
    found = Settings(targets=(Target.model_validate(values),), workloads=(Workload(name="w"),))
    lines = sent_in_the_open(found)
    assert len(lines) == warned
    assert all(f"its header x-api-key goes unencrypted to {address}; set tls: {{}}" in line for line in lines)


def test_check_prints_the_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("T", "sk-abc")
    file = tmp_path / "c.yaml"
    file.write_text(
        "targets: [{name: t, kind: http, api: chat, address: 'http://llm.example', bearer_token_env: T}]\n"
        "workloads: [{name: w}]\n"
    )
    assert main(["check", "--config", str(file)]) == 0
    assert (
        "warning: target t: its bearer token goes unencrypted to http://llm.example; use an address with https://"
        in capsys.readouterr().err
    )


UNUSABLE = """\
targets:
  - {name: env, kind: http, address: "https://h", bearer_token_env: NO_SUCH_TOKEN}
  - {name: file, kind: http, address: "https://h", bearer_token_file: missing, tls: {ca_file: missing.pem}}
  - {name: own, kind: fmaas, address: "h:1", tls: {cert_file: c.yaml}}
workloads: [{name: w}]
"""


def test_check_names_every_token_and_certificate_that_is_not_there_and_takes_them_with_syntax_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(UNUSABLE)
    assert main(["check", "--config", str(file)]) == 2
    *said, end = capsys.readouterr().err.splitlines()
    assert said == [
        "target env: bearer_token_env: the variable NO_SUCH_TOKEN is not set",
        f"target file: bearer_token_file: {tmp_path}/missing cannot be read: No such file or directory",
        f"target file: tls.ca_file: {tmp_path}/missing.pem cannot be read: No such file or directory",
        f"target own: tls.cert_file: {file} cannot be used: PEM lib",
    ]
    assert end.endswith("--syntax-only")
    assert main(["run", "--config.check", "--config", str(file)]) == 2
    assert main(["check", "--syntax-only", "--config", str(file)]) == 0


def test_syntax_only_reads_the_web_file_and_not_its_certificates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web, file = tmp_path / "web.yml", tmp_path / "c.yaml"
    web.write_text("tls_server_config: {cert_file: missing.crt, key_file: missing.key}\n")
    file.write_text("targets: [{name: a, address: 'h:1'}]\nworkloads: [{name: w}]\nweb: {config_file: web.yml}\n")
    assert main(["check", "--config", str(file)]) == 2
    assert "missing.crt cannot be read" in capsys.readouterr().err
    assert main(["check", "--syntax-only", "--config", str(file)]) == 0
    web.write_text("tls_server_confg: {}\n")
    capsys.readouterr()
    assert main(["check", "--syntax-only", "--config", str(file)]) == 2
    line = f"web.config_file: {web}: tls_server_confg: is not a known key; did you mean tls_server_config?\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "base", ["/v1", "/openai/v1/", "/v1/chat/completions", "/v1/models", "/generate_stream", "/info"]
)
@pytest.mark.parametrize("api", ["tgi", "completions", "chat"])
def test_an_address_that_ends_with_what_the_api_adds_is_warned_of_with_the_right_one(api: str, base: str) -> None:
    [line] = doubled_paths(settings(f"http://h:1{base}", api=api))
    right = "http://h:1/openai" if base.startswith("/openai") else "http://h:1"
    assert f"({right})" in line
    of_tgi = base in ("/generate_stream", "/info")
    assert ("or set api: tgi" in line) == (of_tgi and api != "tgi")
    assert ("or set api: " in line) == (of_tgi == (api != "tgi") or (base == "/v1/chat/completions" and api != "chat"))


@pytest.mark.parametrize("base", ["", "/", "/llm", "/v1beta", "/openai/v1/llm", "/my-info"])
def test_an_address_with_a_base_path_of_its_own_is_not_warned_of(base: str) -> None:
    assert doubled_paths(settings(f"http://h:1{base}", api="chat")) == []
