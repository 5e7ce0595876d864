"""The simulated router: an engine that batches, and two servers, HTTP and gRPC, in one thread with an event loop.

server ─ ParsedRequest ─► Router.admit ─► Engine (its own thread: Batcher + real time)
  ▲                                │
  └───────── token by token ───────┘   once per pass; the servers note when the bytes leave
"""

import asyncio
import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self

from exporter.simulator.active_request import ActiveRequest, ParsedRequest
from exporter.simulator.batcher import BatchedRequest, Batcher, Overloaded, Pass, Token, TooLong
from exporter.simulator.engine import Engine
from exporter.simulator.faults import ROUTER_FAULT_KINDS, Fault, FaultKind, Faults
from exporter.simulator.grpc_library_server import GrpcLibraryServer
from exporter.simulator.grpc_server import grpc_server
from exporter.simulator.http_server import http_server
from exporter.simulator.record import AnsweredRequest, Record
from exporter.simulator.roofline import Jitter
from exporter.simulator.router_options import RouterConfig
from exporter.simulator.tgi_metrics import TgiMetrics

_AT_ONCE = 8  # tokens
_PATIENCE = 20.0  # seconds for the servers to open or close


class RouterServer(Protocol):
    """One server of the router, HTTP or gRPC. Its methods run in the event loop."""

    async def open(self) -> str:
        """Listen; answers host:port. OSError if the address is taken."""
        ...

    async def close(self) -> None: ...


