"""gRPC calls over our own connections, for every router that speaks gRPC.

grpcio's instants are 0.6 ms late with one stream and 1.2 to 2.6 ms with 64 (see `wire.sockets`). Beyond HTTP/2, gRPC
needs a prefix for each message and a status in the trailers.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from exporter.analysis import statuses
from exporter.config.secrets import Secrets, secret_values
from exporter.config.target import Target
from exporter.observation import Failure, Outcome
from exporter.probes.router.hints import hinted
from exporter.probes.router.protocol import BodyReader, MetricsPage, RouterProtocol
from exporter.probes.router.server_errors import refused, shortened
from exporter.wire.credentials import TlsContext
from exporter.wire.detect import NOT_GRPC
from exporter.wire.http_codec import End, Http2, HttpCodec, HttpRequest
from exporter.wire.message_framing import AnswerSize, GrpcMessages, grpc_message, malformed
from exporter.wire.sockets import Endpoint, endpoint_of

HEADERS = (("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "tgi-probe"))
# Bytes of an answer that is no gRPC. A message quotes its beginning.
LONGEST_ERROR = 4096


class GrpcProtocol(RouterProtocol):
    """What all services over gRPC share. See `RouterProtocol`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tls = TlsContext(target.address, target.tls, "h2") if target.tls is not None else None
        self._plain = endpoint_of(target.address)
        self._has_answered = False
        self._headers = tuple(target.headers.items())
        self._secrets = Secrets(*secret_values(target.headers))

    def endpoint(self) -> Endpoint:
        return self._plain if self._tls is None else self._tls.applied_to(self._plain)

    def codec(self, endpoint: Endpoint) -> HttpCodec:
        return Http2(endpoint.authority, "http" if endpoint.tls is None else "https")

    def body_reader(self) -> BodyReader:
        return UnaryReader()

    def with_headers(self, request: HttpRequest) -> HttpRequest:
        """The request with the headers that the target wants."""
        return replace(request, headers=request.headers + self._headers)

    def without_secrets(self, failure: Failure) -> Failure:
        return Failure(failure.outcome, failure.code, self._secrets.hidden_cut(failure.detail))

    def unreachable(self, failure: Failure) -> Failure:
        """That of connecting, with a hint."""
        return hinted(failure, self._target.kind, self._tls is not None, self._has_answered)

    def explained(self, failure: Failure) -> Failure:
        return hinted(failure, self._target.kind, self._tls is not None, has_answered=True)

    def metrics_page(self) -> MetricsPage | None:
        url = self._target.metrics_url
        return MetricsPage.of(url) if url is not None else None


def call(path: str, message: Any, timeout: float | None = None, request_id: str = "") -> HttpRequest:
    """The request of a gRPC call. `path`: /service/rpc. `timeout`: seconds. `request_id`: see `HttpRequest`."""
    deadline = (("grpc-timeout", f"{min(99_999_999, max(1, round(timeout * 1000)))}m"),) if timeout is not None else ()
    body = grpc_message(message.SerializeToString())
    return HttpRequest("POST", path, (*HEADERS, *deadline), body, request_id)


def parsed(message: Any, data: bytes) -> Any:
    """Raises Failure where the bytes are no such message."""
    try:
        return message.FromString(data)
    except Exception as error:  # protobuf's DecodeError lives in another module for each implementation
        raise malformed(f"an answer that is no {message.DESCRIPTOR.name} ({error})") from None


class UnaryReader:
    """Reads the answer to a call that is no stream: one message, and a status in the trailers.

    `most`: how many tokens a stream can have.
    """

    complete = False

    def __init__(self, most: int | None = None) -> None:
        self._messages = GrpcMessages()
        self._size = AnswerSize(most)
        self._headers: Mapping[str, str] = {}
        self._no_grpc: tuple[str, str] | None = None  # the code and the message of an answer that is no gRPC
        self._page = b""
        self.received: list[tuple[float, bytes]] = []

    @property
    def content(self) -> bytes:
        return self.received[0][1] if self.received else b""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._headers = headers  # an answer without a message has its trailers here
        kind = shortened(headers.get("content-type", "")).partition(";")[0]
        if "grpc-status" in headers or (status == 200 and (not kind or kind.lower().startswith("application/grpc"))):
            return
        if status == 200:
            self._no_grpc = "OK", f"the server answers with {kind} {NOT_GRPC}"
            return
        where = f", a redirect to {shortened(headers['location'])}" if "location" in headers else ""
        self._no_grpc = statuses.grpc_code_of_http(status), f"HTTP status {status} {NOT_GRPC}{where}"

    def body(self, at: float, data: bytes) -> None:
        if self._no_grpc is not None:
            self._page += data[: LONGEST_ERROR - len(self._page)]
            if len(self._page) == LONGEST_ERROR:  # it may go on for ever
                self.end(at, End())
            return
        for message in self._messages.feed(data):
            self._size.add(message)
            self.received.append((at, message))

    def end(self, at: float, end: End) -> None:
        if self._no_grpc is not None and end.reset is None:
            code, text = self._no_grpc
            outcome = Outcome.MALFORMED if code == "OK" else statuses.of_grpc(code)
            raise Failure(outcome, code, f"{text}: {refused(500, self._page).detail}" if self._page else text)
        if end.reset is not None:
            code = statuses.grpc_code_of_reset(end.reset)
            text = f"the server reset the stream (HTTP/2 error {end.reset})"
        else:
            trailers = end.trailers if "grpc-status" in end.trailers else self._headers
            code = statuses.grpc_code(trailers.get("grpc-status", ""))
            text = shortened(unquote(trailers.get("grpc-message", ""))) or code
            if "grpc-status" not in trailers:
                text = "the answer ended without trailers, which hold the status; does a proxy drop them?"
        if code != "OK":
            raise Failure(statuses.of_grpc(code, text), code, text)
        if not self._messages.complete or not self.received:
            raise malformed("the answer ended inside a message")
