"""TLS on a client's connection. Loaded only where the web file asks for TLS.

anyio's own TLSStream (4.16) does not send the alert of a handshake that failed: a client without its certificate would
see an empty reply instead of the reason.
"""

import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import anyio
from anyio.abc import ByteStream, SocketStream

from exporter.web.web_file_state import WebFileState

Result = TypeVar("Result")


# The type of a record of a handshake, and the size of a record's head: type, version, length (RFC 8446, 5.1).
HANDSHAKE_RECORD = 22
RECORD_HEAD_BYTES = 5


class ClientRefusedError(Exception):
    """Says why."""


class ServerTlsStream(ByteStream):
    """The server's side. `received` is what the client has sent already. Errors: OSError, ssl.SSLError among them."""

    def __init__(self, socket: SocketStream, context: ssl.SSLContext, received: bytes) -> None:
        self._socket = socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(received)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self, allowed_names: Sequence[str]) -> None:
        """Raises ClientRefusedError, also when the client's certificate has none of the names, if there are any."""
        try:
            await self._do(self._tls.do_handshake)
        except ssl.SSLError as error:
            raise ClientRefusedError(f"no TLS handshake ({error.reason or error})") from None
        certificate: Mapping[str, Any] = self._tls.getpeercert() or {}
        held = {str(name) for _, name in certificate.get("subjectAltName", ())}
        if allowed_names and held.isdisjoint(allowed_names):
            raise ClientRefusedError("its certificate has none of the client_allowed_sans")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._do(lambda: self._tls.read(max_bytes))
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        await self._do(lambda: self._tls.write(item))

    async def send_eof(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Says goodbye, and does not wait for the client's."""
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()
        await self._socket.aclose()

    async def _do(self, step: Callable[[], Result]) -> Result:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:
                await self._flush()  # what the step wrote: if it failed, its alert
            try:
                self._incoming.write(await self._socket.receive())
            except anyio.EndOfStream:
                self._incoming.write_eof()

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._socket.send(data)


def has_first_record(received: bytes) -> bool:
    """Whether a client's first message is there, so that a handshake has something to do. What is no handshake counts
    too: the handshake says what is wrong with it.
    """
    length = int.from_bytes(received[3:RECORD_HEAD_BYTES])
    return received[0] != HANDSHAKE_RECORD or len(received) >= RECORD_HEAD_BYTES + length


async def secured(socket: SocketStream, received: bytes, web_file: WebFileState) -> ServerTlsStream:
    """The connection after a handshake by the newest web file. Raises ClientRefusedError."""
    config, context = web_file.values
    assert context is not None, "a server that speaks TLS always has a context"
    tls = config.tls_server_config
    stream = ServerTlsStream(socket, context, received)
    await stream.handshake(tls.client_allowed_sans if tls is not None else ())
    return stream
