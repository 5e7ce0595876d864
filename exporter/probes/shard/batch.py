"""One batch for a shard: its requests as bytes, its answers as facts. No request in here can end a shard."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from exporter.config.notation import counted
from exporter.config.target import Target
from exporter.config.workload import Parameters, Workload
from exporter.observation import Failure, Outcome, ServerTimings
from exporter.pb import generate_v2_pb2, generate_v3_pb2
from exporter.plan import shard_prompts
from exporter.plan.targets import Facts

PROTOCOLS: dict[str, ModuleType] = {"generate.v3": generate_v3_pb2, "generate.v2": generate_v2_pb2}
NANOSECONDS = 1e-9
# Two machines' seconds differ by less than this share.
CLOCKS_DIFFER = 0.001


@dataclass(frozen=True, slots=True)
class MergedAnswers:
    """All ranks' answers to one call: answered requests, their new tokens, and the ids that ended or go on."""

    answered: int
    tokens: int
    finished: frozenset[int]
    unfinished: frozenset[int]
    timings: ServerTimings | None


class ShardBatch:
    """One batch. `pb` is the module of the protocol."""

    def __init__(self, pb: ModuleType, batch: Any) -> None:
        self._pb = pb
        self._batch = batch
        self.id: int = batch.id
        self._unfinished = frozenset(request.id for request in batch.requests)

    @classmethod
    def build(
        cls, pb: ModuleType, target: Target, facts: Facts, workload: Workload, texts: Sequence[str], rng: random.Random
    ) -> "ShardBatch":
        """One request for each text, with one chunk and neutral parameters; see `workload.prompts`."""
        batch_size = len(texts)
        tokens = workload.sequence_length + workload.decode_length - 1 + facts.speculate
        batch = pb.Batch(
            id=shard_prompts.batch_id(rng),
            size=batch_size,
            max_tokens=batch_size * (workload.sequence_length + workload.decode_length),
        )
        reserved = target.kv_cache == "reserved_block" and not facts.requires_padding
        blocks, slots = shard_prompts.blocks_of_reserved(tokens, facts.block_size) if reserved else ([], [])
        for request_id, text in zip(shard_prompts.request_ids(batch_size, rng), texts, strict=True):
            request = batch.requests.add(
                id=request_id,
                inputs=text,
                # The server cuts the text to this length and never pads, so the length is exact.
                truncate=workload.sequence_length,
                parameters=pb.NextTokenChooserParameters(
                    **workload.parameters.model_dump(exclude={"top_n_tokens"}), seed=rng.getrandbits(63)
                ),
                stopping_parameters=pb.StoppingCriteriaParameters(
                    max_new_tokens=workload.decode_length, ignore_eos_token=True
                ),
                top_n_tokens=workload.parameters.top_n_tokens,
            )
            if facts.protocol == "generate.v3":
                request.input_chunks.chunks.add(text=text)
                request.add_special_tokens = True
                request.blocks.extend(blocks)
                request.slots.extend(slots)
        if reserved:
            batch.max_blocks = batch_size * len(blocks)
        return cls(pb, batch)

    @classmethod
    def asking(
        cls, pb: ModuleType, target: Target, facts: Facts, workload: Workload, words: Sequence[str], rng: random.Random
    ) -> "ShardBatch":
        """One request whose answer names its prompt's tokens. It ends at once, and is no larger than a probe."""
        values = {
            "sequence_length": min(shard_prompts.ASKED_TOKENS, workload.sequence_length),
            "decode_length": 1,
            "parameters": Parameters(),
        }
        batch = cls.build(pb, target, facts, workload.model_copy(update=values), [" ".join(words)], rng)
        batch._batch.requests[0].prefill_logprobs = True
        return batch

    def prefill_request(self) -> bytes:
        data: bytes = self._pb.PrefillRequest(batch=self._batch).SerializeToString()
        return data

    def decode_request(self) -> bytes:
        """The same for every step: a shard finds the batch by its id."""
        data: bytes = self._pb.DecodeRequest(batches=[self._pb.CachedBatch(id=self.id)]).SerializeToString()
        return data

    def filter_request(self, merged: MergedAnswers) -> bytes:
        keep = [request.id for request in self._batch.requests if request.id in merged.unfinished]
        data: bytes = self._pb.FilterBatchRequest(batch_id=self.id, request_ids=keep).SerializeToString()
        return data

    def prompt_pieces(self, answers: Sequence[bytes]) -> list[str]:
        """The texts of the prompt's tokens, where the shard names them. One rank does."""
        replies = [self._pb.PrefillResponse.FromString(data) for data in answers]
        return [text for answer in replies for one in answer.generations for text in one.prefill_tokens.texts]

    def merge(self, rpc: str, answers: Sequence[bytes], addresses: Sequence[str]) -> MergedAnswers:
        """Raises Failure(malformed) unless each unfinished request has one generation, and no other request has one."""
        response = getattr(self._pb, f"{rpc}Response")
        replies = [parsed(response, data, rpc, address) for data, address in zip(answers, addresses, strict=True)]
        generations = [generation for answer in replies for generation in answer.generations]
        answered = [generation.request_id for generation in generations]
        if strangers := set(answered) - self._unfinished:
            what = f"{counted(len(strangers), 'generation')} for requests that are not in the batch"
            malformed(rpc, addresses[0], what)
        if len(answered) != len(self._unfinished) or set(answered) != self._unfinished:
            what = f"{counted(len(answered), 'generation')} for {counted(len(self._unfinished), 'request')}"
            malformed(rpc, addresses[0], what)
        tokens = sum(len(generation.tokens.ids) for generation in generations)
        if rpc == "Prefill" and any(not generation.tokens.ids for generation in generations):
            malformed(rpc, addresses[0], "a request without a first token")
        finished = frozenset(
            generation.request_id for generation in generations if generation.HasField("generated_text")
        )
        self._unfinished -= finished
        goes_on = any(answer.HasField("batch") for answer in replies)
        if goes_on != bool(self._unfinished):
            unfinished = counted(len(self._unfinished), "request")
            what = f"{unfinished} unfinished, but the batch {'goes on' if goes_on else 'has ended'}"
            malformed(rpc, addresses[0], what)
        return MergedAnswers(len(answered), tokens, finished, self._unfinished, _slowest(replies))


