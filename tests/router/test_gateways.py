"""What a gateway says of the server behind it is the server's outcome, in whatever form it says it."""

import pytest

from exporter.config.secrets import Secret
from exporter.config.target import Target
from exporter.observation import Failure, Outcome
from exporter.probes.router.http_protocol import EventStreamReader, HttpProtocol
from exporter.wire.http_codec import End

CASES = [
    (502, Outcome.UNREACHABLE, "BAD_GATEWAY"),
    (503, Outcome.UNREACHABLE, "SERVICE_UNAVAILABLE"),
    (504, Outcome.TIMEOUT, "GATEWAY_TIMEOUT"),
]
BODIES = [b"", b"<html>down</html>", b'{"error": "down"}', b'{"error": {"message": "down", "type": "server_error"}}']


@pytest.mark.parametrize(("status", "outcome", "code"), CASES)
@pytest.mark.parametrize("body", BODIES)
def test_a_gateway_without_its_server_is_no_rejection(status: int, outcome: Outcome, code: str, body: bytes) -> None:
    protocol = HttpProtocol(Target(name="t", kind="http", api="chat", address="http://h"))
    for answer in (EventStreamReader("chat", Secret("")), protocol.body_reader()):
        answer.head(status, {})
        answer.body(0.0, body)
        with pytest.raises(Failure) as caught:
            answer.end(0.0, End())
        assert (caught.value.outcome, caught.value.code) == (outcome, code)


@pytest.mark.parametrize(("status", "outcome", "code"), CASES)
def test_a_gateway_that_loses_its_server_in_the_middle_of_a_stream_is_no_rejection(
    status: int, outcome: Outcome, code: str
) -> None:
    answer = EventStreamReader("chat", Secret(""))
    answer.head(200, {"content-type": "text/event-stream"})
    with pytest.raises(Failure) as caught:
        answer.body(0.0, b'data: {"error": {"message": "down", "type": "server_error", "code": %d}}\n\n' % status)
    assert (caught.value.outcome, caught.value.code) == (outcome, code)


def test_what_the_error_itself_says_goes_before_the_status() -> None:
    for body, outcome, code in (
        (b'{"error": "Model is overloaded", "error_type": "overloaded"}', Outcome.OVERLOADED, "SERVICE_UNAVAILABLE"),
        (b'{"error": {"message": "too long", "code": 400}}', Outcome.REJECTED, "BAD_REQUEST"),
    ):
        answer = EventStreamReader("chat", Secret(""))
        answer.head(503, {})
        answer.body(0.0, body)
        with pytest.raises(Failure) as caught:
            answer.end(0.0, End())
        assert (caught.value.outcome, caught.value.code) == (outcome, code)
