"""The router's own /metrics: TGI's names, read by Prometheus' own parser and held against the router's record."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.simulator.batcher import AdmissionLimits
from exporter.simulator.router import Router
from tests.simulator.router.callers import PROMPT, Http, await_true, fast, slow

NAMES = {
    "tgi_queue_size": "gauge",
    "tgi_batch_current_size": "gauge",
    "tgi_batch_current_max_tokens": "gauge",
    "tgi_batch_max_total_tokens": "gauge",
    "tgi_request_count": "counter",
    "tgi_request_success": "counter",
    "tgi_request_failure": "counter",
    "tgi_request_duration": "histogram",
    "tgi_request_validation_duration": "histogram",
    "tgi_request_queue_duration": "histogram",
    "tgi_request_inference_duration": "histogram",
    "tgi_request_mean_time_per_token_duration": "histogram",
    "tgi_request_input_length": "histogram",
    "tgi_request_max_new_tokens": "histogram",
    "tgi_request_generated_tokens": "histogram",
    "tgi_batch_inference_count": "counter",
    "tgi_batch_inference_success": "counter",
    "tgi_batch_inference_duration": "histogram",
    "tgi_batch_forward_duration": "histogram",
    "tgi_batch_next_size": "histogram",
}


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(fast(grpc=None)) as router:
        yield router


def samples(router: Router) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """By name and labels. The parser gives counters the _total that TGI's have not."""
    with Http(str(router.http)) as http:
        page = http.ask("GET", "/metrics")[1].decode()
    return {
        (sample.name.removesuffix("_total"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def generate(router: Router, tokens: int, text: str = PROMPT) -> None:
    with Http(str(router.http)) as http:
        http.ask("POST", "/generate", {"inputs": text, "parameters": {"max_new_tokens": tokens}})


def test_every_metric_has_tgis_name_and_type(router: Router) -> None:
    generate(router, 3)
    generate(router, 5000)
    with Http(str(router.http)) as http:
        page = http.ask("GET", "/metrics")[1].decode()
    types = dict(line.split()[2:] for line in page.splitlines() if line.startswith("# TYPE"))
    assert types == NAMES


def test_durations_have_35_buckets_from_0_15_ms_to_146_s(router: Router) -> None:
    generate(router, 3)
    edges = sorted(
        float(dict(labels)["le"]) for name, labels in samples(router) if name == "tgi_request_duration_bucket"
    )
    assert len(edges[:-1]) == 35
    assert (edges[0], round(edges[-2]), edges[-1]) == (0.00015, 146, float("inf"))


def test_the_histograms_hold_what_the_record_says(router: Router) -> None:
    for tokens in (2, 4):
        generate(router, tokens)
    seen = samples(router)
    record = router.record()
    assert seen["tgi_request_generated_tokens_sum", ()] == 6
    assert seen["tgi_request_input_length_sum", ()] == 14
    assert seen["tgi_request_max_new_tokens_sum", ()] == 6
    assert seen["tgi_request_queue_duration_sum", ()] == pytest.approx(
        sum(entry.started_ns - entry.queued_ns for entry in record) / 1e9
    )
    assert seen["tgi_batch_inference_count", (("method", "prefill"),)] == 2
    assert seen["tgi_batch_inference_count", (("method", "decode"),)] == 1 + 3


def test_failures_are_counted_by_their_kind() -> None:
    with slow(grpc=None, limits=AdmissionLimits(max_concurrent_requests=1)) as router:
        with Http(str(router.http)) as running:
            generate(router, 5000)
            running.open("POST", "/generate_stream", {"inputs": PROMPT}).close()
            generate(router, 3)
        await_true(lambda: router.state()["in_flight"] == 0)
        seen = samples(router)
    kinds = {dict(labels)["err"]: value for (name, labels), value in seen.items() if name == "tgi_request_failure"}
    assert kinds == {"validation": 1, "overloaded": 1, "dropped": 1}
    assert seen["tgi_request_count", ()] == 3


def test_the_gauges_tell_who_waits_and_who_runs() -> None:
    with slow(grpc=None, limits=AdmissionLimits(max_batch_size=1, max_batch_total_tokens=5000)) as router:
        with ExitStack() as stack:
            for _ in range(5):
                client = stack.enter_context(Http(str(router.http)))
                client.open("POST", "/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 4000}})
            await_true(lambda: router.state()["batch_size"] == 1 and router.state()["queue_size"] == 4)
            seen = samples(router)
        assert (seen["tgi_batch_current_size", ()], seen["tgi_queue_size", ()]) == (1, 4)
        assert (seen["tgi_batch_current_max_tokens", ()], seen["tgi_batch_max_total_tokens", ()]) == (4007, 5000)
