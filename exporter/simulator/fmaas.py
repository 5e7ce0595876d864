"""fmaas.GenerationService, as a TGIS router or vLLM's TGIS adapter serves it, without the transport.

Simplified: stop sequences, sampling, penalties, tuned prefixes and adapters are read and change nothing.
"""

from collections.abc import Callable
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from exporter.pb import fmaas_pb2 as wire
from exporter.simulator import lies
from exporter.simulator.active_request import ActiveRequest, ParsedRequest, RequestHandler
from exporter.simulator.batcher import Overloaded, Token, TooLong
from exporter.simulator.faults import Fault
from exporter.simulator.tokenizer import answer_word, prompt_tokens, spans

SERVICE = "fmaas.GenerationService"
METHODS = ("Generate", "GenerateStream", "Tokenize", "ModelInfo")
_DEFAULT_NEW_TOKENS = 20
_STOP_REASONS = {
    None: wire.NOT_FINISHED,
    "length": wire.MAX_TOKENS,
    "eos": wire.EOS_TOKEN,
    "time_limit": wire.TIME_LIMIT,
}


class FmaasReply(Protocol):
    """Sends the answer of one call to its client."""

    def send(self, message: bytes, about_to: Callable[[], None]) -> None:
        """Send a message, and call `about_to` right before."""
        ...

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        """The call is over. When all messages are sent, the server calls `FmaasCall.leave`."""
        ...


