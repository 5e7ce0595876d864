"""Scrapes of a real HTTP side on port 0, and what a reload leaves of the series."""

import gzip
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest
from anyio.from_thread import start_blocking_portal

from exporter.config.settings import Settings
from exporter.metrics import pages, pauses
from exporter.metrics.catalogue import layout
from exporter.metrics.collector import Registry
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, Step, Stream
from exporter.plan.targets import plans
from exporter.web.routes import Views
from exporter.web.server import WebServer


def with_slo(name: str, ttft: str) -> Settings:
    return Settings.model_validate(
        {
            "targets": [{"name": "a", "address": "h:1"}, {"name": "b", "address": "h:2", "labels": {"zone": "x"}}],
            "workloads": [{"name": "chat", "batch_sizes": [1, 2]}],
            "slos": [{"name": name, "workload": "chat", "ttft": ttft}],
        }
    )


SETTINGS = with_slo("fast", "250ms")


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(layout(SETTINGS), unix_time=lambda: 1700000000.0)
    metrics.configure(SETTINGS)
    for plan in plans(SETTINGS).values():
        metrics.announce(plan)
    return metrics


@pytest.fixture
def port(metrics: Metrics) -> Iterator[int]:
    server = WebServer("127.0.0.1:0", Views(lambda: metrics.registry, lambda: None, lambda: None, None, str))
    with start_blocking_portal() as portal:
        serving = portal.start_task_soon(server.serve)
        yield server.port
        serving.cancel()


def ask(port: int, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, "/metrics", headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def own(page: bytes) -> bytes:
    """Without what differs from scrape to scrape: the process's own memory and CPU time."""
    return b"".join(
        line for line in page.splitlines(keepends=True) if b"process_" not in line and b"python_gc" not in line
    )


def observed(seconds: float) -> Observation:
    stream = Stream(1, 10, 0.0, seconds, (Step(0.0, seconds, 1),))
    return Observation(Series("a", "chat", 1), 0.0, 0.0, seconds, Outcome.OK, "OK", "", (stream,))


def value(registry: Registry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"target": "a", "workload": "chat", "batch_size": "1"} | labels)


def test_a_compressed_scrape_holds_the_same_page_as_a_plain_one(port: int) -> None:
    response, packed = ask(port, Accept_Encoding="gzip")
    assert response.headers["Content-Encoding"] == "gzip"
    plain_response, page = ask(port)
    assert plain_response.headers["Content-Encoding"] is None
    assert own(gzip.decompress(packed)) == own(page)
    assert len(packed) < len(page) / 4


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_whoever_makes_a_page_pauses(port: int, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr(pauses.Pauses, "__call__", lambda self: calls.append(1.0))
    ask(port, Accept_Encoding=encoding)
    assert len(calls) > 2 * 2 * 8  # targets, batch sizes, histograms


def test_openmetrics_is_served_where_it_is_asked_for(port: int) -> None:
    response, page = ask(port, Accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"] == OPENMETRICS.content_type
    assert page.endswith(b"# EOF\n")


def test_several_accept_headers_are_one_list(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        accept = b"Accept: text/plain;q=0.5\r\nAccept: application/openmetrics-text;version=1.0.0\r\n"
        packed = b"Accept-Encoding: identity;q=0.5\r\nAccept-Encoding: gzip\r\n"
        connection.sendall(b"GET /metrics HTTP/1.0\r\n" + accept + packed + b"\r\n")
        head = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[0]
    assert b"application/openmetrics-text" in head
    assert b"Content-Encoding: gzip" in head


def test_head_answers_without_a_page(port: int) -> None:
    response, page = ask(port, "HEAD")
    assert response.status == 200
    assert page == b""


def test_a_client_of_http_1_0_gets_the_page_as_it_is(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, page = answer.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head.lower()
    assert own(page) == own(ask(port)[1])


def test_a_reload_without_new_thresholds_keeps_every_count(metrics: Metrics) -> None:
    metrics.record(observed(0.3))
    metrics.up("a", "shard", None)
    before = own(b"".join(pages.page(metrics.registry, PLAIN_0_0_4)))
    metrics.configure(SETTINGS)
    for plan in plans(SETTINGS).values():
        metrics.announce(plan)
    assert own(b"".join(pages.page(metrics.registry, PLAIN_0_0_4))) == before


def test_a_new_threshold_becomes_an_edge_of_its_histogram_and_every_count_stays(metrics: Metrics) -> None:
    metrics.record(observed(0.3))
    metrics.configure(with_slo(name="fast", ttft="321ms"))
    registry, ttft = metrics.registry, "tgi_probe_time_to_first_token_seconds"
    assert value(registry, f"{ttft}_bucket", le="0.321") == 0  # the 0.3 was counted at the edge above
    assert value(registry, f"{ttft}_bucket", le="0.5") == value(registry, f"{ttft}_count") == 1
    assert value(registry, f"{ttft}_created") == 1700000000.0
    assert value(registry, "tgi_probe_inter_token_latency_seconds_bucket", le="0.321") is None
    metrics.record(observed(0.3))
    assert value(registry, f"{ttft}_bucket", le="0.321") == 1
    assert value(registry, "tgi_probe_slo_requests_total", slo="fast", verdict="good") == 1
    assert value(registry, "tgi_probe_slo_requests_total", slo="fast", verdict="bad") == 1


def test_an_objective_that_leaves_takes_its_verdicts_along(metrics: Metrics) -> None:
    metrics.configure(with_slo(name="other", ttft="250ms"))
    assert value(metrics.registry, "tgi_probe_slo_requests_total", slo="fast", verdict="good") is None


def test_a_label_of_one_target_stands_at_its_series_only(metrics: Metrics) -> None:
    page = b"".join(pages.page(metrics.registry, PLAIN_0_0_4))
    assert b'tgi_probe_target_up{target="a"} 0.0\n' in page
    assert b'tgi_probe_target_up{target="b",zone="x"} 0.0\n' in page


def test_a_target_that_leaves_takes_every_series_along(metrics: Metrics) -> None:
    metrics.forget("a")
    metrics.record(observed(0.3))
    page = b"".join(pages.page(metrics.registry, PLAIN_0_0_4))
    assert b'target="a"' not in page
    assert b'target="b"' in page