class Router:
    """A simulated router in this process: `with Router(RouterConfig()) as router: ... router.http, router.grpc`.

    `http` and `grpc` are host:port of the open servers. start, stop and the commands of `admin.Controlled` may be
    called from any thread, `admit` and `leave` from the loop only.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.http: str | None = None
        self.grpc: str | None = None
        self.metrics = TgiMetrics(config.limits)
        self.faults = Faults()
        self.restarts = 0
        self._slowdown = config.roofline.slowdown
        self._record: Record[AnsweredRequest] = Record(config.record_limit, config.record)
        self._ids = itertools.count()
        self._random = random.Random(config.seed)
        self._active: dict[int, ActiveRequest] = {}
        self._tokens: deque[Token] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="router-servers", daemon=True)
        self._servers: list[RouterServer] = []
        self._engine = self._new_engine()

    def start(self) -> Self:
        """Open the servers; OSError if an address is taken."""
        self._thread.start()
        try:
            self._wait_for(self._open())
        except BaseException:
            self._end_loop()
            raise
        self._engine.start()
        return self

    def stop(self) -> None:
        """Close the servers; what is in flight is cut."""
        self._stopped.set()
        with self._lock:
            self._engine.stop()
            self._wait_for(self._close())
            self._end_loop()
            self._record.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def admit(self, parsed: ParsedRequest, on_token: Callable[[Token], None]) -> ActiveRequest:
        """Queue a request, with a token for each to come; raises TooLong or Overloaded."""
        deadline = math.inf if parsed.time_limit is None else parsed.received_ns / 1e9 + parsed.time_limit
        wanted = (parsed.prompt, parsed.max_new_tokens, self._end_of(parsed), deadline, parsed.priority)
        request = BatchedRequest(next(self._ids), *wanted)
        active = ActiveRequest(parsed, request, on_token)
        try:
            self._engine.submit(request)
        except (TooLong, Overloaded) as error:
            kind = "overloaded" if isinstance(error, Overloaded) else "validation"
            self.refuse(parsed, kind, "RESOURCE_EXHAUSTED" if kind == "overloaded" else "INVALID_ARGUMENT")
            raise
        self.metrics.admitted(request)
        self._active[request.id] = active
        return active

    def refuse(self, parsed: ParsedRequest, kind: str, code: str) -> None:
        """Record a request that never joined the queue."""
        self.metrics.refused(kind)
        now = time.perf_counter()
        request = BatchedRequest(next(self._ids), parsed.prompt, parsed.max_new_tokens, queued=now)
        self._record.add(ActiveRequest(parsed, request, lambda token: None).entry(code))

    def leave(self, active: ActiveRequest, code: str) -> None:
        """The answer is complete, or the client is gone. Only the first call for a request counts."""
        if active.request.id not in self._active:
            return
        if not active.ended:
            self._engine.cancel(active.request)
        entry = active.entry(code)
        self.metrics.left(entry, active.ended)
        self._record.add(entry)
        del self._active[active.request.id]  # last: once `in_flight` has fallen, the record is complete

    def meet_fault(self, method: str, named: bool = False) -> Fault | None:
        """The fault that a call to `method` meets at the server; one that hangs, hangs in the engine."""
        fault = self.faults.meet(method, time.monotonic(), named=named)
        if fault and fault.at is None:
            fault.signal_process()
        return fault if fault and fault.kind != "hang" else None

    def load(self) -> dict[str, int]:
        return self._engine.load()

    def record(self) -> list[AnsweredRequest]:
        """The newest requests that came to an end, oldest first."""
        return self._record.newest()

    def state(self) -> dict[str, Any]:
        """What GET /state shows: JSON values only."""
        return {
            "http": self.http,
            "grpc": self.grpc,
            "slowdown": self._slowdown,
            "restarts": self.restarts,
            "in_flight": len(self._active),
            **self._engine.load(),
        }

    def slow_down(self, factor: float) -> None:
        """Stretch every later pass, prefill and decode, to `factor` times what the roofline says."""
        self._slowdown = factor
        self._engine.slow_down(factor)

    @property
    def fault_kinds(self) -> tuple[FaultKind, ...]:
        return ROUTER_FAULT_KINDS

    def fault(self, fault: Fault | None) -> None:
        """Let calls fail in the servers, or the engine hang; None ends it. ValueError for what only a shard can do."""
        if fault and fault.kind not in ROUTER_FAULT_KINDS:
            raise ValueError(f"kind: a router cannot simulate {fault.kind}")
        self.faults.set(fault)
        self._engine.fault(fault)

    def restart(self, seconds: float = 0.0) -> None:
        """Go away for `seconds` and come back on the same addresses with an empty queue and cache, without a fault."""
        with self._lock:
            if self._stopped.is_set():
                return
            self._engine.stop()
            self._wait_for(self._close())
            self.fault(None)
            if self._stopped.wait(seconds):
                return
            self.restarts += 1
            self._engine = self._new_engine()
            self._wait_for(self._open())
            self._engine.start()

    def _new_engine(self) -> Engine:
        batcher = Batcher(self.config.limits, self.config.roofline.slowed(self._slowdown))
        return Engine(batcher, Jitter(self.config.seed, self.config.jitter), self._deliver)

    def _end_of(self, parsed: ParsedRequest) -> int | None:
        """After which token the model itself will end the answer."""
        if not self.config.eos:
            return None
        tokens = parsed.min_new_tokens + 1
        while tokens < parsed.max_new_tokens and self._random.random() >= self.config.eos:
            tokens += 1
        return tokens if tokens < parsed.max_new_tokens else None

    def _deliver(self, done: Pass, tokens: list[Token], seconds: float) -> None:
        """In the engine's thread: one hand-over to the loop for all tokens of a pass."""
        self.metrics.passed(done, seconds)
        self._loop.call_soon_threadsafe(self._take, tokens)

    def _take(self, tokens: list[Token]) -> None:
        idle = not self._tokens
        self._tokens += tokens
        if idle:
            self._hand_out()

    def _hand_out(self) -> None:
        """A few tokens per turn of the loop, so that it can read what arrives in between."""
        for token in [self._tokens.popleft() for _ in range(min(_AT_ONCE, len(self._tokens)))]:
            active = self._active.get(token.request.id)
            if active is not None:
                active.ended = token.end is not None
                active.on_token(token)
        if self._tokens:
            self._loop.call_soon(self._hand_out)

    async def _open(self) -> None:
        try:
            if self.config.http is not None:
                http = http_server(self, self.http or self.config.http)
                self.http = await http.open()
                self._servers.append(http)
            if self.config.grpc is not None:
                kind = grpc_server if self.config.grpc_server == "h2" else GrpcLibraryServer
                grpc = kind(self, self.grpc or self.config.grpc)
                self.grpc = await grpc.open()
                self._servers.append(grpc)
        except OSError:
            await self._close()
            raise

    async def _close(self) -> None:
        for server in self._servers:
            await server.close()
        self._servers.clear()
        for active in list(self._active.values()):
            self.leave(active, "CANCELLED")

    def _wait_for(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
