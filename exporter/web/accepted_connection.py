"""One client's connection: its requests are read and answered one after the other, each step with a deadline."""

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from itertools import chain, islice
from urllib.parse import unquote

import anyio
import h11
from anyio import to_thread
from anyio.abc import ByteStream, SocketStream

from exporter.web.admission import Admission
from exporter.web.messages import HttpResponse, ReceivedRequest, text_response
from exporter.web.web_file_state import WebFileState

# For the first byte of a request, for the rest of it, for a handshake, and for taking one part of a response.
CLIENT_SECONDS = 10.0
# For the next request of a client that had an answer: longer than between two scrapes.
NEXT_REQUEST_SECONDS = 150.0
# For the last words of TLS.
CLOSE_SECONDS = 1.0
# For a request line with its headers, and for a body.
REQUEST_BYTES = 16 * 1024
PART_BYTES = 64 * 1024
PARTS_AT_ONCE = 16
ERRORS = {
    413: text_response("413 Content Too Large", f"the body is longer than {REQUEST_BYTES} bytes"),
    431: text_response("431 Request Header Fields Too Large", f"the request is longer than {REQUEST_BYTES} bytes"),
    501: text_response("501 Not Implemented", "unknown transfer encoding"),
}
BAD_REQUEST = text_response("400 Bad Request", "not a request of HTTP/1.1")
BUG = text_response("500 Internal Server Error", "a bug of tgi-probe; its log says more")
PLAIN_ON_TLS = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nthis port speaks HTTPS only; use https://\n"
)
ABSOLUTE_FORM = re.compile("https?://", re.IGNORECASE)
# What reading or writing raises when the client has left or was too slow (TimeoutError is an OSError).
GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class AcceptedConnection:
    """`answer` makes the response to a request. The parts of a body are made in the threads of `part_maker`.

    `report` gets a kind and a line for what a person should know.
    """

    def __init__(
        self,
        stream: SocketStream,
        address: str,
        admission: Admission,
        web_file: WebFileState,
        answer: Callable[[ReceivedRequest], Awaitable[HttpResponse]],
        part_maker: anyio.CapacityLimiter,
        report: Callable[[str, str], None],
    ) -> None:
        self._socket = stream
        self._stream: ByteStream = stream
        self._address = address
        self._admission = admission
        self._web_file = web_file
        self._answer = answer
        self._part_maker = part_maker
        self._report = report
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        self._life = anyio.CancelScope()
        self._response = anyio.CancelScope()
        self._finish_by = float("inf")
        self._has_token = False
        self._method = "GET"  # of the request that is being read, as far as it is known
        self.was_admitted = False
        self.is_idle = True
        self.sending_since: float | None = None

    async def run(self) -> None:
        """Until the client leaves, is too slow, or is cut off. Raises nothing."""
        with self._life:
            try:
                async with self._socket:
                    if await self._tls_is_ready():
                        while await self._exchange():
                            pass
                    with anyio.move_on_after(CLOSE_SECONDS):
                        await self._stream.aclose()
            except GONE:
                pass
            except Exception as error:
                self._report_bug(error)

    def cut(self) -> None:
        """Ends the connection at once."""
        self.is_idle = False
        self._life.cancel()
        self._response.cancel()

    def finish_by(self, deadline: float) -> None:
        """A response that was begun may still be sent until then, in seconds of the event loop's clock."""
        self._finish_by = self._response.deadline = deadline

    async def _exchange(self) -> bool:
        """One request and its response; whether another may follow."""
        self._method = "GET"
        try:
            request = await self._read_request()
        except h11.RemoteProtocolError as error:
            await self._send(self._method, ERRORS.get(error.error_status_hint, BAD_REQUEST))
            return False
        if request is None:
            return False
        async with self._admitted(request.is_health_check, not (request.is_health_check or request.is_action)):
            self.was_admitted = True
            with anyio.CancelScope(shield=True, deadline=self._finish_by) as self._response:
                await self._send(request.method, await self._answer_or_bug(request))
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    @asynccontextmanager
    async def _admitted(
        self, is_health_check: bool, wants_page: bool, is_handshake: bool = False
    ) -> AsyncIterator[None]:
        """A handshake may be cut off as an idle connection may: a client can ask for one and then be silent."""
        # The key for fairness: a kept-alive connection has its own, new ones share by address. Health checks have
        # another one, because many clients may share the address of a proxy.
        key: Hashable = self if self.was_admitted else (self._address, is_health_check)
        self.is_idle = is_handshake
        has_token, self._has_token = self._has_token, False
        async with self._admission.admitted(self, key, wants_page, has_token):
            yield
        self.is_idle = True

    async def _answer_or_bug(self, request: ReceivedRequest) -> HttpResponse:
        try:
            response = await self._answer(request)
            return response if request.method == "HEAD" else await self._begun(response)
        except Exception as error:
            self._report_bug(error)
            return BUG

    async def _begun(self, response: HttpResponse) -> HttpResponse:
        """With the first parts of its body made, so that a bug there is answered before a head is sent."""
        body = response.body
        if isinstance(body, bytes):
            return response
        first = await self._next_parts(body)
        return replace(response, body=chain(first, body) if len(first) == PARTS_AT_ONCE else b"".join(first))

    def _report_bug(self, error: Exception) -> None:
        self._report("page", f"a page failed by a bug of tgi-probe: {type(error).__name__}: {error}")

    # --- reading

    async def _read_request(self) -> ReceivedRequest | None:
        """None when the client has left. Raises TimeoutError, and RemoteProtocolError with the status to answer."""
        if not self._http.trailing_data[0]:
            with anyio.fail_after(NEXT_REQUEST_SECONDS if self.was_admitted else CLIENT_SECONDS):
                await self._receive()
        with anyio.fail_after(CLIENT_SECONDS):
            head = await self._next_event()
            if not isinstance(head, h11.Request):
                return None
            request = _request(head)
            self._method = request.method
            await self._read_body(request)
        return request

    async def _read_body(self, request: ReceivedRequest) -> None:
        """No page needs the body, but the next request comes after it."""
        _check_size(int(request.headers.get("content-length", "0")))
        if self._http.they_are_waiting_for_100_continue:
            await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        size = 0
        while isinstance(data := await self._next_event(), h11.Data):
            size += len(data.data)
            _check_size(size)

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event

    async def _receive(self) -> None:
        try:
            # In small parts: h11 checks its limit only while a request is incomplete.
            data = await self._stream.receive(REQUEST_BYTES // 4)
        except anyio.EndOfStream:
            data = b""
        self._http.receive_data(data)

    # --- sending

    async def _send(self, method: str, response: HttpResponse) -> None:
        status, _, reason = response.status.partition(" ")
        headers = [("Date", formatdate(usegmt=True)), *response.headers().items()]
        if self._http.their_state is not h11.DONE:
            headers.append(("Connection", "close"))
        head = h11.Response(status_code=int(status), reason=reason.encode(), headers=headers)
        data = self._http.send(head) or b""
        if method != "HEAD":
            async with aclosing(self._parts(response.body)) as parts:
                async for part in parts:
                    await self._write(data + (self._http.send(h11.Data(part)) or b""))
                    data = b""
        await self._write(data + (self._http.send(h11.EndOfMessage()) or b""))

    async def _parts(self, body: bytes | Iterator[bytes]) -> AsyncGenerator[bytes, None]:
        if isinstance(body, bytes):
            for at in range(0, len(body), PART_BYTES):
                yield body[at : at + PART_BYTES]
            return
        ended = False
        while not ended:
            parts = await self._next_parts(body)
            ended = len(parts) < PARTS_AT_ONCE
            for part in parts:
                yield part

    async def _next_parts(self, body: Iterator[bytes]) -> list[bytes]:
        """Several, because each change of thread takes time. Fewer than PARTS_AT_ONCE are the last ones."""
        return await to_thread.run_sync(
            lambda: list(islice(body, PARTS_AT_ONCE)), limiter=self._part_maker, abandon_on_cancel=True
        )

    async def _write(self, data: bytes | None) -> None:
        """Raises TimeoutError when the client does not take it in time."""
        if not data:
            return
        self.sending_since = time.monotonic()
        try:
            with anyio.fail_after(CLIENT_SECONDS):
                await self._stream.send(data)
        finally:
            self.sending_since = None

    # --- TLS

    async def _tls_is_ready(self) -> bool:
        """Whether requests can be read: after the handshake, if the web file asks for TLS."""
        if not self._web_file.speaks_tls:
            return True
        from exporter.web import tls_stream  # only for TLS

        with anyio.fail_after(CLIENT_SECONDS):
            first = await self._socket.receive()
        if first[:1].isalpha():  # a method of HTTP; a TLS record begins with a number below 32
            await self._write(PLAIN_ON_TLS)
            return False
        with anyio.fail_after(CLIENT_SECONDS):
            while not tls_stream.has_first_record(first):
                first += await self._socket.receive()
        async with self._admitted(is_health_check=False, wants_page=False, is_handshake=True):
            try:
                with anyio.fail_after(CLIENT_SECONDS):
                    self._stream = await tls_stream.secured(self._socket, first, self._web_file)
            except tls_stream.ClientRefusedError as error:
                self._report("client", f"a client was refused: {self._address}: {error}")
                return False
        self._has_token = True  # a handshake and the first request are one place in the pace
        return True


def _check_size(body_bytes: int) -> None:
    if body_bytes > REQUEST_BYTES:
        raise h11.RemoteProtocolError("the body is too long", 413)


def _request(head: h11.Request) -> ReceivedRequest:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, _, query = head.target.decode("latin-1").partition("?")
    if ABSOLUTE_FORM.match(path):  # as for a proxy
        path = "/" + path.partition("://")[2].partition("/")[2]
    return ReceivedRequest(head.method.decode("latin-1"), unquote(path), query, headers)
