"""The batches that one rank keeps, and what each call does to them: state only, no clock, no I/O, no grpc.

A wrong call that a real shard survives raises ValueError or IndexError here. One that ends it raises RuntimeError; the
caller still gets an answer, unless it is a Crash.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from exporter.simulator.kv_contents import KvContents, extended


class Crash(RuntimeError):
    """Ends the process at once: no call is answered, the connections drop."""


@dataclass(frozen=True)
class Prompt:
    """What the caller asked for one request, already tokenised. `cached_tokens` need no computing.

    `text_tokens` are those of the whole text, before it was truncated.
    """

    request_id: int
    tokens: tuple[str, ...]
    max_new_tokens: int
    cached_tokens: int = 0
    blocks: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    has_parameters: bool = True
    prefill_logprobs: bool = False
    top_n_tokens: int = 0
    text_tokens: int = 0
    top_k: int = 0


@dataclass(frozen=True)
class CachedSequence:
    """One request in a cached batch. `words` are its answer so far where that depends on `contents`, at `slots`."""

    prompt: Prompt
    generated: int = 0
    words: tuple[str, ...] = ()
    contents: KvContents | None = None
    slots: Sequence[int] = ()

    @property
    def context(self) -> int:
        return len(self.prompt.tokens) + self.generated

    @property
    def entering(self) -> int:
        """The tokens that the next pass computes for it: all of a fresh prompt, then one."""
        return 1 if self.generated else len(self.prompt.tokens)

    @property
    def finished(self) -> bool:
        return self.generated >= self.prompt.max_new_tokens


@dataclass(frozen=True)
class ServerBatch:
    """Requests which advance together."""

    id: int
    sequences: tuple[CachedSequence, ...]

    @property
    def size(self) -> int:
        return len(self.sequences)


@dataclass(frozen=True)
class SequenceStep:
    """What one request got in one call: its sequence after the call and the number of new tokens."""

    sequence: CachedSequence
    new_tokens: int
    prefilled: bool


@dataclass(frozen=True)
class ModelLimits:
    """What the model and its memory allow. `speculate` is the number of guessed tokens a step may add to its one.

    `kv_contents`: answers depend on what the KV cache holds (see `kv_contents`).
    """

    paged: bool = False
    allocates_blocks: bool = False
    block_size: int = 16
    max_positions: int = 8192
    max_batch_tokens: int = 100_000
    vocabulary: int = 128_256
    speculate: int = 0
    seed: int = 0
    kv_contents: bool = False

    @property
    def shares_cache(self) -> bool:
        """Whether callers say where in one cache each token goes."""
        return self.paged and not self.allocates_blocks


@dataclass
class BatchCache:
    """The cache of one rank: kept until cleared, decoded to the end or replaced; nothing ever expires."""

    limits: ModelLimits
    kept: dict[int, ServerBatch] = field(default_factory=dict)
    blocks_written: set[int] = field(default_factory=set)
    clear_all_calls: int = 0
    contents: KvContents | None = None

    def __post_init__(self) -> None:
        if self.limits.kv_contents and self.limits.shares_cache:
            self.contents = KvContents(self.limits.max_batch_tokens)

    def steps_of(self, batch_ids: Sequence[int]) -> int:
        """The number of the Decode that comes next for the newest of these batches, from 1; 0 where none is kept."""
        kept = [self.kept[batch_id] for batch_id in batch_ids if batch_id in self.kept]
        return max((sequence.generated for batch in kept for sequence in batch.sequences), default=0)

    def prolong(self) -> None:
        """Let every kept batch go on for one step more than was asked for."""
        for batch_id, batch in self.kept.items():
            longer = [
                replace(one, prompt=replace(one.prompt, max_new_tokens=one.prompt.max_new_tokens + 1))
                for one in batch.sequences
            ]
            self.kept[batch_id] = replace(batch, sequences=tuple(longer))

    def admit(self, batch_id: int, prompts: Sequence[Prompt], size: int, cached_id: int | None = None) -> ServerBatch:
        """Check a Prefill and make its batch, after the cached one if it names one. `advance` keeps it."""
        if size != len(prompts):
            raise RuntimeError(f"Batch says size {size} but holds {len(prompts)} requests")
        if not prompts:
            raise ValueError("Batch must hold at least one request")
        for prompt in prompts:
            if not self.limits.paged and not prompt.has_parameters:
                raise ValueError(f"Request {prompt.request_id} has no parameters: temperature 0 is not allowed")
            if len(prompt.tokens) > self.limits.max_positions:
                raise IndexError("index out of range in self")
            self._look_up_likely_tokens(prompt)
        # A padded model cannot mix prefill and decode, and ignores cached_batch.
        joins = cached_id is not None and self.limits.paged
        earlier = self._take(cached_id).sequences if cached_id is not None and joins else ()
        fresh = tuple(map(self._placed, prompts, self._write_blocks(prompts)))
        batch = ServerBatch(cached_id if cached_id is not None and joins else batch_id, earlier + fresh)
        self._reserve(batch)
        return batch

    def take(self, batch_ids: Sequence[int]) -> ServerBatch:
        """Take the batches of a Decode out and join them under the first one's id."""
        if not batch_ids:
            raise ValueError("Must provide at least one batch")
        taken = [self._take(batch_id) for batch_id in batch_ids]
        joined = ServerBatch(taken[0].id, tuple(sequence for batch in taken for sequence in batch.sequences))
        if any(sequence.context > self.limits.max_positions for sequence in joined.sequences):
            raise IndexError("index out of range in self")
        return joined

    def advance(self, batch: ServerBatch) -> tuple[list[SequenceStep], ServerBatch | None]:
        """Give every request its tokens, one for a fresh prompt; the batch is kept unless all are finished.

        Requests which are finished stay in a batch with others that are not: taking them out is FilterBatch's work.
        """
        steps = [self._advanced(sequence) for sequence in batch.sequences]
        if all(step.sequence.finished for step in steps):
            return steps, None
        after = ServerBatch(batch.id, tuple(step.sequence for step in steps))
        self.kept[batch.id] = after
        return steps, after

    def filter(self, batch_id: int, request_ids: Sequence[int]) -> ServerBatch:
        """Keep only these requests of a batch, in the given order. After an error the batch is gone."""
        batch = self._take(batch_id)
        if not request_ids:
            raise ValueError("Batch must have at least one request")
        by_id = {sequence.prompt.request_id: sequence for sequence in batch.sequences}
        missing = [request_id for request_id in request_ids if request_id not in by_id]
        if missing:
            raise ValueError(f"Request ID {missing[0]} not found in batch {batch_id}.")
        self.kept[batch_id] = ServerBatch(batch_id, tuple(by_id[request_id] for request_id in request_ids))
        return self.kept[batch_id]

    def clear(self, batch_id: int | None) -> None:
        """Forget one batch, or every one if no id is given. An unknown id is fine."""
        if batch_id is None:
            self.clear_all_calls += 1
            self.kept.clear()
        else:
            self.kept.pop(batch_id, None)

    def reserved_tokens(self, batch: ServerBatch) -> int:
        """KV cache this batch may grow to, in tokens."""
        if self.limits.paged:
            return sum(self._blocks(sequence.prompt) for sequence in batch.sequences) * self.limits.block_size
        wanted = [len(sequence.prompt.tokens) + sequence.prompt.max_new_tokens for sequence in batch.sequences]
        return max(wanted) * len(wanted)

    def _tokens(self, prompt: Prompt) -> int:
        """The tokens of one request that need a place in a paged cache: the last one generated needs none."""
        return len(prompt.tokens) + prompt.max_new_tokens - 1 + self.limits.speculate

    def _blocks(self, prompt: Prompt) -> int:
        return math.ceil(self._tokens(prompt) / self.limits.block_size)

    def _look_up_likely_tokens(self, prompt: Prompt) -> None:
        """A paged model does not survive a top_k above its vocabulary, a padded one no such top_n_tokens."""
        name, wanted = ("top_k", prompt.top_k) if self.limits.paged else ("top_n_tokens", prompt.top_n_tokens)
        if wanted > self.limits.vocabulary:
            raise Crash(f"selected index k out of range: {name} {wanted}, vocabulary {self.limits.vocabulary}")

    def _take(self, batch_id: int) -> ServerBatch:
        if batch_id not in self.kept:
            raise ValueError(f"Batch ID {batch_id} not found in cache.")
        return self.kept.pop(batch_id)

    def _advanced(self, sequence: CachedSequence) -> SequenceStep:
        prefilled = sequence.generated == 0
        accepted = 0
        if self.limits.speculate and not prefilled:
            # Drawn from the request and not from a running generator, so that all ranks agree whatever ran before.
            draw = random.Random(f"{self.limits.seed} {sequence.prompt.request_id} {sequence.generated}")
            accepted = draw.randint(0, self.limits.speculate)
        left = max(1, sequence.prompt.max_new_tokens - sequence.generated)
        tokens = min(1 + accepted, left)
        words = sequence.words
        if sequence.contents is not None and not sequence.finished:  # a finished one has no places left
            prompt = sequence.prompt
            words = extended(sequence.contents, sequence.slots, prompt.tokens, prompt.cached_tokens, words, tokens)
        after = replace(sequence, generated=sequence.generated + tokens, words=words)
        return SequenceStep(after, tokens, prefilled)

    def _placed(self, prompt: Prompt, slots: Sequence[int]) -> CachedSequence:
        """A fresh request. Where callers choose no places, each has a cache of its own."""
        if not self.limits.kv_contents:
            return CachedSequence(prompt)
        if self.contents is not None:
            return CachedSequence(prompt, contents=self.contents, slots=slots)
        places = len(prompt.tokens) + prompt.max_new_tokens
        return CachedSequence(prompt, contents=KvContents(places), slots=range(places))

    def _reserve(self, batch: ServerBatch) -> None:
        if self.limits.shares_cache:
            return  # The whole cache is allocated at start; _write_blocks has seen to its end.
        held = sum(self.reserved_tokens(kept) for kept in self.kept.values())
        wanted = held + self.reserved_tokens(batch)
        if wanted > self.limits.max_batch_tokens:
            what = f"Out of memory: {wanted} tokens of KV cache wanted, {self.limits.max_batch_tokens} fit"
            raise Crash(what) if self.limits.paged else RuntimeError(what)

    def _write_blocks(self, prompts: Sequence[Prompt]) -> list[Sequence[int]]:
        """Note the blocks that these requests write, for prompt and answer, whoever owns them. Answers their slots."""
        if not self.limits.shares_cache:
            return [() for _ in prompts]
        size = self.limits.block_size
        slots: list[Sequence[int]] = []
        first = 0
        for prompt in prompts:
            tokens, needed = self._tokens(prompt), self._blocks(prompt)
            if not prompt.blocks:
                slots.append(range(first * size, first * size + tokens))
                first += needed
                continue
            if len(prompt.blocks) < needed or len(prompt.slots) < tokens:
                raise IndexError(f"{tokens} tokens need {needed} blocks and {tokens} slots")
            slots.append(prompt.slots[:tokens])
        written = {slot // size for places in slots for slot in places}
        if max(written, default=0) >= max(1, self.limits.max_batch_tokens // size):
            raise Crash(f"Out of memory: block {max(written)} is beyond the KV cache")
        self.blocks_written |= written
        return slots
