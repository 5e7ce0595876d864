"""One rank of the shard: executes a call and takes the time that a GPU would. No transport; for one thread only."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from exporter.simulator import messages
from exporter.simulator.batch_cache import BatchCache, Crash, ModelLimits, SequenceStep, ServerBatch
from exporter.simulator.faults import FailedByCommand, Fault, Faults
from exporter.simulator.options import Config
from exporter.simulator.roofline import Jitter, Roofline

_WAKE_EARLY = 0.001  # seconds: an Event wakes up late by less than this, time.sleep by much less


class ServerStopping(Exception):
    """The server stops while the call runs."""


@dataclass(frozen=True)
class RankAnswer:
    """A response, and for the record its tokens over all ranks and its durations in nanoseconds."""

    response: Any
    tokens: int = 0
    forward_ns: int = 0
    decode_ns: int = 0
    total_ns: int = 0
    text_tokens: int = 0


class RankBarrier:
    """Where the ranks wait for each other, as in every collective operation."""

    def __init__(self, ranks: int, timeout: float) -> None:
        self._barrier = threading.Barrier(ranks, self._compare)
        self._timeout = timeout
        self._passes: list[tuple[int, int]] = [(0, 0)] * ranks
        self._differ = False

    def meet(self, rank: int, batch_id: int, tokens: int) -> None:
        """Wait until every rank has come; RuntimeError after the timeout, Crash where one computes something else."""
        self._passes[rank] = (batch_id, tokens)
        try:
            self._barrier.wait(self._timeout)
        except threading.BrokenBarrierError:
            raise RuntimeError(f"Rank {rank} waited {self._timeout:g} s in vain for the other ranks") from None
        if self._differ:
            raise Crash(f"Rank {rank}: the ranks compute for different batches: {self._passes}")

    def _compare(self) -> None:
        """Done by the last rank that comes, while the others still wait."""
        self._differ = len(set(self._passes)) > 1

    def abandon(self) -> None:
        self._barrier.abort()


class Rank:
    """The state of one rank and its eight calls. A new one is as empty as a new process."""

    def __init__(self, index: int, config: Config, barrier: RankBarrier) -> None:
        self.index = index
        self.roofline: Roofline = config.roofline
        self.urls: list[str] = []
        self.faults = Faults()
        self.received: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.stopping = threading.Event()
        self._config = config
        self._wire: Any = messages.module_of(config.protocol)
        self._rendezvous = barrier
        self._jitter = Jitter(config.seed + index, config.jitter)
        paged = config.attention == "paged"
        self._has_cache = config.warmed_up or not paged
        self.batches = BatchCache(
            ModelLimits(
                paged=paged,
                allocates_blocks=config.protocol == "v2",
                block_size=config.block_size,
                max_positions=config.roofline.model.max_positions,
                max_batch_tokens=config.kv_tokens,
                vocabulary=config.vocabulary,
                speculate=config.speculate,
                seed=config.seed,
                kv_contents=config.kv_contents,
            )
        )

    def answer(self, method: str, request: Any) -> RankAnswer:
        """Serve one call. Errors: ValueError and IndexError, which the rank survives; RuntimeError, which ends it;
        Crash, which ends it without an answer; ServerStopping.
        """
        match method:
            case "Prefill":
                return self._prefill(request)
            case "Decode":
                return self._decode(request)
            case "Info":
                return RankAnswer(messages.info(self._config))
            case "ServiceDiscovery":
                return RankAnswer(self._wire.ServiceDiscoveryResponse(urls=self.urls))
            case "ClearCache":
                self.batches.clear(request.id if request.HasField("id") else None)
                return RankAnswer(self._wire.ClearCacheResponse())
            case "FilterBatch":
                kept = self.batches.filter(request.batch_id, request.request_ids)
                return RankAnswer(self._wire.FilterBatchResponse(batch=self._cached(kept)))
            case "Warmup":
                return self._warmup(request)
            case _:
                return RankAnswer(self._wire.HealthResponse())

    def meet_fault(self, method: str, request: Any) -> Fault | None:
        """The fault that this call meets, if any. One that is not about its answer has happened then. Raises
        FailedByCommand and Crash.
        """
        number = self.batches.steps_of([cached.id for cached in request.batches]) if method == "Decode" else None
        fault = self.faults.meet(method, time.monotonic(), number)
        if fault is None:
            return None
        if fault.status is not None:
            raise FailedByCommand(fault.kind, fault.status)
        if fault.kind == "crash":
            raise Crash("Fault by command: crash")
        fault.signal_process()
        while fault.kind == "hang" and self.faults.holds(fault, time.monotonic()):
            self.hold(0.01)
        return fault

    def hold(self, seconds: float) -> None:
        """Keep the thread for `seconds`; ServerStopping when the server stops meanwhile."""
        deadline = time.perf_counter() + seconds
        if self.stopping.wait(max(0.0, seconds - _WAKE_EARLY)):
            raise ServerStopping
        time.sleep(max(0.0, deadline - time.perf_counter()))

    def _prefill(self, request: Any) -> RankAnswer:
        began = time.perf_counter_ns()
        if not self._has_cache:
            raise IndexError("list index out of range")
        prompts = messages.prompts_of(self._config, request.batch.requests)
        text_tokens = sum(prompt.text_tokens for prompt in prompts)
        self.hold(text_tokens * self._config.tokenizer_seconds / self.roofline.speed)
        joins = self._config.protocol == "v3" and request.HasField("cached_batch")
        joining = time.perf_counter_ns()
        cached_id = request.cached_batch.id if joins else None
        batch = self.batches.admit(request.batch.id, prompts, request.batch.size, cached_id)
        concat_ns = time.perf_counter_ns() - joining if batch.size > len(prompts) else None
        answer = self._run(self._wire.PrefillResponse(), batch, self._prefill_seconds(batch), began, concat_ns)
        return replace(answer, tokens=sum(len(prompt.tokens) for prompt in prompts), text_tokens=text_tokens)

    def _decode(self, request: Any) -> RankAnswer:
        began = time.perf_counter_ns()
        batch = self.batches.take([cached.id for cached in request.batches])
        concat_ns = time.perf_counter_ns() - began if len(request.batches) > 1 else None
        seconds = self.roofline.decode_seconds(batch.size, self._context(batch), 1 + self._config.speculate)
        return self._run(self._wire.DecodeResponse(), batch, seconds, began, concat_ns)

    def _run(self, response: Any, batch: ServerBatch, seconds: float, began: int, concat_ns: int | None) -> RankAnswer:
        """The forward pass, all ranks together, then the tokens; fills the response."""
        forward = time.perf_counter_ns()
        self._rendezvous.meet(self.index, batch.id, sum(sequence.entering for sequence in batch.sequences))
        self.hold(seconds * self._jitter.factor())
        decode = time.perf_counter_ns()
        steps, after = self.batches.advance(batch)
        self._fill(response, steps, after)
        ended = time.perf_counter_ns()
        forward_ns, decode_ns, total_ns = decode - forward, ended - decode, ended - began
        if not self._config.neuron:
            response.forward_ns, response.decode_ns, response.total_ns = forward_ns, decode_ns, total_ns
            if concat_ns is not None:
                response.concat_ns = concat_ns
        return RankAnswer(response, sum(step.new_tokens for step in steps), forward_ns, decode_ns, total_ns)

    def _fill(self, response: Any, steps: list[SequenceStep], after: ServerBatch | None) -> None:
        response.generations.extend(messages.generations(self._config, steps, self.index))
        if after is not None:
            response.batch.CopyFrom(self._cached(after))

    def _warmup(self, request: Any) -> RankAnswer:
        """Drop every batch, as a shard does when it allocates its cache anew."""
        self.batches.kept.clear()
        self._has_cache = True
        response = self._wire.WarmupResponse(max_supported_total_tokens=self._config.kv_tokens)
        if self._config.protocol == "v3":
            longest = min(self._config.roofline.model.max_positions, self._config.kv_tokens)
            response.max_input_tokens = request.max_input_tokens or longest - 1
            response.max_total_tokens = request.max_total_tokens or longest
        return RankAnswer(response)

    def _cached(self, batch: ServerBatch) -> Any:
        return messages.cached_batch(self._config, batch, self.batches.reserved_tokens(batch))

    def _prefill_seconds(self, batch: ServerBatch) -> float:
        """A padded model computes every prompt at the longest one's length; a paged one what is not in its cache."""
        fresh = [sequence.prompt for sequence in batch.sequences if sequence.generated == 0]
        lengths = [len(prompt.tokens) - prompt.cached_tokens for prompt in fresh]
        mean = sum(lengths) / len(lengths) if self.batches.limits.paged else max(lengths)
        return self.roofline.prefill_seconds(len(fresh), mean)

    def _context(self, batch: ServerBatch) -> int:
        contexts = [sequence.context for sequence in batch.sequences]
        return sum(contexts) if self.batches.limits.paged else max(contexts) * len(contexts)
