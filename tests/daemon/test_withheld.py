"""What is not certain is counted and told, and shown nowhere as a measurement."""

from dataclasses import replace

import pytest

from exporter.config.settings import Settings
from exporter.config.workload import Workload
from exporter.daemon.journal import Journal
from exporter.daemon.ledger import Recorder
from exporter.daemon.scoreboard import Scoreboard
from exporter.daemon.transcript import transcript
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.formats import PLAIN_0_0_4
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, Setup, Step, Stream
from exporter.plan.targets import plans
from exporter.web import status_page

SETTINGS = Settings.model_validate(
    {
        "targets": [{"name": "r", "kind": "http", "address": "http://h:1"}],
        "workloads": [{"name": "chat", "batch_sizes": [1]}],
        "slos": [
            {"name": "stalls", "workload": "chat", "inter_token_latency": "150ms"},
            {"name": "fast", "workload": "chat", "ttft": "1s"},
        ],
    }
)
pytestmark = pytest.mark.timed
SERIES = Series("r", "chat", 1)
# Two gaps of 100 ms, and between them one that may be anything from 20 to 100.
STREAM = Stream(
    1,
    10,
    0.0,
    0.4,
    (Step(0.0, 0.1, 1), Step(0.1, 0.2, 1), Step(0.2, 0.3, 1, late=0.08), Step(0.3, 0.4, 1)),
    read_delay=0.08,
)


def observation(stream: Stream = STREAM, outcome: Outcome = Outcome.OK) -> Observation:
    setups = (Setup(0.0, 0.001), Setup(0.0, 3.0, 2.9))
    return Observation(SERIES, 0.0, 0.0, 0.5, outcome, "OK", "", (stream,), setups, "ab" * 16)


def page(*observations: Observation) -> dict[str, float]:
    metrics = Metrics(layout(SETTINGS))
    metrics.configure(SETTINGS)
    [plan] = plans(SETTINGS).values()
    metrics.announce(plan)
    for one in observations:
        metrics.record(one)
    lines = b"".join(pages.page(metrics.registry, PLAIN_0_0_4)).decode().splitlines()
    samples = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    return {short(key): value for key, value in samples.items()}


def short(key: str) -> str:
    """Labels in the order of the catalogue, those of the series as S."""
    name, _, labels = key.rstrip("}").partition("{")
    found = dict(label.split("=") for label in labels.split(",") if label)
    if all(found.pop(label, "") for label in ("workload", "batch_size")):
        found = {"S": ""} | {label: value for label, value in found.items() if label != "target"}
    order = ("slo", "S", "target", "outcome", "code", "measure", "verdict", "le")
    listed = [label + (f"={found[label]}" if found[label] else "") for label in order if label in found]
    return f"{name}{{{','.join(listed)}}}" if listed else name


def test_where_nothing_is_withheld_there_is_no_series() -> None:
    assert not [key for key in page() if key.startswith("tgi_probe_withheld_values_total")]


def test_one_value_is_withheld_and_the_others_are_recorded() -> None:
    found = page(observation())
    assert found['tgi_probe_attempts_total{S,outcome="ok",code="OK"}'] == 1
    assert found["tgi_probe_time_to_first_token_seconds_count{S}"] == 1
    assert found["tgi_probe_inter_token_latency_seconds_count{S}"] == 2
    assert found['tgi_probe_withheld_values_total{S,measure="inter_token_latency"}'] == 1
    assert 'tgi_probe_withheld_values_total{S,measure="ttft"}' not in found
    assert found["tgi_probe_last_inter_token_latency_seconds{S}"] == pytest.approx(0.1)
    assert found["tgi_probe_generated_tokens_total{S}"] == 4  # they came, whenever
    assert found['tgi_probe_connection_setup_seconds_count{target="r"}'] == 1
    assert found['tgi_probe_withheld_values_total{S,measure="connection_setup"}'] == 1
    assert found['tgi_probe_read_delay_seconds_bucket{target="r",le="0.01"}'] == 0
    assert found['tgi_probe_read_delay_seconds_bucket{target="r",le="0.1"}'] == 1


