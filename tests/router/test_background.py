"""Requests of a background load, one by one, to a router in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from exporter.analysis import certainty, timeline
from exporter.observation import Failure, Outcome
from exporter.probes.interface import Abandoned, Result
from exporter.probes.router.background import StreamBackground
from exporter.probes.router.pool import Pool
from exporter.simulator.batcher import AdmissionLimits
from exporter.simulator.router import Router
from exporter.wire import connection
from tests.processes import wait_until
from tests.router.parts import Keeping, protocol, target, workload
from tests.router.test_streams import FAST, requests

OPEN = {"mode": "open", "rate": "10/s"}


@pytest.fixture(params=["fmaas", "tgi"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(FAST) as router:
        yield router


def background(door: str, router: Router, **keys: Any) -> StreamBackground:
    place = target(door, router.http, router.grpc)
    return StreamBackground(place, workload(load=OPEN, **keys), protocol(place))


def landed(load: StreamBackground, count: int) -> list[Result]:
    results: list[Result] = []
    deadline = time.perf_counter() + 20
    while len(results) < count:
        assert time.perf_counter() < deadline
        results += load.poll(time.perf_counter() + 0.1)
    return results


def send(load: StreamBackground, intended: float | None) -> None:
    """As soon as a connection is ready."""
    load.reserve_connections(1)
    wait_until(lambda: load.send(intended), "a connection is ready")


@pytest.fixture
def opened(door: str, router: Router) -> Iterator[Callable[..., StreamBackground]]:
    """Opens loads, connected and warmed up; they are closed at the end."""
    loads = []

    def open_one(**keys: Any) -> StreamBackground:
        load = background(door, router, **keys)
        loads.append(load)
        load.connect(5.0)
        load.warm(lambda: False)
        return load

    yield open_one
    for load in loads:
        load.close()


def test_requests_are_on_their_way_together_and_each_is_a_result(opened: Callable[..., StreamBackground]) -> None:
    load = opened(decode_length=16)
    due = time.perf_counter() - 1.0
    for _ in range(5):
        send(load, due)
    assert load.in_flight == 5
    results = landed(load, 5)
    assert load.in_flight == 0
    for result in results:
        [stream] = result.streams
        assert result.outcome is Outcome.OK
        assert (stream.requests, stream.prompt_tokens, timeline.generated_tokens(stream)) == (1, 32, 16)
        assert stream.intended == due
        wait = timeline.time_to_first_token(stream)
        assert wait is not None
        assert wait > 1.0  # from when it was due, a second before it was sent


@pytest.mark.timed
def test_a_request_that_we_send_late_has_no_time_to_first_token_for_its_waiting_counts_from_when_it_was_due(
    opened: Callable[..., StreamBackground],
) -> None:
    load = opened()
    send(load, time.perf_counter() - 1.0)
    [result] = landed(load, 1)
    first = certainty.time_to_first_token(result.streams[0])
    assert first is not None
    assert not first.certain
    assert first.less >= 1.0


def test_a_prepared_request_goes_out_on_a_connection_that_is_open_already(
    opened: Callable[..., StreamBackground], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_SECONDS", 3600.0)
    load = opened()
    results: list[Result] = []
    for _ in range(2):  # without `foresee`, which may open a spare one and have it told with any later result
        load.prepare()
        assert load.send(None)
        results += landed(load, 1)
    assert results[1].setups == ()


def test_a_request_out_of_time_is_cancelled_while_others_go_on(
    opened: Callable[..., StreamBackground], router: Router
) -> None:
    load = opened(timeout="2s", decode_length=100)  # the warm-up must be over in that time too
    router.slow_down(500)
    send(load, None)
    send(load, None)
    results = landed(load, 2)
    assert {(result.outcome, result.code) for result in results} == {(Outcome.TIMEOUT, "DEADLINE_EXCEEDED")}
    wait_until(lambda: router.state()["in_flight"] == 0, "the server has let go")
    router.slow_down(1)
    send(load, None)
    assert landed(load, 1)[0].outcome is Outcome.OK


def test_warming_up_anew_leaves_alone_what_is_still_on_its_way(opened: Callable[..., StreamBackground]) -> None:
    load = opened(decode_length=64)
    send(load, None)
    load.warm(lambda: False)
    [result] = landed(load, 1)
    assert result.outcome is Outcome.OK


def test_closing_cancels_what_is_on_its_way(opened: Callable[..., StreamBackground], router: Router) -> None:
    load = opened()
    router.slow_down(500)
    send(load, None)
    wait_until(lambda: router.state()["in_flight"] == 1, "it flies")
    load.close()
    wait_until(lambda: router.state()["in_flight"] == 0, "the server has let go")
    with pytest.raises(Abandoned):
        load.poll(0.0)


def test_a_load_on_the_cached_path_hits_the_cache_from_its_first_request_on(door: str) -> None:
    with Router(replace(FAST, limits=AdmissionLimits(prefix_caching=True))) as router:
        load = background(door, router, sequence_length=200, prompt_cache="hit")
        load.connect(5.0)
        load.warm(lambda: False)
        before = len(requests(router))
        for _ in range(3):
            send(load, None)
        landed(load, 3)
        wait_until(lambda: len(requests(router)) == before + 3, "all are written down")
        assert all(entry.cached_tokens > 100 for entry in requests(router)[before:])
        load.close()


def test_a_request_over_the_servers_limits_is_refused_and_never_sent(door: str) -> None:
    with Router(replace(FAST, limits=AdmissionLimits(max_total_tokens=64))) as router:
        load = background(door, router, sequence_length=60, decode_length=8)
        load.connect(5.0)
        with pytest.raises(Failure) as caught:
            load.warm(lambda: False)
        assert caught.value.outcome is Outcome.REFUSED
        assert not requests(router)
        load.close()


class Unknown(BaseHTTPRequestHandler):
    """A proxy that lets nothing through but the requests themselves; it counts its connections."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[list[object]] = []

    def setup(self) -> None:
        self.connections.append(self.client_address)
        super().setup()

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_any_whole_answer_warms_a_connection_whatever_its_status() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Unknown) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = target("chat", f"127.0.0.1:{server.server_port}", None, model="m")
        pool = Pool(protocol(place))
        first = pool.take()
        first.used -= 10.0
        pool.keep(first)
        assert pool.take() is first
        assert len(Unknown.connections) == 1
        first.close()
        pool.close()
        server.shutdown()


