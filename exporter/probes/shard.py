"""Probes a model shard over `generate.v3` (TGI 2.1 and later) or `generate.v2`, as its router would.

What must hold in here, always: every call goes to every rank at once; ids are ours (random, in the upper half of
uint64); a batch that was sent is decoded to its end or owed a ClearCache by id, and the debt is paid before the next
probe; no
request that can end a shard (`size` is the number of requests, exactly one text chunk, full neutral parameters).
"""

import os.path
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NoReturn

import grpc

from exporter import workload as work
from exporter.channel import failure, open_channel
from exporter.observation import Failure, Outcome, ServerTimings, Step, Stream
from exporter.pb import generate_v2_pb2, generate_v3_pb2
from exporter.prober import Abandoned, Result
from exporter.settings import Parameters, Target, Workload
from exporter.targets import Facts, refusal
from exporter.tracing import HEADER, traceparent

PROTOCOLS: dict[str, ModuleType] = {"generate.v3": generate_v3_pb2, "generate.v2": generate_v2_pb2}
NANOSECONDS = 1e-9
CUT_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)

# W3C trace context, the same for every call of a probe; None sends none.
Metadata = tuple[tuple[str, str], ...] | None


class Ranks:
    """Channels to every rank of one sharded model."""

    def __init__(self, addresses: Sequence[str], protocol: str) -> None:
        self.addresses = tuple(addresses)
        self.protocol = protocol
        self._channels = [open_channel(address) for address in addresses]
        self._calls: dict[str, list[Any]] = {}

    def call(self, rpc: str, request: bytes, timeout: float, metadata: Metadata = None) -> list[bytes]:
        """Every rank's answer, not parsed, in rank order. Returns when the slowest is in. Raises Failure.

        It always waits for all: ranks compute together, and a call taken back from one of them would leave the others
        waiting for it.
        """
        calls = self._calls_of(rpc)
        others = [call.future(request, timeout=timeout, metadata=metadata) for call in calls[1:]]
        # The first rank is called from this very thread: with one rank, nothing stands between socket and clock.
        waits = [partial(calls[0], request, timeout=timeout, metadata=metadata), *(other.result for other in others)]
        answers: list[bytes] = []
        errors: list[tuple[grpc.RpcError, str]] = []
        for wait, address in zip(waits, self.addresses, strict=True):
            try:
                answers.append(wait())
            except grpc.RpcError as error:
                errors.append((error, address))
        if errors:
            # When one rank fails the others are cut off: what the culprit said is worth more than their CANCELLED.
            culprit, address = min(errors, key=lambda pair: pair[0].code() in CUT_OFF)
            raise failure(culprit, rpc, address)
        return answers

    def call_first(self, rpc: str, request: bytes, timeout: float) -> bytes:
        """The first rank's answer alone: only for calls that no rank computes for. Raises Failure."""
        try:
            answer: bytes = self._calls_of(rpc)[0](request, timeout=timeout)
        except grpc.RpcError as error:
            raise failure(error, rpc, self.addresses[0]) from None
        return answer

    def _calls_of(self, rpc: str) -> list[Any]:
        path = f"/{self.protocol}.TextGenerationService/{rpc}"
        calls = self._calls.get(path)
        if calls is None:
            calls = self._calls[path] = [channel.unary_unary(path) for channel in self._channels]
        return calls

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class ShardProber:
    """See `Prober`. `seed` makes prompts and ids repeatable; without it they differ from run to run."""

    def __init__(self, target: Target, clock: Callable[[], float] = time.perf_counter, seed: int | None = None) -> None:
        self._target = target
        self._clock = clock
        self._random = random.Random(seed)
        self._ranks: Ranks | None = None
        self._last_seen: tuple[tuple[str, ...], str] | None = None
        self._owed: set[int] = set()
        self._facts: Facts | None = None

    # --- connecting

    def connect(self, timeout: float) -> Facts:
        """Ask for the ranks and their Info, every time: one that came back with more ranks must not get half a call.

        After a failure the channels are opened anew: gRPC's own pause between attempts would outlast the absence.
        """
        try:
            self._ranks = self._ranks or Ranks([self._entry()], "")
            self._ranks = ranks = self._discovered(self._ranks, timeout)
            answers = ranks.call("Info", b"", timeout)
        except Failure:
            self._disconnect()
            raise
        info = _parsed(PROTOCOLS[ranks.protocol].InfoResponse, answers[0], "Info", ranks.addresses[0])
        paged = not info.requires_padding
        self._facts = Facts(
            protocol=ranks.protocol,
            ranks=len(ranks.addresses),
            dtype=info.dtype,
            device=info.device_type,
            attention=(getattr(info, "attention_impl", "") or "paged") if paged else "padded",
            requires_padding=info.requires_padding,
            block_size=getattr(info, "block_size", 0),
            speculate=info.speculate,
        )
        return self._facts

    def _entry(self) -> str:
        """The configured address. Raises Failure where its socket is missing, which gRPC would say in riddles."""
        address = self._target.address
        if address.startswith("unix:") and not os.path.exists(_path(address)):
            hint = "is the server up, and its directory shared with this container?"
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{address}: no such socket; {hint}")
        return address

    def _discovered(self, ranks: Ranks, timeout: float) -> Ranks:
        """The same ranks, or others where the server says so. Settles the protocol: v3, or v2 when v3 is not known."""
        address = self._target.address
        for protocol in [ranks.protocol] if ranks.protocol else PROTOCOLS:
            ranks.protocol = protocol
            try:
                answer = ranks.call_first("ServiceDiscovery", b"", timeout)
            except Failure as error:
                if error.code != "UNIMPLEMENTED":
                    raise
                continue
            found = _parsed(PROTOCOLS[protocol].ServiceDiscoveryResponse, answer, "ServiceDiscovery", address)
            addresses = _reachable(address, list(found.urls))
            if addresses == ranks.addresses:
                return ranks
            ranks.close()
            return Ranks(addresses, protocol)
        hint = "it answers, but not as a TGI shard; is it the router?"
        raise Failure(Outcome.REJECTED, "UNIMPLEMENTED", f"{address}: {hint}")

    def _disconnect(self) -> None:
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            self._last_seen = (ranks.addresses, ranks.protocol)
            ranks.close()

    def users_wait(self) -> bool:
        """A shard does not know its users; its target has no yield_to_users."""
        return False

    def refusal(self, facts: Facts) -> str | None:
        return refusal(self._target, facts)

    # --- probing

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        """Prefill, then Decode to the end. All decode bookkeeping that can wait is done after the last answer."""
        if self._ranks is None or self._facts is None:
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{self._target.address}: not connected")
        ranks = self._ranks
        batch = Batch.build(PROTOCOLS[ranks.protocol], self._target, self._facts, workload, batch_size, self._random)
        self._owed.add(batch.id)
        prefill, decode = batch.prefill_request(), batch.decode_request()
        trace = ((HEADER, traceparent(trace_id)),) if trace_id else None
        sent = self._clock()
        deadline = sent + workload.timeout
        answers = ranks.call("Prefill", prefill, workload.timeout, trace)
        arrived = self._clock()
        merged = batch.merge("Prefill", answers, ranks.addresses)
        steps = [Step(sent, arrived, merged.tokens, merged.timings)]
        for _ in range(workload.decode_length + self._facts.speculate):
            if not merged.unfinished:
                break
            if stopping():
                raise Abandoned
            if merged.finished:
                # A router takes finished requests out before the next step; left in, they would run past their cache.
                ranks.call("FilterBatch", batch.filter_request(merged), deadline - self._clock(), trace)
            asked = self._clock()
            answers = ranks.call("Decode", decode, deadline - asked, trace)
            arrived = self._clock()
            merged = batch.merge("Decode", answers, ranks.addresses)
            steps.append(Step(asked, arrived, merged.tokens, merged.timings))
        if merged.unfinished:
            raise Failure(
                Outcome.MALFORMED,
                "OK",
                f"{ranks.addresses[0]}: no end after {len(steps)} steps for decode_length {workload.decode_length}",
            )
        self._owed.discard(batch.id)
        prompt_tokens = batch_size * workload.sequence_length
        return Result((Stream(batch_size, prompt_tokens, sent, steps[-1].arrived, tuple(steps)),))

    # --- leaving no trace

    def settle(self, timeout: float) -> None:
        if self._owed and self._ranks is not None:
            self._clear(self._ranks, timeout)

    def _clear(self, ranks: Ranks, timeout: float) -> None:
        for batch_id in list(self._owed):
            request = PROTOCOLS[ranks.protocol].ClearCacheRequest(id=batch_id).SerializeToString()
            ranks.call("ClearCache", request, timeout)
            self._owed.discard(batch_id)

    def close(self) -> None:
        """Close, and pay what is owed over connections of its own: the others may be stuck in a call."""
        self._disconnect()
        if self._owed and self._last_seen is not None:
            last = Ranks(*self._last_seen)
            try:
                self._clear(last, timeout=5.0)
            finally:
                last.close()


