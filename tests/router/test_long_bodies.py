"""A prompt that the server takes piece by piece: how late each further piece left is part of what is uncertain."""

import time

import pytest
from hyperframe.frame import DataFrame, WindowUpdateFrame

from exporter.analysis import certainty
from exporter.observation import Stream
from exporter.pb import fmaas_pb2 as pb
from exporter.probes.router.fmaas_protocol import SERVICE, GenerationReader
from exporter.probes.router.grpc_calls import call
from exporter.probes.router.token_counts import steps
from exporter.wire.connection import ClientConnection
from exporter.wire.exchanges import Exchange, Exchanges
from exporter.wire.http_codec import Http2
from exporter.wire.sockets import Endpoint
from tests.processes import wait_until
from tests.router.http2_server import TOKENS, Peer, http2_server

pytestmark = [pytest.mark.alone, pytest.mark.timed]
HELD = 0.1
TEXT = "word " * 30_000  # more than the window that HTTP/2 begins with


def window_by_window(peer: Peer, stream: int) -> None:
    """Allows as much again as it has read, at once."""
    ended = False
    while not ended:
        frame = peer.read()
        if isinstance(frame, DataFrame) and frame.data:
            more = len(frame.data)
            peer.send(WindowUpdateFrame(0, more), WindowUpdateFrame(stream, more))
        ended = "END_STREAM" in frame.flags
    peer.send(*peer.answer(stream))


def held(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, "it was held up")


def test_while_part_of_a_prompt_is_unsent_a_hold_of_ours_makes_the_first_token_uncertain() -> None:
    with http2_server(window_by_window) as server:
        endpoint = Endpoint("127.0.0.1", server.port)
        connection = ClientConnection(endpoint, Http2(endpoint.authority, "http"), 10)
        single = pb.SingleGenerationRequest(request=pb.GenerationRequest(text=TEXT))
        exchanges, answer = Exchanges(), GenerationReader(TOKENS)
        exchange = Exchange(connection, call(SERVICE + "GenerateStream", single, 10), answer)
        exchanges.send(exchange)
        held(HELD)
        while len(exchanges):
            exchanges.poll(time.perf_counter() + 1)
        exchanges.close()
        connection.close()
    assert exchange.failure is None
    assert exchange.ended is not None
    found = steps(exchange.sent, answer.tokens().arrivals)
    stream = Stream(1, 1, exchange.sent, exchange.ended, found, sent_late=exchange.sent_late)
    first = certainty.time_to_first_token(stream)
    assert first is not None
    assert first.seconds > HELD
    assert first.seconds - first.less < HELD
    assert not first.certain