@pytest.fixture
def jam() -> Iterator[threading.Event]:
    """Set, it lets go on what hangs; at the end it does in any case."""
    event = threading.Event()
    yield event
    event.set()


class Jammed(Keeping):
    """A protocol that finds no way to the server, or to its metrics, until the jam is over."""

    jam: threading.Event | None = None
    where = "endpoint"
    hung = False

    def _wait(self, where: str) -> None:
        if self.jam is not None and self.where == where:
            self.hung = True
            self.jam.wait(20)

    def endpoint(self) -> Any:
        self._wait("endpoint")
        return self._protocol.endpoint()

    def metrics_page(self) -> Any:
        self._wait("metrics")
        return self._protocol.metrics_page()


def jammed(door: str, router: Router, **keys: Any) -> tuple[StreamBackground, Jammed]:
    place = target(door, router.http, router.grpc, **keys)
    way = Jammed(protocol(place))
    load = StreamBackground(place, workload(load=OPEN, decode_length=16), way)
    load.connect(5.0)
    load.warm(lambda: False)
    return load, way


def test_while_connecting_hangs_what_is_on_its_way_is_read_and_nothing_more_is_sent(
    door: str, router: Router, jam: threading.Event
) -> None:
    load, way = jammed(door, router)
    send(load, None)
    way.jam = jam
    load.reserve_connections(2)
    wait_until(lambda: way.hung, "it hangs")
    assert not load.send(None)
    [result] = landed(load, 1)
    assert result.outcome is Outcome.OK
    assert timeline.generated_tokens(result.streams[0]) == 16
    assert not jam.is_set()
    jam.set()
    send(load, None)
    assert landed(load, 1)[0].outcome is Outcome.OK
    load.close()


def test_while_the_metrics_hang_what_is_on_its_way_is_read_and_what_is_not_known_counts_as_users(
    door: str, router: Router, jam: threading.Event
) -> None:
    load, way = jammed(door, router, metrics_url=f"http://{router.http}/metrics", yield_to_users=True)
    assert not load.users_wait()
    send(load, None)
    way.jam, way.where = jam, "metrics"
    wait_until(lambda: not load.users_wait() and way.hung, "it hangs")
    [result] = landed(load, 1)
    assert result.outcome is Outcome.OK
    assert timeline.generated_tokens(result.streams[0]) == 16
    assert not jam.is_set()
    wait_until(load.users_wait, "its last answer is too old")
    jam.set()
    wait_until(lambda: not load.users_wait(), "it has answered")
    load.close()