@dataclass(frozen=True, slots=True)
class Merged:
    """All ranks' answers to one call as one: new tokens over all requests, ids that ended with it, who is left."""

    tokens: int
    finished: frozenset[int]
    unfinished: frozenset[int]
    timings: ServerTimings | None


class Batch:
    """One batch of ours: its requests as bytes, its answers as facts. `pb` is the module of the protocol."""

    def __init__(self, pb: ModuleType, batch: Any) -> None:
        self._pb = pb
        self._batch = batch
        self.id: int = batch.id
        self._unfinished = frozenset(request.id for request in batch.requests)

    @classmethod
    def build(
        cls, pb: ModuleType, target: Target, facts: Facts, workload: Workload, batch_size: int, rng: random.Random
    ) -> "Batch":
        tokens = workload.sequence_length + workload.decode_length - 1 + facts.speculate
        batch = pb.Batch(
            id=work.batch_id(rng),
            size=batch_size,
            max_tokens=batch_size * (workload.sequence_length + workload.decode_length),
        )
        reserved = target.kv_cache == "reserved_block" and not facts.requires_padding
        blocks, slots = work.blocks_of_reserved(tokens, facts.block_size) if reserved else ([], [])
        texts = work.prompts(batch_size, workload.sequence_length, rng)
        for request_id, text in zip(work.request_ids(batch_size, rng), texts, strict=True):
            request = batch.requests.add(
                id=request_id,
                inputs=text,
                # The server keeps this many tokens of the text and never pads, so the length is exact.
                truncate=workload.sequence_length,
                parameters=_parameters(pb, workload.parameters, rng),
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

    def prefill_request(self) -> bytes:
        data: bytes = self._pb.PrefillRequest(batch=self._batch).SerializeToString()
        return data

    def decode_request(self) -> bytes:
        """The same for every step: a shard finds the batch by its id alone."""
        data: bytes = self._pb.DecodeRequest(batches=[self._pb.CachedBatch(id=self.id)]).SerializeToString()
        return data

    def filter_request(self, merged: Merged) -> bytes:
        keep = [request.id for request in self._batch.requests if request.id in merged.unfinished]
        data: bytes = self._pb.FilterBatchRequest(batch_id=self.id, request_ids=keep).SerializeToString()
        return data

    def merge(self, rpc: str, answers: Sequence[bytes], addresses: Sequence[str]) -> Merged:
        """Raises Failure(malformed) unless every unfinished request got its part, exactly once, and no one else did."""
        response = getattr(self._pb, f"{rpc}Response")
        parsed = [_parsed(response, data, rpc, address) for data, address in zip(answers, addresses, strict=True)]
        generations = [generation for answer in parsed for generation in answer.generations]
        answered = [generation.request_id for generation in generations]
        if strangers := set(answered) - self._unfinished:
            _malformed(rpc, addresses[0], f"{len(strangers)} generations for requests that are not in the batch")
        if len(answered) != len(self._unfinished) or set(answered) != self._unfinished:
            _malformed(rpc, addresses[0], f"{len(answered)} generations for {len(self._unfinished)} requests")
        tokens = sum(len(generation.tokens.ids) for generation in generations)
        if rpc == "Prefill" and any(not generation.tokens.ids for generation in generations):
            _malformed(rpc, addresses[0], "a request without a first token")
        finished = frozenset(
            generation.request_id for generation in generations if generation.HasField("generated_text")
        )
        self._unfinished -= finished
        goes_on = any(answer.HasField("batch") for answer in parsed)
        if goes_on != bool(self._unfinished):
            _malformed(
                rpc,
                addresses[0],
                f"{len(self._unfinished)} requests unfinished, but the batch {'goes on' if goes_on else 'has ended'}",
            )
        return Merged(tokens, finished, self._unfinished, _slowest(parsed))


def _parameters(pb: ModuleType, parameters: Parameters, rng: random.Random) -> Any:
    values = parameters.model_dump(exclude={"top_n_tokens"})
    return pb.NextTokenChooserParameters(**values, seed=rng.getrandbits(63))


def _slowest(answers: Sequence[Any]) -> ServerTimings | None:
    """Timings of the rank that took longest; a shard that fills in none (all 0) is unknown, not instantaneous."""
    slowest = max(answers, key=lambda answer: answer.total_ns)
    if not slowest.total_ns:
        return None
    concat = (
        slowest.concat_ns * NANOSECONDS
        if "concat_ns" in slowest.DESCRIPTOR.fields_by_name and slowest.HasField("concat_ns")
        else None
    )
    return ServerTimings(
        slowest.forward_ns * NANOSECONDS, slowest.decode_ns * NANOSECONDS, concat, slowest.total_ns * NANOSECONDS
    )


def _parsed(message: Any, data: bytes, rpc: str, address: str) -> Any:
    try:
        return message.FromString(data)
    except Exception as error:  # protobuf's DecodeError lives in another module for each implementation
        _malformed(rpc, address, f"an answer that is no {message.DESCRIPTOR.name} ({error})")


def _malformed(rpc: str, address: str, what: str) -> NoReturn:
    raise Failure(Outcome.MALFORMED, "OK", f"{rpc} at {address}: {what}")


def _reachable(address: str, urls: list[str]) -> tuple[str, ...]:
    """The ranks' addresses as seen from here: a socket directory may be mounted at another place than in the server."""
    if not urls:
        return (address,)
    if not address.startswith("unix:"):
        if len(urls) == 1:
            return (address,)
        if any(url.startswith("unix:") for url in urls):
            raise Failure(
                Outcome.UNREACHABLE,
                "UNAVAILABLE",
                f"{address}: its {len(urls)} ranks listen on unix sockets only; give the target a socket ({urls[0]})",
            )
        return tuple(urls)
    if len(urls) == 1:
        return (address,)
    here = os.path.dirname(_path(address))
    moved = [f"unix://{os.path.join(here, os.path.basename(url))}" for url in urls]
    return tuple(moved)


def _path(address: str) -> str:
    return address.removeprefix("unix://").removeprefix("unix:")