def _slowest(answers: Sequence[Any]) -> ServerTimings | None:
    """The timings of the slowest rank; None where the shard fills in none (all 0)."""
    slowest = max(answers, key=lambda answer: answer.total_ns)
    if not slowest.total_ns:
        return None
    has_concat = "concat_ns" in slowest.DESCRIPTOR.fields_by_name and slowest.HasField("concat_ns")
    return ServerTimings(
        slowest.forward_ns * NANOSECONDS,
        slowest.decode_ns * NANOSECONDS,
        slowest.concat_ns * NANOSECONDS if has_concat else None,
        slowest.total_ns * NANOSECONDS,
    )


def believable(timings: ServerTimings | None, lasted: float) -> ServerTimings | None:
    """None where the server says that it took longer than the whole call lasted (seconds): nothing of it is true."""
    if timings is None:
        return None
    parts = (timings.forward, timings.decode, timings.concat, timings.total)
    longest = max((part for part in parts if part is not None), default=0.0)
    return timings if longest <= lasted * (1 + CLOCKS_DIFFER) else None


def parsed(message: Any, data: bytes, rpc: str, address: str) -> Any:
    try:
        return message.FromString(data)
    except Exception as error:  # protobuf's DecodeError lives in another module for each implementation
        malformed(rpc, address, f"an answer that is no {message.DESCRIPTOR.name} ({error})")


def malformed(rpc: str, address: str, what: str) -> NoReturn:
    raise Failure(Outcome.MALFORMED, "OK", f"{rpc} at {address}: {what}")
