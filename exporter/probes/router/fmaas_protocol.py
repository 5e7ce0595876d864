"""`fmaas.GenerationService`: the TGIS router, and vLLM with its TGIS adapter."""

from dataclasses import replace
from typing import Any

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import fmaas_pb2 as pb
from exporter.plan.targets import Facts
from exporter.probes.router.grpc_calls import GrpcProtocol, UnaryReader, call, parsed
from exporter.probes.router.protocol import Ask
from exporter.probes.router.token_counts import AnswerTokens, Chunk, counted
from exporter.wire.http_codec import HttpRequest
from exporter.wire.message_framing import malformed

SERVICE = "/fmaas.GenerationService/"
SAMPLED = {"temperature", "top_k", "top_p", "typical_p"}
# The answer is not complete. Unknown reasons count as an end.
INCOMPLETE = (pb.NOT_FINISHED, pb.CANCELLED, pb.ERROR)


class FmaasProtocol(GrpcProtocol):
    """See `RouterProtocol`."""

    truncates = tokenizes = True

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._facts = Facts(protocol="fmaas", ranks=1, model=target.model_id)

    def facts(self, ask: Ask) -> Facts:
        """ModelInfo is optional: where it fails, the facts that it gave last still hold."""
        try:
            body = ask(self._call("ModelInfo", pb.ModelInfoRequest(model_id=self._target.model_id)))
            info = parsed(pb.ModelInfoResponse, body)
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE:
                raise self.unreachable(failure) from None
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

    def _call(self, rpc: str, message: Any, timeout: float | None = None) -> HttpRequest:
        return self.with_headers(call(SERVICE + rpc, message, timeout))

    def token_reader(self, workload: Workload) -> "GenerationReader":
        return GenerationReader(workload.decode_length)


class GenerationReader(UnaryReader):
    """Reads the answer of GenerateStream. It parses the messages after the end. `most`: how many tokens it can have."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__(most)
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
