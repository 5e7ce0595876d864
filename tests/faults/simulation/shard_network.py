"""A shard of one rank and the network to it, in place of gRPC's channels. All above them is the real prober."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from exporter.pb import generate_v3_pb2 as pb
from exporter.probes.interface import Result
from exporter.probes.shard.prober import ShardProber
from tests.faults.simulation.history import History
from tests.faults.simulation.truth import TrueTimes, Truth
from tests.faults.simulation.virtual_clock import VirtualClock

PHASES = ("healthy", "slow", "failing", "losing", "away", "silent", "unclearable")
WEIGHTS = (40, 10, 8, 5, 8, 4, 8)
ERRORS = ("INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED", "UNKNOWN")
UPPER_HALF = 1 << 63
LATENCY = 0.0002


class SimulatedError(grpc.RpcError):
    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self._code, self._details = grpc.StatusCode[code], details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@dataclass
class Call:
    rpc: str
    request: bytes
    answer: bytes = b""
    error: SimulatedError | None = None


@dataclass
class SimulatedShard:
    """Does one call at a time, in the order of their arrival, whether or not the client still waits.

    `batches`: what it keeps, as the tokens that are still to come by batch and request. A restart forgets them.
    """

    clock: VirtualClock
    history: History
    random: random.Random
    truth: Truth
    phase: str = "healthy"
    incarnation: int = 0
    batches: dict[int, dict[int, int]] = field(default_factory=dict)
    _until: float = 0.0
    _free_at: float = 0.0
    _cleared: set[int] = field(default_factory=set)
    _sent: float = 0.0
    _first: float = 0.0

    def begin(self) -> None:
        self._until = self.clock.now + self.random.expovariate(1 / 900)
        self.clock.at(self._until, self._change)

    def _change(self) -> None:
        if self.random.random() < 0.15 or self.phase == "away":
            self.incarnation += 1
            self.batches.clear()
            self._free_at = 0.0
            self.history.note("the server restarts")
        [self.phase] = self.random.choices(PHASES, WEIGHTS)
        self.history.note("the server is", self.phase)
        self.begin()

    def channel(self, address: str) -> "SimulatedChannel":
        return SimulatedChannel(self)

    def call(self, channel: "SimulatedChannel", rpc: str, request: bytes, timeout: float) -> bytes:
        """Raises SimulatedError."""
        if self.phase == "away":
            self.clock.pass_until(self.clock.now + LATENCY)
            raise SimulatedError("UNAVAILABLE", "failed to connect to all addresses; Connection refused")
        sent, call, incarnation = self.clock.now, Call(rpc, request), self.incarnation
        finish = max(sent + LATENCY, self._free_at, self._until if self.phase == "silent" else 0.0) + self._work(rpc)
        self._free_at = finish
        self.clock.at(finish, partial(self._execute, call, incarnation))
        lost = self.random.random() < (0.05 if self.phase == "losing" else 0.0005)
        arrives = float("inf") if lost else finish + LATENCY
        if rpc == "Prefill":
            self._sent, self.truth.success, self.truth.calls = sent, None, 0
        self.truth.calls += 1
        over = self.clock.pass_until(
            min(arrives, sent + timeout), lambda: channel.closed or self.incarnation != incarnation
        )
        if channel.closed:
            raise SimulatedError("CANCELLED", "Channel closed!")
        if over:
            raise SimulatedError("UNAVAILABLE", "Socket closed")
        if arrives > sent + timeout:
            raise SimulatedError("DEADLINE_EXCEEDED", "Deadline Exceeded")
        if call.error is not None:
            raise call.error
        self._delivered(call, arrives)
        return call.answer

    def _work(self, rpc: str) -> float:
        if rpc not in ("Prefill", "Decode"):
            return 0.0003
        return self.random.lognormvariate(-3, 0.8) * (20 if self.phase == "slow" else 1)

    def _execute(self, call: Call, incarnation: int) -> None:
        """The server does the work of a call."""
        if incarnation != self.incarnation:
            return
        fails = self.phase == "failing" and self.random.random() < 0.3 and call.rpc not in ("ServiceDiscovery", "Info")
        if fails and self.random.random() < 0.5:  # the other half fails after the work
            call.error = self._error()
            return
        match call.rpc:
            case "ServiceDiscovery":
                call.answer = pb.ServiceDiscoveryResponse(urls=["unix:///tmp/shard-0"]).SerializeToString()
            case "Info":
                info = pb.InfoResponse(requires_padding=True, dtype="float16", device_type="cpu")
                call.answer = info.SerializeToString()
            case "Prefill":
                call.answer = self._prefill(pb.PrefillRequest.FromString(call.request).batch)
            case "Decode":
                self._decode(call)
            case "ClearCache":
                self._clear(call)
            case _:
                call.error = SimulatedError("UNIMPLEMENTED", call.rpc)
        if fails:
            call.error = self._error()

    def _error(self) -> SimulatedError:
        return SimulatedError(self.random.choice(ERRORS), "by chance")

    def _prefill(self, batch: Any) -> bytes:
        if self.batches:
            raise self.history.broken("cleared before the next", f"a batch is sent while {list(self.batches)} is owed")
        if batch.id < UPPER_HALF:
            raise self.history.broken("ids are not a router's", f"batch {batch.id}")
        self.history.note("prefill", batch.id, f"{batch.size} requests")
        self.batches[batch.id] = {request.id: request.stopping_parameters.max_new_tokens for request in batch.requests}
        generations, goes_on = self._step(batch.id)
        return bytes(
            pb.PrefillResponse(
                generations=generations, batch=pb.CachedBatch(id=batch.id) if goes_on else None
            ).SerializeToString()
        )

    def _decode(self, call: Call) -> None:
        [cached] = pb.DecodeRequest.FromString(call.request).batches
        if cached.id not in self.batches:
            call.error = SimulatedError("UNKNOWN", f"Batch ID {cached.id} not found in cache.")
            return
        generations, goes_on = self._step(cached.id)
        batch = pb.CachedBatch(id=cached.id) if goes_on else None
        call.answer = pb.DecodeResponse(generations=generations, batch=batch).SerializeToString()

    def _step(self, batch_id: int) -> tuple[list[Any], bool]:
        """One token of each request, and whether some have more to come."""
        requests = self.batches[batch_id]
        generations = []
        for request_id in requests:
            requests[request_id] -= 1
            generations.append(pb.Generation(request_id=request_id, tokens=pb.Tokens(ids=[1])))
            if requests[request_id] <= 0:
                generations[-1].generated_text.text = "x"
        goes_on = any(left > 0 for left in requests.values())
        if not goes_on:
            del self.batches[batch_id]
        return generations, goes_on

    def _clear(self, call: Call) -> None:
        request = pb.ClearCacheRequest.FromString(call.request)
        if not request.HasField("id"):
            raise self.history.broken("cleared by id only", "a clear has no id")
        if self.phase == "unclearable":
            call.error = SimulatedError("INTERNAL", "cannot be cleared")
            return
        self.batches.pop(request.id, None)
        call.answer = pb.ClearCacheResponse().SerializeToString()

    def _delivered(self, call: Call, at: float) -> None:
        """The client has the answer."""
        if call.rpc == "ClearCache":
            batch_id = pb.ClearCacheRequest.FromString(call.request).id
            self.history.note("cleared", batch_id)
            if batch_id in self._cleared:
                raise self.history.broken("no batch is cleared twice", f"batch {batch_id}")
            self._cleared.add(batch_id)
        if call.rpc == "Prefill":
            self._first = at
        if call.rpc in ("Prefill", "Decode"):
            response = pb.PrefillResponse if call.rpc == "Prefill" else pb.DecodeResponse
            if not response.FromString(call.answer).HasField("batch"):
                self.truth.success = TrueTimes(self._first - self._sent, at - self._sent)


@dataclass
class SimulatedChannel:
    """As `grpc.Channel`, for the calls that the prober makes."""

    shard: SimulatedShard
    closed: bool = False

    def unary_unary(self, path: str) -> Callable[..., bytes]:
        rpc = path.rpartition("/")[2]

        def call(request: bytes, timeout: float, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
            if self.closed:
                raise ValueError("Cannot invoke RPC on closed channel!")
            return self.shard.call(self, rpc, request, timeout)

        return call

    def close(self) -> None:
        self.closed = True


class WatchedShardProber(ShardProber):
    """The real prober. The truth is told how its connects go."""

    truth: Truth

    def connect(self, timeout: float) -> Any:
        self.truth.connected = False
        facts = super().connect(timeout)
        self.truth.connected = self.truth.passed_connect = True
        return facts

    def probe(self, *values: Any) -> Result:
        self.truth.clear_tried = False
        return super().probe(*values)

    def settle(self, timeout: float) -> None:
        self.truth.clear_tried = True
        super().settle(timeout)

    @property
    def owed(self) -> set[int]:
        return set(self._uncleared._batches)
