"""What `/config` shows is a configuration file: fed back, it gives the same settings."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.cli import main
from exporter.config import dump, notation
from exporter.config.settings import Settings
from exporter.config.sources import load
from exporter.demo import command as demo

HERE = Path(__file__).parent
EXAMPLES = [*HERE.glob("good/*.yaml"), *(HERE.parents[1] / "deploy").glob("**/tgi-probe.yaml")]
DEMO = demo.CONFIG.format(
    targets="\n".join([demo.SHARD.format(socket="/tmp/shard"), demo.ROUTER.format(router="http://h:1")]), port=9477
)
THRESHOLDS = ("ttft", "inter_token_latency", "time_per_output_token", "request_duration")


def fed_back(settings: Settings, folder: Path) -> Settings:
    file = folder / "shown.yaml"
    file.write_text(dump.text(settings), "utf-8")
    return load(file)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_an_example_that_is_fed_back_is_the_same(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load(file)
    assert fed_back(settings, tmp_path) == settings
    assert main(["check", "--syntax-only", "--config", str(tmp_path / "shown.yaml")]) == 0
    assert capsys.readouterr().out.startswith("ok: ")


def test_the_demos_configuration_that_is_fed_back_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "demo.yaml"
    file.write_text(DEMO)
    assert fed_back(load(file), tmp_path) == load(file)


def test_only_the_keys_of_its_kind_are_shown_and_durations_as_they_are_written() -> None:
    shown = yaml.safe_load(dump.text(load(HERE / "good" / "routers.yaml")))
    targets = {target["name"]: target for target in shown["targets"]}
    workloads = {workload["name"]: workload for workload in shown["workloads"]}
    assert targets["plain"] == {
        "name": "plain",
        "kind": "fmaas",
        "address": "unix:///run/router",
        "labels": {},
        "headers": {},
        "metrics_url": "http://router.llm:3000/metrics",
        "yield_to_users": True,
    }
    assert workloads["chat"]["interval"] == "30s"
    assert workloads["steady"]["load"] == {"mode": "open", "rate": "30/m", "arrivals": "constant", "max_in_flight": 4}
    assert workloads["people"]["load"] == {"mode": "closed", "users": 8}
    assert "interval" not in workloads["people"]
    assert shown["slos"][0]["ttft"] == "200ms"


seconds = st.integers(1, 10**9) | st.integers(1, 366 * 86400).map(lambda whole: whole * 10**9)
seconds |= st.integers(1, 366 * 86400 * 10**9)


@given(seconds)
def test_a_duration_is_written_as_what_reads_as_the_same(nanoseconds: int) -> None:
    value = round(nanoseconds / 1e9, 9)
    assert notation.parse_duration(notation.write_duration(value)) == value


@given(st.floats(1e-9, 10_000) | st.integers(1, 600_000).map(lambda number: number / 60))
def test_a_rate_is_written_as_what_reads_as_the_same(value: float) -> None:
    assert notation.parse_rate(notation.write_rate(value)) == value


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("0", "0s"),
        ("250ms", "250ms"),
        ("0.25s", "250ms"),
        ("1.5s", "1.5s"),
        ("90s", "1m30s"),
        ("4w2d", "30d"),
        ("1d1ms", "86400.001s"),
        ("0.001ms", "0.001ms"),
    ],
)
def test_durations_are_written_for_people(text: str, written: str) -> None:
    assert notation.write_duration(notation.parse_duration(text)) == written


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
texts |= st.sampled_from(
    ["1e3", "0644", "1:30", "1_000", "2024-05-01", ".nan", "0x1f", "~", "<<", "\x85", "a\u2028b", "\ufeff", "\n "]
)
durations = st.sampled_from(["10ms", "0.3s", "1m1s", "4w", "123.456789ms"])
bodies = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "n", "no", "1e3", "0644"]), inner, max_size=3)
    ),
)
targets = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("shard"), "address": st.just("h:1")},
        optional={"kv_cache": st.sampled_from(["exclusive", "reserved_block"]), "max_batch_tokens": st.integers(1)},
    ),
    st.fixed_dictionaries(
        {"kind": st.just("fmaas"), "address": st.just("h:1")},
        optional={"model_id": texts, "tls": st.sampled_from([{}, {"ca_file": "/ca"}]), "labels": st.just({"zone": ""})},
    ),
    st.fixed_dictionaries(
        {"kind": st.just("http"), "address": st.just("https://h/v1/")},
        optional={
            "api": st.sampled_from(["tgi", "completions", "chat"]),
            "model": texts,
            "tls": st.just({}),
            "extra_body": st.dictionaries(st.sampled_from(["user", "n", "off"]), bodies, max_size=3),
            "labels": st.dictionaries(st.sampled_from(["zone", "yes"]), texts),
            "bearer_token_env": st.just("T"),
        },
    ),
)
loads: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"mode": st.just("open"), "rate": st.sampled_from(["2/s", "7/m", "0.1/h"])}),
    st.fixed_dictionaries({"mode": st.just("closed"), "users": st.integers(1, 9)}),
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    target = {"name": "t", **draw(targets)}
    load = draw(loads) if target["kind"] != "shard" else {}
    timing = draw(st.fixed_dictionaries({}, optional={"timeout": durations, "decode_length": st.integers(2, 99)}))
    paced = {} if load else draw(st.fixed_dictionaries({}, optional={"interval": durations | st.just("0s")}))
    slo = {"name": "s", "workload": "w", draw(st.sampled_from(THRESHOLDS)): draw(durations)}
    return {
        "targets": [target],
        "workloads": [{"name": "w", "load": load, **timing, **paced}],
        "slos": draw(st.sampled_from([[], [slo], [{"name": "s", "workload": "w", "availability": True}]])),
        "max_duty_cycle": draw(st.floats(1e-6, 1)),
    }


@given(documents())
def test_whatever_settings_are_fed_back_are_the_same(given: dict[str, Any]) -> None:
    settings = Settings.model_validate(given)
    assert Settings.model_validate(yaml.safe_load(dump.text(settings))) == settings