def test_a_disturbed_probe_is_an_attempt_without_any_latency_or_verdict() -> None:
    found = page(observation(outcome=Outcome.DISTURBED))
    assert found['tgi_probe_attempts_total{S,outcome="disturbed",code="OK"}'] == 1
    for name in ("time_to_first_token", "inter_token_latency", "request_duration", "decode_duration"):
        assert found[f"tgi_probe_{name}_seconds_count{{S}}"] == 0
    assert found['tgi_probe_withheld_values_total{S,measure="inter_token_latency"}'] == 3
    assert sum(value for key, value in found.items() if key.startswith("tgi_probe_slo_requests_total{")) == 0


def test_an_objective_judges_what_is_certain_whatever_else_is_not() -> None:
    verdict = 'tgi_probe_slo_requests_total{slo="%s",S,verdict="%s"}'
    found = page(observation())
    assert found[verdict % ("fast", "good")] == found[verdict % ("stalls", "good")] == 1  # 20 to 100 ms: both are good
    slower = replace(STREAM, steps=(*STREAM.steps, Step(0.4, 0.6, 1, late=0.1)))
    found = page(observation(slower))  # 100 to 200 ms: nobody knows
    assert found[verdict % ("stalls", "good")] == found[verdict % ("stalls", "bad")] == 0
    found = page(observation(replace(slower, steps=(*slower.steps, Step(0.6, 0.9, 1)))))  # but this one stalled
    assert found[verdict % ("stalls", "bad")] == 1


def test_the_status_page_shows_the_mean_of_what_was_recorded() -> None:
    board = Scoreboard()
    board.record(observation(), SETTINGS)
    [result] = board.status(SETTINGS, None, "1", False).results
    assert result.inter_token == pytest.approx(0.1)
    board.record(observation(replace(STREAM, steps=(Step(0.0, 0.1, 1), Step(0.1, 0.2, 1, late=0.08)))), SETTINGS)
    shown = board.status(SETTINGS, None, "1", False)
    [result] = shown.results
    assert result.inter_token is None
    assert "withheld: inter token latency, decode throughput (this machine was busy; see docs/troubleshooting.md)" in (
        status_page.page(shown)
    )


def test_the_log_says_once_a_minute_that_a_measure_has_no_values(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    recorder = Recorder(Metrics(layout(SETTINGS)), SETTINGS)
    recorder.journal = Journal(lambda: now[0])
    uncertain = replace(STREAM, steps=(Step(0.0, 0.1, 1), Step(0.1, 0.2, 1, late=0.08)))

    def lines(stream: Stream, probes: int) -> list[str]:
        """Of these probes, one each 15 s."""
        caplog.clear()
        for _ in range(probes):
            recorder.record(observation(stream))
            now[0] += 15.0
        return [record.message for record in caplog.records]

    assert lines(uncertain, 4) == []
    [first, second] = lines(uncertain, 5)
    assert first == (
        "no value of inter_token_latency, decode_throughput recorded for 1m: r chat batch_size=1: all were withheld, "
        "because this machine was busy; give tgi-probe more CPU (see tgi_probe_withheld_values_total in "
        "docs/troubleshooting.md)"
    )
    assert "for 2m: " in second
    assert lines(STREAM, 1) == lines(uncertain, 4) == []  # a value was recorded in between


def test_a_probe_told_to_a_person_says_which_instants_are_uncertain_and_what_was_withheld() -> None:
    told = transcript(observation(), Workload.model_validate({"name": "chat"}))
    assert "step 2: 1 token after 100.000 ms (uncertain by 80.000 ms)" in told
    assert told.count("uncertain by") == 1
    assert "inter-token latency: mean 100.000 ms, longest 100.000 ms" in told
    withheld = (
        "withheld, because tgi-probe was held up and they may be wrong: 1 connection_setup, 1 inter_token_latency"
    )
    assert withheld in told
