"""Every number of a batch of streams: per request what is per request, per probe what is per probe."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.analysis import slo, timeline
from exporter.config.slo import Slo
from exporter.config.target import Target
from exporter.config.workload import Load, Workload
from exporter.metrics import pages
from exporter.metrics.catalogue import Layout
from exporter.metrics.formats import PLAIN_0_0_4
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, Setup, Step, Stream
from exporter.plan.targets import Plan

SERIES = Series("r", "w", 3)
ROUTER = Target(name="r", kind="http", address="http://h:1")
# Sent 0.1 s apart; first tokens at 1, 2 and 3 s; then a token each second, the last stream with two in its last step.
STREAMS = (
    Stream(1, 100, 0.0, 3.5, (Step(0.0, 1.0, 1), Step(1.0, 2.0, 1), Step(2.0, 3.0, 1))),
    Stream(1, 110, 0.1, 4.5, (Step(0.1, 2.0, 1), Step(2.0, 3.0, 1), Step(3.0, 4.0, 1))),
    Stream(1, 120, 0.2, 6.5, (Step(0.2, 3.0, 1), Step(3.0, 4.0, 1), Step(4.0, 6.0, 2))),
)
SETUPS = (Setup(-2.0, -1.5), Setup(-1.5, -1.4))


def observed(streams: tuple[Stream, ...] = STREAMS, outcome: Outcome = Outcome.OK) -> Observation:
    return Observation(SERIES, 0.0, 0.0, 7.0, outcome, "OK", streams=streams, setups=SETUPS)


def recorded(observation: Observation, workload: Workload | None = None) -> dict[str, float]:
    """Every sample of the page, by name; with labels only where there are some beside the series'."""
    metrics = Metrics(Layout())
    metrics.announce(Plan(ROUTER, (workload or Workload(name="w", batch_sizes=(3,)),), 1.0))
    metrics.record(observation)
    page = b"".join(pages.page(metrics.registry, PLAIN_0_0_4)).decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.labels.get("target") == "r" and not {"le", "outcome", "reason"} & sample.labels.keys()
    }


def test_what_is_per_request_is_counted_for_each_stream() -> None:
    page = recorded(observed())
    assert page["tgi_probe_time_to_first_token_seconds_count"] == 3
    assert page["tgi_probe_time_to_first_token_seconds_sum"] == pytest.approx(1.0 + 1.9 + 2.8)
    assert page["tgi_probe_request_duration_seconds_count"] == 3
    assert page["tgi_probe_request_duration_seconds_sum"] == pytest.approx(3.5 + 4.4 + 6.3)
    assert page["tgi_probe_time_per_output_token_seconds_count"] == 3
    assert page["tgi_probe_time_per_output_token_seconds_sum"] == pytest.approx(1.0 * 3)
    assert page["tgi_probe_inter_token_latency_seconds_count"] == 6
    assert page["tgi_probe_inter_token_latency_seconds_sum"] == pytest.approx(5 * 1.0 + 2.0 / 2)
    assert page["tgi_probe_prompt_tokens_total"] == 330
    assert page["tgi_probe_generated_tokens_total"] == 10


def test_what_is_per_probe_is_counted_once() -> None:
    page = recorded(observed())
    assert page["tgi_probe_decode_duration_seconds_count"] == 1
    assert page["tgi_probe_decode_duration_seconds_sum"] == pytest.approx(6.0 - 1.0)
    assert page["tgi_probe_prefill_throughput_tokens_per_second_sum"] == pytest.approx(330 / 3.0)
    assert page["tgi_probe_decode_throughput_tokens_per_second_sum"] == pytest.approx(7 / 5.0)
    assert page["tgi_probe_start_spread_seconds_count"] == 1
    assert page["tgi_probe_start_spread_seconds_sum"] == pytest.approx(0.2)
    assert page["tgi_probe_connection_setup_seconds_count"] == 2
    assert page["tgi_probe_connection_setup_seconds_sum"] == pytest.approx(0.6)


def test_a_batch_with_a_failed_stream_leaves_no_latency_but_its_connections() -> None:
    failed = Stream(1, 100, 0.1, 2.0, (), Outcome.OVERLOADED, "TOO_MANY_REQUESTS")
    page = recorded(observed((STREAMS[0], failed, STREAMS[2]), Outcome.OVERLOADED))
    assert page["tgi_probe_time_to_first_token_seconds_count"] == 0
    assert page["tgi_probe_inter_token_latency_seconds_count"] == 0
    assert page["tgi_probe_generated_tokens_total"] == 0
    assert page["tgi_probe_start_spread_seconds_count"] == 0
    assert page["tgi_probe_connection_setup_seconds_count"] == 2


def test_an_slo_judges_each_stream_by_itself() -> None:
    ttft = Slo.model_validate({"name": "s", "workload": "w", "ttft": "2s"})
    failed = Stream(1, 100, 0.1, 0.2, (), Outcome.REJECTED, "X")
    assert slo.judge(ttft, observed()) == slo.Verdicts(2, 1)
    assert slo.judge(ttft, observed((STREAMS[0], failed, STREAMS[2]), Outcome.REJECTED)) == slo.Verdicts(1, 2)


def test_a_request_of_an_open_load_counts_from_when_it_was_due() -> None:
    stream = Stream(1, 100, 5.0, 7.0, (Step(5.0, 6.0, 1), Step(6.0, 7.0, 1)), intended=2.0)
    assert timeline.time_to_first_token(stream) == 4.0
    assert timeline.request_duration(stream) == 5.0
    assert list(timeline.inter_token_latencies(stream)) == [1.0]
    assert timeline.prefill_duration(observed((stream,))) == 4.0


def test_series_that_a_router_cannot_fill_are_not_there() -> None:
    page = recorded(observed())
    assert not [name for name in page if name.startswith(("tgi_probe_server_duration", "tgi_probe_overhead"))]
    load = Workload(name="w", load=Load(mode="closed", users=2), batch_sizes=(1,))
    single = Observation(Series("r", "w", 1), 0, 0, 4, Outcome.OK, "OK", streams=STREAMS[:1])
    assert "tgi_probe_start_spread_seconds_count" not in recorded(single, load)
