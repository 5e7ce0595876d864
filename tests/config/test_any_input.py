"""Whatever stands in a file or in the environment: settings, or one-line problems; never another exception."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.config.errors import SettingsError
from exporter.config.settings import Settings
from exporter.config.sources import load

WORDS = st.sampled_from(
    [
        "targets",
        "workloads",
        "slos",
        "web",
        "name",
        "address",
        "kind",
        "shard",
        "kv_cache",
        "exclusive",
        "fmaas",
        "http",
        "http://h:1/b",
        "api",
        "tls",
        "ca_file",
        "metrics_url",
        "yield_to_users",
        "load",
        "mode",
        "open",
        "rate",
        "2/s",
        "labels",
        "batch_sizes",
        "interval",
        "timeout",
        "ttft",
        "objective",
        "parameters",
        "temperature",
        "h:1",
        "unix:///a",
        "chat",
        "1s",
        "0s",
        "250ms",
        "30",
        "true",
    ]
)
SCALARS = (
    WORDS
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | SCALARS, inner, max_size=5),
    max_leaves=25,
)
TARGETS = st.fixed_dictionaries(
    {"name": SCALARS, "address": SCALARS},
    optional={"labels": DOCUMENTS, "kind": SCALARS}
    | {key: DOCUMENTS for key in ("kv_cache", "tls", "metrics_url", "extra_body", "bearer_token_env")},
)
WORKLOADS = st.fixed_dictionaries(
    {"name": SCALARS},
    optional={key: SCALARS | st.lists(SCALARS, max_size=3) for key in ("batch_sizes", "interval", "timeout", "targets")}
    | {"parameters": DOCUMENTS, "sequence_length": SCALARS, "load": DOCUMENTS, "prompt_cache": SCALARS},
)
CONFIGURATIONS = st.fixed_dictionaries(
    {"targets": st.lists(TARGETS, max_size=3), "workloads": st.lists(WORKLOADS, max_size=3)},
    optional={"slos": DOCUMENTS, "web": DOCUMENTS, "max_duty_cycle": SCALARS},
)
ANY = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(file: Path | None) -> Settings | None:
    try:
        return load(file)
    except SettingsError as error:
        problems = error.problems
    assert problems
    assert all(problem and "\n" not in problem for problem in problems), problems
    return None


@ANY
@given(DOCUMENTS | CONFIGURATIONS)
def test_any_document_is_taken_or_refused_in_lines(tmp_path: Path, document: object) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8", errors="surrogatepass")
    outcome(file)


@ANY
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.text("-?:,[]{}#&*!|>'\"%@`<~ \n\tab1", max_size=30))
def test_any_text_is_taken_or_refused_in_lines(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, "utf-8")
    outcome(file)


VALUES = (
    WORDS
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
    | st.sampled_from(
        ["", "{}", "[]", "[1]", '{"0": 1}', '[{"name": "a", "address": "h:1"}]', "1,2", "null", "1e999", "NaN"]
    )
)
NAMES = st.sampled_from(
    [
        "TARGET",
        "TARGETS",
        "WORKLOADS",
        "SLOS",
        "WEB",
        "BATCH_SIZES",
        "INTERVAL",
        "TTFT_SLO",
        "TTFT_OBJECTIVE",
        "MAX_DUTY_CYCLE",
        "LOG_LEVEL",
        "TARGETS__0__NAME",
        "TARGETS__0",
        "TARGETS__x__NAME",
        "WORKLOADS__0__BATCH_SIZES",
        "WEB__LISTEN_ADDRESS",
        "TARGETS____",
        "WORKLOADS__0__PARAMETERS__TEMPERATURE",
        "TARGETS__0__LABELS__ZONE",
        "KIND",
        "DECODE_LENGTH",
    ]
)


@ANY
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_any_environment_is_taken_or_refused_in_lines(environment: dict[str, str]) -> None:
    with patch.dict(os.environ, {f"TGI_PROBE_{name}": value for name, value in environment.items()}):
        outcome(None)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("TGI_PROBE_"):
            monkeypatch.delenv(name)
