"""`fmaas.GenerationService`: the TGIS router, and vLLM with its TGIS adapter. gRPC over our own connections.

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
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import fmaas_pb2 as pb
from exporter.plan.targets import Facts
from exporter.probes.router.hints import hinted
from exporter.probes.router.protocol import Ask, BodyReader, MetricsPage, RouterProtocol
from exporter.probes.router.server_errors import refused, shortened
from exporter.probes.router.token_counts import AnswerTokens, Chunk, counted
from exporter.wire.credentials import TlsContext
from exporter.wire.detect import NOT_GRPC
from exporter.wire.http_codec import End, Http2, HttpCodec, HttpRequest
from exporter.wire.message_framing import GrpcMessages, grpc_message, malformed
from exporter.wire.sockets import Endpoint, endpoint_of

SERVICE = "/fmaas.GenerationService/"
HEADERS = (("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "tgi-probe"))
# Bytes of an answer that is no gRPC. A message quotes its beginning.
LONGEST_ERROR = 4096
SAMPLED = {"temperature", "top_k", "top_p", "typical_p"}
# The answer is not complete. Unknown reasons count as an end.
INCOMPLETE = (pb.NOT_FINISHED, pb.CANCELLED, pb.ERROR)


class FmaasProtocol(RouterProtocol):
    """See `RouterProtocol`."""

    truncates = tokenizes = True

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tls = TlsContext(target.address, target.tls, "h2") if target.tls is not None else None
        self._plain = endpoint_of(target.address)
        self._has_answered = False
        self._headers = tuple(target.headers.items())
        self._secrets = Secrets(*secret_values(target.headers))
        self._facts = Facts(protocol="fmaas", ranks=1, model=target.model_id)

    def endpoint(self) -> Endpoint:
        return self._plain if self._tls is None else self._tls.applied_to(self._plain)

    def codec(self, endpoint: Endpoint) -> HttpCodec:
        return Http2(endpoint.authority, "http" if endpoint.tls is None else "https")

    def facts(self, ask: Ask) -> Facts:
        """ModelInfo is optional: where it fails, the facts that it gave last still hold."""
        try:
            body = ask(self._call("ModelInfo", pb.ModelInfoRequest(model_id=self._target.model_id)))
            info = parsed(pb.ModelInfoResponse, body)
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE:
                raise hinted(failure, "fmaas", self._tls is not None, self._has_answered) from None
            self._has_answered = True
            return replace(self._facts, page="silent" if failure.outcome is Outcome.TIMEOUT else "refused")
        self._has_answered = True
        self._facts = replace(
            self._facts, max_total_tokens=info.max_sequence_length or None, max_new_tokens=info.max_new_tokens or None
        )
        return self._facts

    def count_prompt(self, ask: Ask, text: str, workload: Workload) -> int | None:
        asked = pb.BatchedTokenizeRequest(model_id=self._target.model_id, requests=[pb.TokenizeRequest(text=text)])
        try:
            body = ask(self._call("Tokenize", asked))
            found = parsed(pb.BatchedTokenizeResponse, body).responses
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE:
                raise
            return None
        return found[0].token_count or None if found else None

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        length, parameters = workload.decode_length, workload.parameters
        sampling = decoding = None
        if parameters.do_sample:
            sampling = pb.SamplingParameters(**parameters.model_dump(include=SAMPLED), seed=seed)
        if parameters.repetition_penalty != 1:
            decoding = pb.DecodingParameters(repetition_penalty=parameters.repetition_penalty)
        single = pb.SingleGenerationRequest(
            model_id=self._target.model_id,
            request=pb.GenerationRequest(text=prompt),
            params=pb.Parameters(
                method=pb.SAMPLE if parameters.do_sample else pb.GREEDY,
                sampling=sampling,
                # There is no ignore_eos; equal bounds fix the length.
                stopping=pb.StoppingCriteria(max_new_tokens=length, min_new_tokens=length),
                decoding=decoding,
                truncate_input_tokens=workload.sequence_length,
            ),
        )
        return self._call("GenerateStream", single, workload.timeout)

    def token_reader(self, workload: Workload) -> "GenerationReader":
        return GenerationReader(workload.decode_length)

    def body_reader(self) -> BodyReader:
        return UnaryReader()

    def _call(self, rpc: str, message: Any, timeout: float | None = None) -> HttpRequest:
        request = call(rpc, message, timeout)
        return replace(request, headers=request.headers + self._headers)

    def without_secrets(self, failure: Failure) -> Failure:
        return Failure(failure.outcome, failure.code, self._secrets.hidden_cut(failure.detail))

    def explained(self, failure: Failure) -> Failure:
        return hinted(failure, "fmaas", self._tls is not None, has_answered=True)

    def metrics_page(self) -> MetricsPage | None:
        url = self._target.metrics_url
        return MetricsPage.of(url) if url is not None else None


def call(rpc: str, message: Any, timeout: float | None = None) -> HttpRequest:
    """The request of a gRPC call, with its `timeout` in seconds."""
    deadline = (("grpc-timeout", f"{min(99_999_999, max(1, round(timeout * 1000)))}m"),) if timeout is not None else ()
    return HttpRequest("POST", SERVICE + rpc, (*HEADERS, *deadline), grpc_message(message.SerializeToString()))


def parsed(message: Any, data: bytes) -> Any:
    """Raises Failure where the bytes are no such message."""
    try:
        return message.FromString(data)
    except Exception as error:  # protobuf's DecodeError lives in another module for each implementation
        raise malformed(f"an answer that is no {message.DESCRIPTOR.name} ({error})") from None


class UnaryReader:
    """Reads the answer to a call that is no stream: one message, and a status in the trailers."""

    complete = False

    def __init__(self) -> None:
        self._messages = GrpcMessages()
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
            return
        self.received += [(at, message) for message in self._messages.feed(data)]

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


class GenerationReader(UnaryReader):
    """Reads the answer of GenerateStream. It parses the messages after the end. `most`: how many tokens it can have."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._most = most

    def tokens(self) -> AnswerTokens:
        """A message may carry several tokens or none, by its count. The first one may come before prefill."""
        prompt: int | None = None
        chunks: list[Chunk] = []
        reason = pb.NOT_FINISHED
        for at, data in self.received:
            message = parsed(pb.GenerationResponse, data)
            prompt = message.input_token_count or prompt
            reason = message.stop_reason or reason
            last = message.stop_reason != pb.NOT_FINISHED
            chunks.append(Chunk(at, bool(message.text), so_far=message.generated_token_count or None, last=last))
        if reason == pb.TIME_LIMIT:
            raise Failure(Outcome.TIMEOUT, "OK", "the server's own time limit ended the answer")
        counts = [chunk.so_far for chunk in chunks if chunk.so_far]
        tokens = counted(chunks, counts, self._most, reason == pb.MAX_TOKENS)
        if reason in INCOMPLETE or not tokens.arrivals:
            what = pb.StopReason.Name(reason) if tokens.arrivals else "without a token"
            raise malformed(f"the stream ended {what}")
        return replace(tokens, prompt_tokens=prompt)

    def tokens_so_far(self) -> int:
        try:
            counts = [parsed(pb.GenerationResponse, data).generated_token_count for _, data in self.received]
            return max(counts, default=0)
        except Failure:
            return 0
