"""`fmaas.GenerationService`: the TGIS router, and vLLM through its TGIS adapter. gRPC, spoken over our own connections.

Why not with grpcio: its instants are taken where its threads or its event loop get to a message, and lie 0.6 ms
behind the server's record with one stream, 1.2 to 2.6 ms with 64; see `line`. What gRPC needs beyond HTTP/2 is
little: a prefix for each message, a status in the trailers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from exporter.analysis import statuses
from exporter.config import notation
from exporter.config.target import Target, Tls
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import fmaas_pb2 as pb
from exporter.plan.targets import Facts
from exporter.probes.router.hints import hinted
from exporter.probes.router.protocol import Ask, BodyReader, Ended, MetricsPage, Told
from exporter.probes.router.server_errors import refused, shortened
from exporter.probes.router.token_counts import Chunk, counted
from exporter.wire.addresses import Addresses
from exporter.wire.credentials import TlsContext
from exporter.wire.detect import NOT_GRPC
from exporter.wire.http_codec import End, Http1, Http2, HttpCodec, HttpRequest
from exporter.wire.message_framing import FramingError, GrpcMessages, grpc_message, steps
from exporter.wire.sockets import Endpoint

SERVICE = "/fmaas.GenerationService/"
HEADERS = (("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "tgi-probe"))
# Bytes of an answer that is no gRPC, of which the beginning is told.
LONGEST_ERROR = 4096
# The answer is not complete. A reason that we do not know yet is taken for an end like others.
INCOMPLETE = (pb.NOT_FINISHED, pb.CANCELLED, pb.ERROR)


class FmaasProtocol:
    """See `RouterProtocol`."""

    truncates = True

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tls = TlsContext(target.address, target.tls, "h2") if target.tls is not None else None
        self._addresses: Addresses | None = None
        if not target.address.startswith("unix:"):
            host, _, port = target.address.rpartition(":")
            self._addresses = Addresses(host.strip("[]"), int(port))
        self._met = False
        self._facts = Facts(protocol="fmaas", ranks=1, model=target.model_id)

    def endpoint(self) -> Endpoint:
        known = self._addresses
        if known is None:
            return Endpoint(path=self._target.address.removeprefix("unix://").removeprefix("unix:"))
        context = self._tls.context() if self._tls else None
        name = self._target.tls.server_name or "" if self._target.tls else ""
        return Endpoint(known.host, known.port, tls=context, server_name=name, addresses=known)

    def codec(self, endpoint: Endpoint) -> HttpCodec:
        return Http2(endpoint.authority, "http" if endpoint.tls is None else "https")

    def warming(self) -> HttpRequest | None:
        return None  # HTTP/2 has its ping

    def facts(self, ask: Ask) -> Facts:
        """Nothing of ModelInfo is needed: however it fails, the probes will tell. Then what it said last holds."""
        try:
            body = ask(call("ModelInfo", pb.ModelInfoRequest(model_id=self._target.model_id)))
            info = parsed(pb.ModelInfoResponse, body)
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE:
                raise hinted(failure, "fmaas", self._tls is not None, self._met) from None
            self._met = True
            return replace(self._facts, page="silent" if failure.outcome is Outcome.TIMEOUT else "refused")
        self._met = True
        self._facts = replace(
            self._facts,
            max_total_tokens=info.max_sequence_length or None,
            max_new_tokens=info.max_new_tokens or None,
        )
        return self._facts

    def needs_facts(self) -> bool:
        return False

    def tokenize(self, ask: Ask, text: str) -> int | None:
        requests = [pb.TokenizeRequest(text=text)]
        try:
            body = ask(call("Tokenize", pb.BatchedTokenizeRequest(model_id=self._target.model_id, requests=requests)))
            found = parsed(pb.BatchedTokenizeResponse, body).responses
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE:
                raise
            return None
        return found[0].token_count or None if found else None

    def count(self, ask: Ask, text: str, workload: Workload) -> int | None:
        return None  # each stream has it

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        length = workload.decode_length
        single = pb.SingleGenerationRequest(
            model_id=self._target.model_id,
            request=pb.GenerationRequest(text=prompt),
            params=pb.Parameters(
                method=pb.SAMPLE if workload.parameters.do_sample else pb.GREEDY,
                sampling=_sampling(workload, seed),
                # There is no ignore_eos: the least and the most together fix the length.
                stopping=pb.StoppingCriteria(max_new_tokens=length, min_new_tokens=length),
                decoding=_decoding(workload),
                truncate_input_tokens=workload.sequence_length,
            ),
        )
        return call("GenerateStream", single, workload.timeout)

    def answer(self, workload: Workload) -> "GenerationReader":
        return GenerationReader(workload.decode_length)

    def asks_less(self, ends: Sequence[Ended]) -> bool:
        return False

    def forget(self) -> None:
        """Every server is asked the same."""

    def whole(self) -> BodyReader:
        return UnaryReader()

    def discreet(self, failure: Failure) -> Failure:
        return failure  # a certificate's key never leaves this machine

    def explained(self, failure: Failure) -> Failure:
        return hinted(failure, "fmaas", self._tls is not None, met=True)

    def metrics(self) -> MetricsPage | None:
        url = self._target.metrics_url
        return metrics_place(url, Tls() if url.startswith("https") else None) if url is not None else None


def metrics_place(url: str, tls: Tls | None, headers: tuple[tuple[str, str], ...] = ()) -> MetricsPage:
    """Where a metrics URL points to. Raises Failure where certificates cannot be read."""
    parts = notation.split_url(url, "metrics_url")
    secure = parts.scheme == "https"
    context = TlsContext(url, tls or Tls(), "http/1.1").context() if secure else None
    endpoint = Endpoint(
        parts.hostname or "",
        parts.port or (443 if secure else 80),
        tls=context,
        server_name=(tls.server_name or "") if tls else "",
    )
    return MetricsPage(endpoint, Http1(endpoint.authority), HttpRequest("GET", parts.path or "/", headers))


def call(rpc: str, message: Any, timeout: float | None = None) -> HttpRequest:
    """One gRPC call; `timeout` in seconds travels with it."""
    deadline = (("grpc-timeout", f"{min(99_999_999, max(1, round(timeout * 1000)))}m"),) if timeout is not None else ()
    return HttpRequest("POST", SERVICE + rpc, (*HEADERS, *deadline), grpc_message(message.SerializeToString()))


def parsed(message: Any, data: bytes) -> Any:
    """Raises Failure where the bytes are no such message."""
    try:
        return message.FromString(data)
    except Exception as error:  # protobuf's DecodeError lives in another module for each implementation
        what = f"an answer that is no {message.DESCRIPTOR.name} ({error})"
        raise Failure(Outcome.MALFORMED, "OK", what) from None


def _sampling(workload: Workload, seed: int) -> pb.SamplingParameters | None:
    parameters = workload.parameters
    if not parameters.do_sample:
        return None
    return pb.SamplingParameters(
        temperature=parameters.temperature,
        top_k=parameters.top_k,
        top_p=parameters.top_p,
        typical_p=parameters.typical_p,
        seed=seed,
    )


def _decoding(workload: Workload) -> pb.DecodingParameters | None:
    penalty = workload.parameters.repetition_penalty
    return pb.DecodingParameters(repetition_penalty=penalty) if penalty != 1 else None


class UnaryReader:
    """The answer to a call that is no stream: one message, and a status in the trailers."""

    complete = False

    def __init__(self) -> None:
        self._messages = GrpcMessages()
        self._early: Mapping[str, str] = {}
        self._foreign: tuple[str, str] | None = None  # of an answer that is no gRPC: how it ends, and what it says
        self._page = b""
        self.received: list[tuple[float, bytes]] = []

    @property
    def content(self) -> bytes:
        return self.received[0][1] if self.received else b""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._early = headers  # an answer without a message has its trailers here
        kind = shortened(headers.get("content-type", "")).partition(";")[0]
        if "grpc-status" in headers or (status == 200 and (not kind or kind.lower().startswith("application/grpc"))):
            return
        if status == 200:
            self._foreign = "OK", f"the server answers with {kind} {NOT_GRPC}"
            return
        where = f", a redirect to {shortened(headers['location'])}" if "location" in headers else ""
        self._foreign = statuses.grpc_code_of_http(status), f"HTTP status {status} {NOT_GRPC}{where}"

    def body(self, at: float, data: bytes) -> None:
        if self._foreign is not None:
            self._page += data[: LONGEST_ERROR - len(self._page)]
            return
        try:
            self.received += [(at, message) for message in self._messages.feed(data)]
        except FramingError as error:
            raise Failure(Outcome.MALFORMED, "OK", str(error)) from None

    def end(self, at: float, end: End) -> None:
        if self._foreign is not None and end.reset is None:
            code, said = self._foreign
            outcome = Outcome.MALFORMED if code == "OK" else statuses.of_grpc(code)
            raise Failure(outcome, code, f"{said}: {refused(500, self._page).detail}" if self._page else said)
        if end.reset is not None:
            code, said = (
                statuses.grpc_code_of_reset(end.reset),
                f"the server reset the stream (HTTP/2 error {end.reset})",
            )
        else:
            told = end.trailers if "grpc-status" in end.trailers else self._early
            code = statuses.grpc_code(told.get("grpc-status", ""))
            said = shortened(unquote(told.get("grpc-message", ""))) or code
            if "grpc-status" not in told:
                said = "the answer ended without trailers, which hold the status; does a proxy drop them?"
        if code != "OK":
            raise Failure(statuses.of_grpc(code, said), code, said)
        if not self._messages.complete or not self.received:
            raise Failure(Outcome.MALFORMED, "OK", "the answer ended inside a message")


class GenerationReader(UnaryReader):
    """The answer of GenerateStream. Messages are kept as bytes and understood after the end. `most`: how many tokens
    it can have.
    """

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._most = most

    def told(self, sent: float) -> Told:
        """A message may carry several tokens or none: the count so far says it. The first one may come before
        prefill.
        """
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
        reading = counted(
            chunks, [chunk.so_far for chunk in chunks if chunk.so_far], self._most, reason == pb.MAX_TOKENS
        )
        found = steps(sent, reading.arrivals)
        if reason in INCOMPLETE or not found:
            what = pb.StopReason.Name(reason) if found else "without a token"
            raise Failure(Outcome.MALFORMED, "OK", f"the stream ended {what}")
        return Told(found, prompt, reading.estimated)

    def so_far(self) -> int:
        try:
            counts = [parsed(pb.GenerationResponse, data).generated_token_count for _, data in self.received]
            return max(counts, default=0)
        except Failure:
            return 0
