"""The gRPC services of vLLM and SGLang: what to send, and what the answers mean. Pure.

Only the RPCs that are named here are ever called: others of these services stop a server, or empty its caches.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from exporter.config.target import Kind
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import sglang_scheduler_pb2, vllm_engine_pb2, vllm_inference_pb2
from exporter.plan.words import WORDS
from exporter.probes.router.grpc_calls import UnaryReader, call, parsed
from exporter.probes.router.token_counts import AnswerTokens, Chunk, counted
from exporter.wire.http_codec import HttpRequest
from exporter.wire.message_framing import malformed

REASON = "given up by tgi-probe"


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of its model. Tokens; None where it does not say. `vocabulary`: the number of its ids."""

    model: str = ""
    max_total_tokens: int | None = None
    max_input_tokens: int | None = None
    vocabulary: int = 0
    special: frozenset[int] = frozenset()


class PromptForms(NamedTuple):
    """A prompt as text, and as token ids where the vocabulary is known."""

    text: str
    ids: Sequence[int]


class EngineLoad(NamedTuple):
    """The requests in one engine, of all clients."""

    running: int
    waiting: int


class EngineService(Protocol):
    """One service. `ids_only`: it takes no text."""

    name: str
    ids_only: bool

    def info(self) -> HttpRequest:
        """A call that costs nothing, and that only this service answers."""

    def read_info(self, body: bytes) -> EngineInfo:
        """Of the answer to `info`. Raises Failure."""

    def generate(
        self, prompt: PromptForms, workload: Workload, request_id: str, seed: int, rank: int | None, model: str
    ) -> HttpRequest:
        """`rank`: which data-parallel rank shall answer; None leaves that to the server."""

    def reader(self, workload: Workload) -> "EngineReader":
        """For the answer to `generate`."""

    def abort(self, request_ids: Sequence[str]) -> list[HttpRequest]:
        """The calls that end these requests."""

    def loads(self, rank: int | None) -> HttpRequest | None:
        """None where the service does not tell its load."""

    def read_loads(self, body: bytes) -> EngineLoad:
        """The sum over the ranks of the answer to `loads`. Raises Failure."""


