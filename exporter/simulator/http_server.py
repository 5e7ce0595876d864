"""The router's HTTP server: TGI's own routes and OpenAI's, HTTP/1.1 by h11 over asyncio's sockets.

A token goes to the socket in the call that brings it from the engine. No task wakes up in between. The record holds
the instant before that write.
"""

import time
from collections.abc import Callable
from typing import Any

import h11

from exporter.simulator import http_formats as formats
from exporter.simulator import lies
from exporter.simulator.active_request import ActiveRequest, ParsedRequest, RequestHandler
from exporter.simulator.batcher import Overloaded, Token, TooLong
from exporter.simulator.faults import Fault, FaultKind
from exporter.simulator.http_formats import AnswerFormat, InvalidBody
from exporter.simulator.socket_server import ServerConnection, SocketServer

_LONGEST_BODY = 16 * 2**20  # bytes
_JSON = "application/json"
_STATUS = {
    "overloaded": 429,
    "validation": 422,
    "generation": 424,
    "unavailable": 503,
    "cancelled": 499,
    "unknown": 500,
}
# What HTTP says instead of a gRPC status.
_PROBLEMS: dict[FaultKind, str] = {"internal": "generation", "cut": "generation", "resource_exhausted": "overloaded"}


def http_server(handler: RequestHandler, listen: str) -> SocketServer:
    return SocketServer(handler, listen, HttpConnection)


