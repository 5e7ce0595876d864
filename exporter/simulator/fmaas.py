"""The router's gRPC door: fmaas.GenerationService, as a TGIS router or vLLM's TGIS adapter serves it.

Simplified: stop sequences, sampling, penalties, tuned prefixes and adapters are read and change nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from exporter.pb import fmaas_pb2 as wire
from exporter.simulator.batcher import Overloaded, Token, TooLong
from exporter.simulator.options import host_and_port
from exporter.simulator.router_options import Tls
from exporter.simulator.tokenizer import answer_word, prompt_tokens, spans
from exporter.simulator.visit import Ask, Reception, Visit

SERVICE = "fmaas.GenerationService"
_DEFAULT_NEW_TOKENS = 20
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would share its connections, silently.
    ("grpc.so_reuseport", 0),
    # Hundreds of streams may come over one connection.
    ("grpc.max_concurrent_streams", 10_000),
)
_STOP_REASONS = {
    None: wire.NOT_FINISHED,
    "length": wire.MAX_TOKENS,
    "eos": wire.EOS_TOKEN,
    "time_limit": wire.TIME_LIMIT,
}

Context = grpc.aio.ServicerContext[Any, Any]


class GrpcDoor:
    """Serves in the running loop."""

    def __init__(self, reception: Reception, listen: str) -> None:
        self._reception = reception
        self._listen = listen
        self._server: grpc.aio.Server | None = None

    async def open(self) -> str:
        """Listen; answers host:port. OSError if the address is taken."""
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_Handlers(_Service(self._reception)),))
        tls = self._reception.config.tls
        try:
            if tls is None:
                port = server.add_insecure_port(self._listen)
            else:
                port = server.add_secure_port(self._listen, _credentials(tls))
        except RuntimeError:
            raise OSError(f"cannot listen on {self._listen}") from None
        await server.start()
        self._server = server
        return f"{host_and_port(self._listen)[0]}:{port}"

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(None)


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)


class _Handlers(grpc.GenericRpcHandler):
    """Notes when a call came before it is understood: of many that come together the last waits for all others."""

    def __init__(self, service: "_Service") -> None:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        self._served: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
            f"/{SERVICE}/{name}": (kind, method, request)
            for name, kind, method, request in (
                ("Generate", unary, service.generate, wire.BatchedGenerationRequest),
                ("GenerateStream", stream, service.generate_stream, wire.SingleGenerationRequest),
                ("Tokenize", unary, service.tokenize, wire.BatchedTokenizeRequest),
                ("ModelInfo", unary, service.model_info, wire.ModelInfoRequest),
            )
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        received_ns = time.perf_counter_ns()
        if handler_call_details.method not in self._served:
            return None
        kind, method, request = self._served[handler_call_details.method]
        handler: grpc.RpcMethodHandler[Any, Any] = kind(
            partial(method, received_ns), request.FromString, lambda message: message.SerializeToString()
        )
        return handler


class _Service:
    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._config = reception.config

    async def generate_stream(self, received_ns: int, request: Any, context: Context) -> None:
        ask = await self._understood("GenerateStream", request.request.text, request.params, context, received_ns)
        async with self._visiting(ask, context) as (visit, tokens):
            # Nobody reads a token before the early message is out: it must not look like the first one.
            if self._config.early_message:
                await context.write(_first(ask, request.params))
            await self._send(visit, tokens, request.params.response, context)

    async def generate(self, received_ns: int, request: Any, context: Context) -> Any:
        """Answers when all are finished; nothing is generated unless the whole batch is admitted."""
        asks = [
            await self._understood("Generate", one.text, request.params, context, received_ns)
            for one in request.requests
        ]
        async with contextlib.AsyncExitStack() as stack:
            visits = [await stack.enter_async_context(self._visiting(ask, context)) for ask in asks]
            responses = [await self._whole(*visit, request.params) for visit in visits]
        return wire.BatchedGenerationResponse(responses=responses)

    async def tokenize(self, received_ns: int, request: Any, context: Context) -> Any:
        await self._meet_fault("Tokenize", context)
        return wire.BatchedTokenizeResponse(responses=[_tokenized(one.text, request) for one in request.requests])

    async def model_info(self, received_ns: int, request: Any, context: Context) -> Any:
        await self._meet_fault("ModelInfo", context)
        longest = self._config.limits.max_total_tokens
        return wire.ModelInfoResponse(
            model_kind=wire.ModelInfoResponse.DECODER_ONLY, max_sequence_length=longest, max_new_tokens=longest - 1
        )

    @contextlib.asynccontextmanager
    async def _visiting(self, ask: Ask, context: Context) -> AsyncIterator[tuple[Visit, "asyncio.Queue[Token]"]]:
        """A visit and where its tokens come out; when the client goes away first, it is cancelled."""
        tokens: asyncio.Queue[Token] = asyncio.Queue()
        try:
            visit = self._reception.admit(ask, tokens.put_nowait)
        except TooLong as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Overloaded as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        code = "CANCELLED"
        try:
            yield visit, tokens
            code = "OK"
        finally:
            self._reception.leave(visit, code)

    async def _send(self, visit: Visit, tokens: "asyncio.Queue[Token]", wanted: Any, context: Context) -> None:
        """Pack as many tokens into each message as the options say; the last message says why it was the last."""
        packed: list[Token] = []
        while True:
            packed.append(await tokens.get())
            last = packed[-1]
            if last.end is None and len(packed) < self._config.tokens_per_message:
                continue
            message = _message(packed, wanted)
            if not self._config.early_message and last.index < len(packed):
                message.input_token_count = len(visit.ask.prompt)
            visit.sent(len(packed), time.perf_counter_ns())
            await context.write(message)
            if last.end is not None:
                return
            if self._config.empty_messages:
                await context.write(wire.GenerationResponse(generated_token_count=last.index + 1))
            packed = []

    async def _whole(self, visit: Visit, tokens: "asyncio.Queue[Token]", params: Any) -> Any:
        got = [await tokens.get()]
        while got[-1].end is None:
            got.append(await tokens.get())
        visit.sent(len(got), time.perf_counter_ns())
        message = _message(got, params.response)
        message.input_token_count = len(visit.ask.prompt)
        if params.response.input_text:
            message.text = visit.ask.text + message.text
        return message

    async def _understood(self, method: str, text: str, params: Any, context: Context, received_ns: int) -> Ask:
        """The Ask of a request; ends the call if there is a fault or a mistake in it."""
        await self._meet_fault(method, context)
        stopping = params.stopping
        metadata = dict(context.invocation_metadata() or ())
        ask = Ask(
            method=method,
            text=text,
            prompt=tuple(prompt_tokens(text, params.truncate_input_tokens, special=True)),
            max_new_tokens=stopping.max_new_tokens or _DEFAULT_NEW_TOKENS,
            received_ns=received_ns,
            min_new_tokens=stopping.min_new_tokens,
            time_limit=stopping.time_limit_millis / 1000 or None,
            correlation=str(metadata.get("x-correlation-id", "")),
        )
        mistake = _mistake(ask, params)
        if mistake:
            self._reception.refuse(ask, "validation", "INVALID_ARGUMENT")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, mistake)
        return ask

    async def _meet_fault(self, method: str, context: Context) -> None:
        fault = self._reception.meet_fault(method)
        if fault is not None:
            code = grpc.StatusCode.UNAVAILABLE if fault.kind == "unavailable" else grpc.StatusCode.INTERNAL
            await context.abort(code, f"Fault by command: {fault.kind}")


def _mistake(ask: Ask, params: Any) -> str | None:
    if ask.min_new_tokens > ask.max_new_tokens:
        return f"min_new_tokens {ask.min_new_tokens} is more than max_new_tokens {ask.max_new_tokens}"
    if params.sampling.temperature < 0 or not 0 <= params.sampling.top_p <= 1:
        return "temperature must not be negative, top_p must be between 0 and 1"
    if params.decoding.repetition_penalty < 0:
        return "repetition_penalty must not be negative"
    return None


def _first(ask: Ask, params: Any) -> Any:
    message = wire.GenerationResponse(input_token_count=len(ask.prompt))
    if params.response.input_text:
        message.text = ask.text
    if params.response.input_tokens:
        message.input_tokens.extend(wire.TokenInfo(text=token) for token in ask.prompt)
    return message


def _message(tokens: list[Token], wanted: Any) -> Any:
    words = [answer_word(token.request.id, token.index) for token in tokens]
    message = wire.GenerationResponse(
        generated_token_count=tokens[-1].index + 1, text="".join(words), stop_reason=_STOP_REASONS[tokens[-1].end]
    )
    if wanted.generated_tokens:
        logprob = -1.0 if wanted.token_logprobs else 0.0
        message.tokens.extend(wire.TokenInfo(text=word, logprob=logprob) for word in words)
    return message


def _tokenized(text: str, request: Any) -> Any:
    tokens = prompt_tokens(text, request.truncate_input_tokens, special=True)
    answer = wire.TokenizeResponse(token_count=len(tokens), tokens=tokens if request.return_tokens else None)
    if request.return_offsets:
        places = [(0, 0), *spans(text)][-len(tokens) :]
        answer.offsets.extend(wire.TokenizeResponse.Offset(start=start, end=end) for start, end in places)
    return answer