class EngineReader(UnaryReader):
    """Reads a stream of tokens. It parses the messages after the end. `most`: how many tokens the answer can have."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__(most)
        self._most = most

    def seen(self) -> "StreamSeen":
        """Raises Failure where a message is none of this service."""
        raise NotImplementedError

    def tokens(self) -> AnswerTokens:
        """Raises Failure where the stream did not end as an answer does."""
        seen = self.seen()
        if seen.reason in ("abort", "aborted"):
            raise malformed("the server aborted the request")
        if seen.reason == "error":
            raise Failure(Outcome.REJECTED, "OK", "the server ended the stream with an error")
        counts = [chunk.so_far for chunk in seen.chunks if chunk.so_far]
        tokens = counted(seen.chunks, [*counts, *seen.totals], self._most, seen.reason == "length")
        if not seen.reason or not tokens.arrivals:
            raise malformed(f"the stream ended {'without its last message' if tokens.arrivals else 'without a token'}")
        return AnswerTokens(tokens.arrivals, seen.prompt_tokens, tokens.estimated, seen.cached_tokens)

    def tokens_so_far(self) -> int:
        try:
            return max((chunk.so_far or 0 for chunk in self.seen().chunks), default=0)
        except Failure:
            return 0


class StreamSeen(NamedTuple):
    """What the messages of a stream say. `reason`: why it ended, empty where it did not. `totals`: counts of the whole
    answer. `cached_tokens`: those of the prompt that the server's prefix cache held; None where it does not say.
    """

    chunks: list[Chunk]
    reason: str
    totals: list[int]
    prompt_tokens: int | None
    cached_tokens: int | None


class ChunkReader(EngineReader):
    """The streams of VllmEngine (each chunk counts its own tokens) and of SglangScheduler (all so far)."""

    def __init__(self, message: Any, cumulative: bool, most: int | None) -> None:
        super().__init__(most)
        self._message, self._cumulative = message, cumulative

    def seen(self) -> StreamSeen:
        chunks: list[Chunk] = []
        reason, totals, prompt, cached, so_far = "", list[int](), 0, 0, 0
        for at, data in self.received:
            message = parsed(self._message, data)
            kind = message.WhichOneof("response")
            if kind is None:
                continue
            part = getattr(message, kind)
            prompt, cached = part.prompt_tokens or prompt, max(cached, part.cached_tokens)
            if kind == "complete":
                reason = part.finish_reason or "unnamed"
                totals = self._of_complete(part, so_far)
                chunks.append(Chunk(at, False, last=True))
                continue
            count = part.completion_tokens or len(part.token_ids)
            grown = count > so_far if self._cumulative else count > 0
            so_far = max(so_far, count) if self._cumulative else so_far + count
            chunks.append(Chunk(at, grown, so_far=so_far or None))
        return StreamSeen(chunks, reason, totals, prompt or None, cached)

    def _of_complete(self, complete: Any, so_far: int) -> list[int]:
        """A `complete` repeats the last tokens, or counts all of them. Alone it has the whole answer."""
        count = max(complete.completion_tokens, len(complete.output_ids))
        return [count] if count and (self._cumulative or not so_far) else []


class VllmEngine:
    """`vllm serve --grpc`. See `EngineService`."""

    name = "vllm.grpc.engine.VllmEngine"
    ids_only = False
    _pb: Any = vllm_engine_pb2

    def _call(self, rpc: str, message: Any, timeout: float | None = None, request_id: str = "") -> HttpRequest:
        return call(f"/{self.name}/{rpc}", message, timeout, request_id)

    def info(self) -> HttpRequest:
        return self._call("GetModelInfo", self._pb.GetModelInfoRequest())

    def read_info(self, body: bytes) -> EngineInfo:
        info = parsed(self._pb.GetModelInfoResponse, body)
        return EngineInfo(
            info.served_model_name or info.model_path,
            max(0, info.max_context_length) or None,
            max(0, info.max_req_input_len) or None,
            max(0, info.vocab_size),
            frozenset((*info.eos_token_ids, info.pad_token_id, info.bos_token_id)),
        )

    def generate(
        self, prompt: PromptForms, workload: Workload, request_id: str, seed: int, rank: int | None, model: str
    ) -> HttpRequest:
        given = self._pb.TokenizedInput(original_text=prompt.text, input_ids=prompt.ids) if prompt.ids else None
        request = self._pb.GenerateRequest(
            request_id=request_id,
            tokenized=given,
            sampling_params=self._sampling(workload, seed, cut=given is None),
            stream=True,
            data_parallel_rank=rank,
        )
        if given is None:
            request.text = prompt.text
        return self._call("Generate", request, workload.timeout, request_id)

    def _sampling(self, workload: Workload, seed: int, cut: bool) -> Any:
        length, parameters = workload.decode_length, workload.parameters
        sampled = parameters.do_sample
        return self._pb.SamplingParams(
            temperature=parameters.temperature if sampled else 0.0,
            top_p=parameters.top_p if sampled else 1.0,
            top_k=parameters.top_k if sampled else 0,
            repetition_penalty=parameters.repetition_penalty,
            max_tokens=length,
            min_tokens=length,
            ignore_eos=True,
            n=1,
            seed=seed if sampled else None,
            truncate_prompt_tokens=workload.sequence_length if cut else None,
        )

    def reader(self, workload: Workload) -> EngineReader:
        return ChunkReader(self._pb.GenerateResponse, False, workload.decode_length)

    def abort(self, request_ids: Sequence[str]) -> list[HttpRequest]:
        return [self._call("Abort", self._pb.AbortRequest(request_ids=request_ids))]

    def loads(self, rank: int | None) -> HttpRequest | None:
        return self._call("GetLoads", self._pb.GetLoadsRequest(dp_rank=rank))

    def read_loads(self, body: bytes) -> EngineLoad:
        loads = parsed(self._pb.GetLoadsResponse, body).loads
        if not loads:
            raise malformed("GetLoads names no load, which yield_to_users goes by; set metrics_url")
        return EngineLoad(sum(load.num_running_reqs for load in loads), sum(load.num_waiting_reqs for load in loads))


class SglangScheduler(VllmEngine):
    """SGLang's scheduler. See `EngineService`."""

    name = "sglang.grpc.scheduler.SglangScheduler"
    ids_only = True
    _pb = sglang_scheduler_pb2

    def _sampling(self, workload: Workload, seed: int, cut: bool) -> Any:
        length, parameters = workload.decode_length, workload.parameters
        sampled = parameters.do_sample
        return self._pb.SamplingParams(
            temperature=parameters.temperature if sampled else 0.0,
            top_p=parameters.top_p if sampled else 1.0,
            top_k=min(parameters.top_k or -1, 2**31 - 1) if sampled else -1,  # -1: all
            repetition_penalty=parameters.repetition_penalty,
            max_new_tokens=length,
            min_new_tokens=length,
            ignore_eos=True,
            n=1,
        )

    def reader(self, workload: Workload) -> EngineReader:
        return ChunkReader(self._pb.GenerateResponse, True, workload.decode_length)

    def abort(self, request_ids: Sequence[str]) -> list[HttpRequest]:
        return [self._call("Abort", self._pb.AbortRequest(request_id=one, reason=REASON)) for one in request_ids]


