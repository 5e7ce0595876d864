"""A load's request that the server had not begun, as it said itself, is sent once more."""

import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from exporter.analysis import certainty, timeline
from exporter.observation import Outcome
from exporter.pb import fmaas_pb2 as pb
from exporter.probes.interface import Result
from exporter.probes.router.background import StreamBackground
from exporter.wire import exchanges
from tests.processes import wait_until
from tests.router.http2_server import TOKENS, Gone, Peer, Script, http2_server
from tests.router.parts import protocol, target, workload
from tests.router.test_http2 import refusing, stale
from tests.router.test_kept_alive import closing

OPEN = {"mode": "open", "rate": "10/s"}


def background(door: str, address: str, **keys: object) -> StreamBackground:
    place = target(door, address, address, **({} if door == "fmaas" else {"model": "m"}))
    return StreamBackground(place, workload(decode_length=TOKENS, load=OPEN, **keys), protocol(place))


def asked(load: StreamBackground, intended: float | None) -> Result:
    """What becomes of one request."""
    load.reserve_connections(1)
    wait_until(lambda: load.send(intended), "a connection is ready")
    results: list[Result] = []
    deadline = time.perf_counter() + 20
    while not results:
        assert load.in_flight == 1
        assert time.perf_counter() < deadline
        results = load.poll(time.perf_counter() + 0.1)
    assert load.in_flight == 0
    [result] = results
    return result


def served(how: Script, declined: Callable[[int], bool]) -> tuple[Script, list[str], Callable[[], None]]:
    """A script that does not begin those requests, the prompts it was sent otherwise, and what begins the count."""
    read: list[str] = []
    turns: list[Iterator[int]] = []

    def script(peer: Peer, stream: int) -> None:
        if turns and declined(next(turns[0])):
            how(peer, stream)
            return
        read.append(pb.SingleGenerationRequest.FromString(peer.body(stream)).request.text)
        peer.send(*peer.answer(stream))

    return script, read, lambda: turns.append(count())


@pytest.mark.parametrize("how", [stale, refusing])
def test_it_is_sent_once_more_and_still_counts_from_when_it_was_due(how: Script) -> None:
    script, read, begin = served(how, lambda turn: turn == 0)
    with http2_server(script) as server:
        load = background("fmaas", f"127.0.0.1:{server.port}")
        load.connect(5.0)
        load.warm(lambda: False)
        begin()
        before, due = len(read), time.perf_counter()
        result = asked(load, due)
        load.close()
    [stream] = result.streams
    assert stream.outcome is Outcome.OK
    assert (stream.intended, timeline.generated_tokens(stream)) == (due, TOKENS)
    assert stream.sent - due > stream.declined > 0
    first = certainty.time_to_first_token(stream)
    assert first is not None
    assert first.seconds == stream.steps[0].arrived - due
    assert first.less - stream.steps[0].late - stream.sent_late == pytest.approx(stream.sent - stream.declined - due)
    assert len(read) == before + 1
    assert len(set(read)) == len(read)


def test_one_of_a_closed_load_counts_from_when_it_was_sent_the_second_time() -> None:
    script, _, begin = served(refusing, lambda turn: turn == 0)
    with http2_server(script) as server:
        load = background("fmaas", f"127.0.0.1:{server.port}")
        load.connect(5.0)
        load.warm(lambda: False)
        begin()
        result = asked(load, None)
        load.close()
    [stream] = result.streams
    assert timeline.time_to_first_token(stream) == stream.steps[0].arrived - stream.sent
    first = certainty.time_to_first_token(stream)
    assert first is not None
    assert first.less == pytest.approx(stream.steps[0].late + stream.sent_late)


@pytest.mark.parametrize("how", [stale, refusing])
def test_one_that_is_never_begun_is_one_failure_after_two_requests(how: Script) -> None:
    turns = count()
    script, _, begin = served(how, lambda _: next(turns) >= 0)
    with http2_server(script) as server:
        load = background("fmaas", f"127.0.0.1:{server.port}")
        load.connect(5.0)
        load.warm(lambda: False)
        begin()
        assert asked(load, time.perf_counter()).outcome is Outcome.UNREACHABLE
        assert next(turns) == 2
        load.close()


def test_one_for_which_no_connection_is_to_be_had_any_more_is_a_failure() -> None:
    declined: list[int] = []

    def opening(peer: Peer) -> None:
        if declined:
            raise Gone
        peer.settings()

    def always(turn: int) -> bool:
        declined.append(turn)
        return True

    script, _, begin = served(stale, always)
    with http2_server(script, opening) as server:
        load = background("fmaas", f"127.0.0.1:{server.port}")
        load.connect(5.0)
        load.warm(lambda: False)
        begin()
        result = asked(load, time.perf_counter())
        load.close()
    assert result.outcome is Outcome.UNREACHABLE
    assert "has not begun the request" in result.detail


def test_one_that_crosses_the_end_of_a_kept_connection_is_sent_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "CROSSING_SECONDS", 10.0)
    with closing(second_answer=False) as server:
        load = background("completions", server.address)
        load.connect(5.0)
        load.warm(lambda: False)
        results = [asked(load, time.perf_counter()) for _ in range(4)]
        load.close()
    assert [stream.outcome for result in results for stream in result.streams] == [Outcome.OK] * 4
    assert any(stream.declined for result in results for stream in result.streams)


@pytest.mark.parametrize("how", [stale, refusing])
def test_a_request_that_warms_up_is_sent_once_more_too(how: Script) -> None:
    script, _, begin = served(how, lambda turn: turn == 0)
    begin()
    with http2_server(script) as server:
        load = background("fmaas", f"127.0.0.1:{server.port}")
        load.connect(5.0)
        load.warm(lambda: False)
        assert asked(load, time.perf_counter()).streams[0].outcome is Outcome.OK
        load.close()
