"""The router's gRPC server on gRPC's own library, to test a client against the real library.

Its instants are less exact than those of grpc_server.py. `received_ns` is when the library hands a call over: in a
burst of 64 calls up to ten milliseconds after the arrival.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from exporter.simulator.active_request import RequestHandler
from exporter.simulator.fmaas import METHODS, SERVICE, FmaasCall
from exporter.simulator.listen_errors import cannot_listen
from exporter.simulator.options import host_and_port
from exporter.simulator.router_options import ServerTls

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would share its connections, silently.
    ("grpc.so_reuseport", 0),
    # Hundreds of streams may come over one connection.
    ("grpc.max_concurrent_streams", 10_000),
)
_STREAMS = ("GenerateStream",)

Context = grpc.aio.ServicerContext[Any, Any]


class GrpcLibraryServer:
    """Serves in the running loop."""

    def __init__(self, handler: RequestHandler, listen: str) -> None:
        self._handler = handler
        self._listen = listen
        self._server: grpc.aio.Server | None = None

    async def open(self) -> str:
        """Listen; answers host:port. OSError if the address is taken."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_Handlers(self._handler),))
        tls = self._handler.config.tls
        try:
            if tls is None:
                port = server.add_insecure_port(self._listen)
            else:
                port = server.add_secure_port(self._listen, _credentials(tls))
        except RuntimeError:
            raise cannot_listen(self._listen) from None
        await server.start()
        self._server = server
        return f"{host_and_port(self._listen)[0]}:{port}"

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(None)


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, handler: RequestHandler) -> None:
        self._handler = handler
        self._methods = {f"/{SERVICE}/{method}": method for method in METHODS}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        received_ns = time.perf_counter_ns()
        method = self._methods.get(handler_call_details.method)
        if method is None:
            return None
        if method in _STREAMS:
            return grpc.unary_stream_rpc_method_handler(partial(self._stream, method, received_ns))
        return grpc.unary_unary_rpc_method_handler(partial(self._unary, method, received_ns))

    async def _stream(self, method: str, received_ns: int, message: bytes, context: Context) -> None:
        await self._serve(method, received_ns, message, context, context.write)

    async def _unary(self, method: str, received_ns: int, message: bytes, context: Context) -> bytes:
        answers: list[bytes] = []

        async def keep(answer: bytes) -> None:
            answers.append(answer)

        await self._serve(method, received_ns, message, context, keep)
        return answers[0]

    async def _serve(
        self, method: str, received_ns: int, message: bytes, context: Context, write: Callable[[bytes], Any]
    ) -> None:
        metadata = dict(context.invocation_metadata() or ())
        reply = _QueuedReply()
        call = FmaasCall(self._handler, reply, method, received_ns, str(metadata.get("x-correlation-id", "")))
        try:
            call.begin(message)
            while isinstance(item := await reply.items.get(), tuple):
                answer, about_to = item
                about_to()
                await write(answer)
            # Written down before the client can know that it is over, and look.
            call.leave(item.name)
            if item is not grpc.StatusCode.OK:
                await context.abort(item, reply.details)
        finally:
            call.leave()


class _QueuedReply:
    """The answer of the call until the library sends it: messages, then a status."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[tuple[bytes, Callable[[], None]] | grpc.StatusCode] = asyncio.Queue()
        self.details = ""

    def send(self, message: bytes, about_to: Callable[[], None]) -> None:
        self.items.put_nowait((message, about_to))

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        self.details = details
        self.items.put_nowait(code)
