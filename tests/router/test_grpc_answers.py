"""What is said of an answer over HTTP/2 that is no gRPC, or not all of it."""

from collections.abc import Mapping

import pytest

from exporter.observation import Failure, Outcome
from exporter.probes.router.grpc_calls import UnaryReader
from exporter.wire.http_codec import End
from exporter.wire.message_framing import grpc_message

GRPC = {"content-type": "application/grpc"}
HTML = {"content-type": "text/html; charset=utf-8"}


def failure(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    answer = UnaryReader()
    answer.head(status, headers)
    answer.body(1.0, body)
    with pytest.raises(Failure) as caught:
        answer.end(2.0, End())
    return caught.value


@pytest.mark.parametrize(
    ("status", "headers", "body", "outcome", "said"),
    [
        (200, HTML, b"<p>sign in</p>", Outcome.MALFORMED, "the server answers with text/html instead of gRPC: sign in"),
        (200, {"content-type": "text/plain"}, b"", Outcome.MALFORMED, "answers with text/plain instead of gRPC"),
        (404, HTML, b"no such page", Outcome.REJECTED, "HTTP status 404 instead of gRPC: no such page"),
        (503, GRPC, b"", Outcome.UNREACHABLE, "HTTP status 503 instead of gRPC"),
        (308, {"location": "https://h/"}, b"", Outcome.REJECTED, "instead of gRPC, a redirect to https://h/"),
    ],
)
def test_an_answer_that_is_no_grpc_is_told_with_its_status_its_type_and_what_it_says(
    status: int, headers: Mapping[str, str], body: bytes, outcome: Outcome, said: str
) -> None:
    found = failure(status, headers, body)
    assert found.outcome is outcome
    assert said in found.detail


def test_an_answer_without_its_trailers_is_told_so() -> None:
    found = failure(200, GRPC, grpc_message(b"x"))
    assert found.code == "UNKNOWN"
    assert "without trailers, which hold the status; does a proxy drop them?" in found.detail


@pytest.mark.parametrize("content", ["", "application/grpc", "application/grpc+proto", "application/grpc;x=y"])
def test_an_answer_with_a_status_is_read_whatever_kind_of_grpc_it_is(content: str) -> None:
    answer = UnaryReader()
    answer.head(200, {"content-type": content})
    answer.body(1.0, grpc_message(b"x"))
    answer.end(2.0, End({"grpc-status": "0"}))
    assert answer.content == b"x"
    assert failure(200, {**GRPC, "grpc-status": "5", "grpc-message": "no%20such"}, b"").detail == "no such"