class HttpConnection(ServerConnection):
    """One client: one request after the other."""

    def __init__(self, server: SocketServer) -> None:
        super().__init__(server)
        self._handler = server.handler
        self._machine = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._bodiless = False  # the answer to HEAD
        self._stream: _HttpReply | None = None

    def lost(self) -> None:
        if self._stream is not None:
            self._stream.give_up()

    def read(self, data: bytes, received_ns: int) -> None:
        """Go on reading with these bytes, none = those that are here already."""
        try:
            if data:
                self._machine.receive_data(data)
            self._read(received_ns)
        except h11.RemoteProtocolError as error:
            if self._machine.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.reply(error.error_status_hint, str(error).encode(), "text/plain", close=True)
            else:
                self.close()

    def reply(self, status: int, body: bytes, kind: str = _JSON, close: bool = False, **headers: str) -> None:
        """A whole answer. `headers` with _ for -."""
        self.head(status, kind, close, content_length=str(len(body)), **headers)
        if not self._bodiless:
            self.write(self._machine.send(h11.Data(data=body)) or b"")
        self.end()

    def head(self, status: int, kind: str, close: bool = False, **headers: str) -> None:
        fields = {"content_type": kind, **headers, **({"connection": "close"} if close else {})}
        lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
        self.write(self._machine.send(h11.Response(status_code=status, headers=lines)) or b"")

    def chunk(self, data: bytes) -> None:
        self.write(self._machine.send(h11.Data(data=data)) or b"")

    def end(self) -> None:
        """The answer is complete; the next request, which may be here already, has its turn."""
        self._stream = None
        self.write(self._machine.send(h11.EndOfMessage()) or b"")
        if self._machine.our_state is h11.MUST_CLOSE:
            self.close()
        elif self._machine.our_state is h11.DONE and self._machine.their_state is h11.DONE:
            self._machine.start_next_cycle()
            self.data_received(b"")

    def _read(self, received_ns: int) -> None:
        while True:
            event = self._machine.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                if self._machine.they_are_waiting_for_100_continue:
                    self.write(self._machine.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                return
            if isinstance(event, h11.Request):
                self._request, self._body = event, bytearray()
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > _LONGEST_BODY:
                    raise h11.RemoteProtocolError("The body is too long", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                request, self._request = self._request, None
                self._serve(request, bytes(self._body), received_ns)
            elif isinstance(event, h11.ConnectionClosed):
                self.close()
                return

    def _serve(self, request: h11.Request, body: bytes, received_ns: int) -> None:
        method, path = request.method.decode(), request.target.decode().partition("?")[0]
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        self._bodiless = method == "HEAD"
        if method in ("GET", "HEAD") and path in _PAGES:
            self._page(path)
        elif method == "POST" and path in _GENERATE:
            self._generate(path, body, headers, received_ns)
        elif method == "POST" and path == "/tokenize":
            try:
                self.reply(200, formats.tokenized(body))
            except InvalidBody as error:
                self.fail("validation", str(error))
        else:
            known = {*_PAGES} if method in ("GET", "HEAD") else {*_GENERATE, "/tokenize"}
            self.reply(
                404 if path not in {*_PAGES, *_GENERATE} else 405, f"known here: {sorted(known)}".encode(), "text/plain"
            )

    def _page(self, path: str) -> None:
        """Pages fail only by a fault that names them."""
        fault = self._handler.meet_fault(path, named=True) if path in _FACTS else None
        if fault is not None and fault.status is not None:
            self.fail(_PROBLEMS.get(fault.kind, fault.kind), f"Fault by command: {fault.kind}")
        elif fault is not None and fault.kind == "garbage":
            self.reply(200, lies.of_http(fault.kind, b""))
        else:
            _PAGES[path](self, self._handler)

    def fail(self, kind: str, message: str) -> None:
        self.reply(_STATUS[kind], formats.encoded(formats.problem(message, kind)))

    def _generate(self, path: str, body: bytes, headers: dict[str, str], received_ns: int) -> None:
        config = self._handler.config
        if config.token is not None and headers.get("authorization") != f"Bearer {config.token}":
            self.reply(401, formats.encoded(formats.problem("the bearer token is missing or wrong", "authentication")))
            return
        try:
            format_ = _GENERATE[path](body, config.model_id)
        except InvalidBody as error:
            self._handler.metrics.refused("validation")
            self.fail("validation", f"Input validation error: {error}")
            return
        parsed = ParsedRequest(
            method=path,
            text=format_.text,
            prompt=format_.prompt,
            max_new_tokens=format_.max_new_tokens,
            received_ns=received_ns,
            min_new_tokens=format_.min_new_tokens,
            correlation=headers.get("x-request-id", ""),
            priority=format_.priority,
        )
        self._stream = _HttpReply(self, self._handler, format_, parsed)
        self._stream.begin()


class _HttpReply:
    """One request being answered: as server-sent events, or at once in the end."""

    def __init__(
        self, connection: HttpConnection, handler: RequestHandler, format_: AnswerFormat, parsed: ParsedRequest
    ) -> None:
        self._connection = connection
        self._handler = handler
        self._format = format_
        self._parsed = parsed
        self._active: ActiveRequest | None = None
        self._packed: list[Token] = []
        self._fault: Fault | None = None

    def begin(self) -> None:
        fault = self._handler.meet_fault(self._parsed.method)
        self._fault = fault
        if fault is not None and fault.status is not None and fault.at is None:
            kind = _PROBLEMS.get(fault.kind, fault.kind)
            self._handler.refuse(self._parsed, kind, str(_STATUS[kind]))
            self._refuse(kind, f"Fault by command: {fault.kind}")
            return
        try:
            self._active = self._handler.admit(self._parsed, self._on_token)
        except Overloaded as error:
            self._refuse("overloaded", str(error))
        except TooLong as error:
            self._refuse("validation", f"Input validation error: {error}")
        else:
            if self._format.streams:
                self._open_stream()
                if self._handler.config.early_message and (opening := self._format.opening()):
                    self._connection.chunk(opening)

    def give_up(self) -> None:
        """The client went away."""
        if self._active is not None:
            self._handler.leave(self._active, "CANCELLED")

    def _open_stream(self) -> None:
        self._connection.head(
            200, "text/event-stream", cache_control="no-cache", x_accel_buffering="no", x_compute_type="simulated"
        )

    def _refuse(self, kind: str, message: str) -> None:
        if not self._format.streams or kind == "unavailable" or self._handler.config.stream_errors == "status":
            self._connection.fail(kind, message)
            return
        self._open_stream()
        self._connection.chunk(formats.event(formats.problem(message, kind)))
        self._connection.end()

    def _on_token(self, token: Token) -> None:
        self._packed.append(token)
        together = self._handler.config.tokens_per_message if self._format.streams else self._parsed.max_new_tokens
        if token.end is None and len(self._packed) < together:
            return
        packed, self._packed = self._packed, []
        assert self._active is not None
        if not self._format.streams:
            self._answer(self._active, packed)
            return
        events = lies.of_http(self._fault.kind if self._fault else None, self._format.events(packed))
        self._active.sent(len(packed))
        if token.end is not None and self._fault is None:
            # Written down before the client can know that it is over, and look: the last event says so.
            self._handler.leave(self._active, "200")
        if events:
            self._connection.chunk(events)
        if self._fault is not None and self._active.meet(self._fault, token.index + 1):
            self._break_off(self._active, self._fault)
        elif token.end is not None:
            self._handler.leave(self._active, "200")
            self._connection.end()

    def _break_off(self, active: ActiveRequest, fault: Fault) -> None:
        kind = _PROBLEMS.get(fault.kind, fault.kind)
        self._handler.leave(active, str(_STATUS[kind]))
        if self._handler.config.stream_errors == "status":
            self._connection.close()
            return
        self._connection.chunk(formats.event(formats.problem(f"Fault by command: {fault.kind}", kind)))
        self._connection.end()

    def _answer(self, active: ActiveRequest, tokens: list[Token]) -> None:
        body = self._format.whole(tokens)
        active.sent(len(tokens))
        entry = active.entry("200")
        now_ns = entry.finished_ns
        inference = now_ns - entry.started_ns
        self._handler.leave(active, "200")
        self._connection.reply(
            200,
            body,
            x_compute_type="simulated",
            x_prompt_tokens=str(entry.prompt_tokens),
            x_generated_tokens=str(len(tokens)),
            x_total_time=_milliseconds(now_ns - entry.received_ns),
            x_validation_time=_milliseconds(entry.queued_ns - entry.received_ns),
            x_queue_time=_milliseconds(entry.started_ns - entry.queued_ns),
            x_inference_time=_milliseconds(inference),
            x_time_per_token=_milliseconds(inference // len(tokens)),
        )


def _milliseconds(nanoseconds: int) -> str:
    return str(max(0, nanoseconds) // 1_000_000)


def _info(connection: HttpConnection, handler: RequestHandler) -> None:
    config, limits = handler.config, handler.config.limits
    info: dict[str, Any] = {
        "model_id": config.model_id,
        "model_sha": "0" * 40,
        "model_dtype": "torch.float16",
        "model_device_type": "cuda",
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": limits.max_concurrent_requests,
        "max_best_of": 1,
        "max_stop_sequences": 4,
        "max_input_tokens": limits.max_input_tokens,
        "max_total_tokens": limits.max_total_tokens,
        "validation_workers": 2,
        "max_client_batch_size": 1,
        "router": "text-generation-router",
        "version": config.version,
        "sha": None,
        "docker_label": None,
    }
    connection.reply(200, formats.encoded(info))


def _health(connection: HttpConnection, handler: RequestHandler) -> None:
    sick = handler.meet_fault("/health") is not None
    if sick:
        connection.reply(503, formats.encoded(formats.problem("unhealthy", "healthcheck")))
    else:
        connection.reply(200, b"", "text/plain")


def _metrics(connection: HttpConnection, handler: RequestHandler) -> None:
    page = handler.metrics.page(handler.load())
    connection.reply(200, page.encode(), "text/plain; version=0.0.4; charset=utf-8")


def _models(connection: HttpConnection, handler: RequestHandler) -> None:
    model = {"id": handler.config.model_id, "object": "model", "created": 0, "owned_by": handler.config.model_id}
    connection.reply(200, formats.encoded({"object": "list", "data": [model]}))


_PAGES: dict[str, Callable[[HttpConnection, RequestHandler], None]] = {
    "/info": _info,
    "/health": _health,
    "/metrics": _metrics,
    "/v1/models": _models,
}
_FACTS = ("/info", "/v1/models")
_GENERATE: dict[str, Callable[[bytes, str], AnswerFormat]] = {
    "/generate": lambda body, model: formats.tgi(body, streams=False),
    "/generate_stream": lambda body, model: formats.tgi(body, streams=True),
    "/v1/completions": lambda body, model: formats.openai(body, False, model, int(time.time())),
    "/v1/chat/completions": lambda body, model: formats.openai(body, True, model, int(time.time())),
}