class InferenceReader(EngineReader):
    """The streams of vllm.Inference: each message counts its own tokens, and the first may have none."""

    def seen(self) -> StreamSeen:
        finish_info = vllm_inference_pb2.FinishInfo
        chunks: list[Chunk] = []
        reason, totals, prompt, so_far = "", list[int](), 0, 0
        for at, data in self.received:
            message = parsed(vllm_inference_pb2.GenerateResponse, data)
            prompt = message.prompt_info.num_prompt_tokens or prompt
            output = message.outputs
            so_far += output.num_tokens
            last = output.finish_info.finish_reason != finish_info.NOT_FINISHED
            if last:
                code = output.finish_info.finish_reason
                known = finish_info.FinishReason.values()
                reason = finish_info.FinishReason.Name(code).lower() if code in known else "unnamed"
                totals = [output.finish_info.num_output_tokens] if output.finish_info.num_output_tokens else []
            chunks.append(Chunk(at, output.num_tokens > 0, so_far=so_far or None, last=last))
        return StreamSeen(chunks, reason, totals, prompt or None, None)


class VllmInference:
    """vLLM's own service. See `EngineService`. Read in its published files only.

    `name`: older builds have the same messages under another one.
    """

    ids_only = False
    older = "vllm.Generate"

    def __init__(self, name: str = "vllm.Inference") -> None:
        self.name = name

    def info(self) -> HttpRequest:
        return call("/vllm.Control/GetModelInfo", vllm_inference_pb2.GetModelInfoRequest())

    def read_info(self, body: bytes) -> EngineInfo:
        info = parsed(vllm_inference_pb2.GetModelInfoResponse, body)
        return EngineInfo(info.served_model_name or info.model_id)

    def generate(
        self, prompt: PromptForms, workload: Workload, request_id: str, seed: int, rank: int | None, model: str
    ) -> HttpRequest:
        pb, length, parameters = vllm_inference_pb2, workload.decode_length, workload.parameters
        sampled = parameters.do_sample
        request = pb.GenerateRequest(
            request_id=request_id,
            model=model,
            text=prompt.text,
            temperature=parameters.temperature if sampled else 0.0,
            sampling=pb.SamplingParameters(top_k=parameters.top_k, top_p=parameters.top_p, seed=seed)
            if sampled
            else None,
            decoding=pb.DecodingParameters(repetition_penalty=parameters.repetition_penalty)
            if parameters.repetition_penalty != 1
            else None,
            stopping=pb.StoppingCriteria(max_new_tokens=length, min_new_tokens=length, ignore_eos=True),
            response=pb.ResponseOptions(output_text=False),
            kv=pb.KvOptions(bypass_prefix_cache=workload.prompt_cache == "miss"),
            truncate_prompt_tokens=workload.sequence_length,
        )
        sent = call(f"/{self.name}/GenerateStream", request, workload.timeout, request_id)
        return sent if rank is None else with_metadata(sent, "x-data-parallel-rank", str(rank))

    def reader(self, workload: Workload) -> EngineReader:
        return InferenceReader(workload.decode_length)

    def abort(self, request_ids: Sequence[str]) -> list[HttpRequest]:
        return [call("/vllm.Control/Abort", vllm_inference_pb2.AbortRequest(request_ids=request_ids))]

    def loads(self, rank: int | None) -> HttpRequest | None:
        return None

    def read_loads(self, body: bytes) -> EngineLoad:
        raise NotImplementedError


def with_metadata(request: HttpRequest, key: str, value: str) -> HttpRequest:
    return HttpRequest(request.method, request.path, (*request.headers, (key, value)), request.body, request.request_id)


def services(kind: Kind) -> tuple[EngineService, ...]:
    """Those that a target of this kind may speak."""
    return (VllmEngine(), VllmInference()) if kind == "vllm" else (SglangScheduler(),)


def token_ids(text: str, vocabulary: int, special: frozenset[int], most: int) -> list[int]:
    """An id for each of our words, at most `most`: the same word has the same id, and none is a special one.

    Special tokens are at the ends of a vocabulary or have been named, so the ids are from its middle half.
    """
    known = _ids_of_words(vocabulary, special)
    return [known[word] for word in text.split(" ")[:most]]


@functools.lru_cache(maxsize=16)
def _ids_of_words(vocabulary: int, special: frozenset[int]) -> dict[str, int]:
    """Raises Failure where the vocabulary has none to spare."""
    usable = [number for number in range(vocabulary // 4, vocabulary * 3 // 4) if number not in special]
    if not usable:
        raise Failure(Outcome.REFUSED, "REFUSED", f"the server names a vocabulary of {vocabulary} ids: too few")
    step = max(1, len(usable) // len(WORDS))
    return {word: usable[number * step % len(usable)] for number, word in enumerate(WORDS)}