class CallRefused(Exception):
    """The call cannot be served; `code` is the status, the message its details."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class FmaasCall:
    """One call of one of the METHODS, from its request to its end. Belongs to the thread of the servers."""

    def __init__(
        self, handler: RequestHandler, reply: FmaasReply, method: str, received_ns: int, correlation: str
    ) -> None:
        self._handler = handler
        self._config = handler.config
        self._reply = reply
        self._method = method
        self._received_ns = received_ns
        self._correlation = correlation
        self._fault: Fault | None = None
        self._active: list[ActiveRequest] = []
        self._got: dict[int, list[Token]] = {}

    def begin(self, message: bytes) -> None:
        """Answer the request, now or as its tokens come."""
        try:
            self._meet_fault()
            match self._method:
                case "GenerateStream":
                    self._stream(wire.SingleGenerationRequest.FromString(message))
                case "Generate":
                    self._generate(wire.BatchedGenerationRequest.FromString(message))
                case "Tokenize":
                    self._answer(_tokenized(wire.BatchedTokenizeRequest.FromString(message)))
                case _:
                    longest = self._config.limits.max_total_tokens
                    self._answer(wire.ModelInfoResponse(max_sequence_length=longest, max_new_tokens=longest - 1))
        except DecodeError as error:
            self._reply.end(grpc.StatusCode.INTERNAL, f"The request cannot be decoded: {error}")
        except CallRefused as refused:
            self._reply.end(refused.code, str(refused))

    def leave(self, code: str = "CANCELLED") -> None:
        """The call is over with that status, or (without one) the client went away."""
        for active in self._active:
            self._handler.leave(active, code)

    def _stream(self, request: Any) -> None:
        active = self._admit(request.request.text, request.params, self._on_stream_token)
        self._wanted = request.params.response
        if self._config.early_message:
            self._send(_first(active.parsed, request.params))

    def _on_stream_token(self, token: Token) -> None:
        """Pack as many tokens into each message as the options say; the last message says why it was the last."""
        active = self._active[0]
        packed = self._got[token.request.id]
        packed.append(token)
        if token.end is None and len(packed) < self._config.tokens_per_message:
            return
        message = _message(packed, self._wanted)
        if not self._config.early_message and token.index < len(packed):
            message.input_token_count = len(active.parsed.prompt)
        self._send(message, active, len(packed))
        packed.clear()
        if self._fault is not None and active.meet(self._fault, token.index + 1):
            code = self._fault.status or grpc.StatusCode.INTERNAL
            self._reply.end(code, f"Fault by command: {self._fault.kind}")
        elif token.end is not None:
            self._reply.end(grpc.StatusCode.OK)
        elif self._config.empty_messages:
            self._send(wire.GenerationResponse(generated_token_count=token.index + 1))

    def _generate(self, request: Any) -> None:
        """Answers when all are finished; nothing is generated unless the whole batch is admitted."""
        self._params = request.params
        for one in request.requests:
            self._admit(one.text, request.params, self._on_batch_token)
        if not request.requests:
            self._answer(wire.BatchedGenerationResponse())

    def _on_batch_token(self, token: Token) -> None:
        self._got[token.request.id].append(token)
        if not all(active.ended for active in self._active):
            return
        responses = [self._whole(active) for active in self._active]
        message = wire.BatchedGenerationResponse(responses=responses).SerializeToString()
        self._reply.send(message, self._note_all)
        self._reply.end(grpc.StatusCode.OK)

    def _note_all(self) -> None:
        for active in self._active:
            active.sent(len(self._got[active.request.id]))

    def _whole(self, active: ActiveRequest) -> Any:
        message = _message(self._got[active.request.id], self._params.response)
        message.input_token_count = len(active.parsed.prompt)
        if self._params.response.input_text:
            message.text = active.parsed.text + message.text
        return message

    def _answer(self, message: Any) -> None:
        self._send(message)
        self._reply.end(grpc.StatusCode.OK)

    def _send(self, message: Any, active: ActiveRequest | None = None, tokens: int = 0) -> None:
        kind = self._fault.kind if self._fault else None
        self._reply.send(lies.of_fmaas(kind, message), lambda: active.sent(tokens) if active else None)

    def _admit(self, text: str, params: Any, on_token: Callable[[Token], None]) -> ActiveRequest:
        parsed = self._understood(text, params)
        try:
            active = self._handler.admit(parsed, on_token)
        except TooLong as error:
            raise CallRefused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        except Overloaded as error:
            raise CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        self._active.append(active)
        self._got[active.request.id] = []
        return active

    def _understood(self, text: str, params: Any) -> ParsedRequest:
        stopping = params.stopping
        parsed = ParsedRequest(
            method=self._method,
            text=text,
            prompt=tuple(prompt_tokens(text, params.truncate_input_tokens, special=True)),
            max_new_tokens=stopping.max_new_tokens or _DEFAULT_NEW_TOKENS,
            received_ns=self._received_ns,
            min_new_tokens=stopping.min_new_tokens,
            time_limit=stopping.time_limit_millis / 1000 or None,
            correlation=self._correlation,
        )
        problem = _problem(parsed, params)
        if problem:
            self._handler.refuse(parsed, "validation", "INVALID_ARGUMENT")
            raise CallRefused(grpc.StatusCode.INVALID_ARGUMENT, problem)
        return parsed

    def _meet_fault(self) -> None:
        fault = self._handler.meet_fault(self._method)
        if fault is not None and fault.status is not None and fault.at is None:
            raise CallRefused(fault.status, f"Fault by command: {fault.kind}")
        self._fault = fault


def _problem(parsed: ParsedRequest, params: Any) -> str | None:
    if parsed.min_new_tokens > parsed.max_new_tokens:
        return f"min_new_tokens {parsed.min_new_tokens} is more than max_new_tokens {parsed.max_new_tokens}"
    if params.sampling.temperature < 0 or not 0 <= params.sampling.top_p <= 1:
        return "temperature must not be negative, top_p must be between 0 and 1"
    if params.decoding.repetition_penalty < 0:
        return "repetition_penalty must not be negative"
    return None


def _first(parsed: ParsedRequest, params: Any) -> Any:
    message = wire.GenerationResponse(input_token_count=len(parsed.prompt))
    if params.response.input_text:
        message.text = parsed.text
    if params.response.input_tokens:
        message.input_tokens.extend(wire.TokenInfo(text=token) for token in parsed.prompt)
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


def _tokenized(request: Any) -> Any:
    return wire.BatchedTokenizeResponse(responses=[_tokens_of(one.text, request) for one in request.requests])


def _tokens_of(text: str, request: Any) -> Any:
    tokens = prompt_tokens(text, request.truncate_input_tokens, special=True)
    answer = wire.TokenizeResponse(token_count=len(tokens), tokens=tokens if request.return_tokens else None)
    if request.return_offsets:
        places = [(0, 0), *spans(text)][-len(tokens) :]
        answer.offsets.extend(wire.TokenizeResponse.Offset(start=start, end=end) for start, end in places)
    return answer
