"""A secret in the configuration is neither shown nor sent in the open without a word."""

from pathlib import Path

import pytest
import yaml

from exporter import document
from exporter.cli import main
from exporter.settings import Settings, Target, Workload
from exporter.targets import sent_in_the_open

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
    target = Target.model_validate({"name": "t", "kind": "http", "api": "chat", "address": address, **keys})
    return Settings(targets=(target,), workloads=(Workload(name="w"),))


def test_what_looks_like_a_secret_in_extra_body_is_not_shown_and_is_still_sent() -> None:
    found = settings("http://h:1", extra_body=BODY)
    assert yaml.safe_load(document.text(found))["targets"][0]["extra_body"] == SEEN
    assert found.targets[0].extra_body == BODY


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
    ],
)
def test_a_token_that_goes_over_a_network_unencrypted_is_warned_of(
    address: str, keys: dict[str, str], warned: bool
) -> None:
    lines = sent_in_the_open(settings(address, **keys))
    assert len(lines) == warned
    assert all("unencrypted to " + address in line for line in lines)


def test_check_prints_the_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
