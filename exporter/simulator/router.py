"""The simulated router: an engine that batches, and two doors, HTTP and gRPC, in one thread with an event loop.

door ─ Ask ─► Router.admit ─► Engine (its own thread: Batcher + real time)
  ▲                              │
  └───────── token by token ─────┘   one hand-over per pass; the doors note when the bytes leave
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

from exporter.simulator.batcher import Batcher, Overloaded, Pass, Request, Token, TooLong
from exporter.simulator.engine import Engine
from exporter.simulator.faults import FAULT_KINDS, Fault, FaultKind, Faults
from exporter.simulator.grpc_door import grpc_door
from exporter.simulator.grpc_library_door import GrpcLibraryDoor
from exporter.simulator.http_door import http_door
from exporter.simulator.record import Answered, Record
from exporter.simulator.roofline import Jitter
from exporter.simulator.router_options import RouterConfig
from exporter.simulator.tgi_metrics import TgiMetrics
from exporter.simulator.visit import Ask, Visit

_AT_ONCE = 8  # tokens
_PATIENCE = 20.0  # seconds for the doors to open or close


class Door(Protocol):
    """A way in. Its methods run in the loop."""

    async def open(self) -> str:
        """Listen; answers host:port. OSError if the address is taken."""
        ...

    async def close(self) -> None: ...


class Router:
    """A simulated router in this process: `with Router(RouterConfig()) as router: ... router.http, router.grpc`.

    `http` and `grpc` are host:port of the open doors. start, stop and the commands of `admin.Controlled` may be called
    from any thread, `admit` and `leave` from the loop only.
    """

    def __init__(self, config: RouterConfig) -> None:
        self.config = config
        self.http: str | None = None
        self.grpc: str | None = None
        self.metrics = TgiMetrics(config.limits)
        self.faults = Faults()
        self.restarts = 0
        self._slowdown = config.roofline.slowdown
        self._record: Record[Answered] = Record(config.record_limit, config.record)
        self._ids = itertools.count()
        self._random = random.Random(config.seed)
        self._visits: dict[int, Visit] = {}
        self._tokens: deque[Token] = deque()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="router-doors", daemon=True)
        self._doors: list[Door] = []
        self._engine = self._new_engine()

    def start(self) -> Self:
        """Open the doors; OSError if an address is taken."""
        self._thread.start()
        try:
            self._wait_for(self._open())
        except BaseException:
            self._end_loop()
            raise
        self._engine.start()
        return self

    def stop(self) -> None:
        """Close the doors; what is in flight is cut."""
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

    def admit(self, ask: Ask, on_token: Callable[[Token], None]) -> Visit:
        """Queue a request, with a token for each to come; raises TooLong or Overloaded."""
        deadline = math.inf if ask.time_limit is None else ask.received_ns / 1e9 + ask.time_limit
        request = Request(next(self._ids), ask.prompt, ask.max_new_tokens, self._end_of(ask), deadline)
        visit = Visit(ask, request, on_token)
        try:
            self._engine.submit(request)
        except (TooLong, Overloaded) as error:
            kind = "overloaded" if isinstance(error, Overloaded) else "validation"
            self.refuse(ask, kind, "RESOURCE_EXHAUSTED" if kind == "overloaded" else "INVALID_ARGUMENT")
            raise
        self.metrics.admitted(request)
        self._visits[request.id] = visit
        return visit

    def refuse(self, ask: Ask, kind: str, code: str) -> None:
        """Write down a request that never joined the queue."""
        self.metrics.refused(kind)
        now = time.perf_counter()
        request = Request(next(self._ids), ask.prompt, ask.max_new_tokens, queued=now)
        self._record.add(Visit(ask, request, lambda token: None).entry(code))

    def leave(self, visit: Visit, code: str) -> None:
        """The answer is complete, or nobody waits for it any more. Only the first call of a visit counts."""
        if visit.request.id not in self._visits:
            return
        if not visit.ended:
            self._engine.cancel(visit.request)
        entry = visit.entry(code)
        self.metrics.left(entry, visit.ended)
        self._record.add(entry)
        del self._visits[visit.request.id]  # last: once `in_flight` has fallen, the record is complete

    def meet_fault(self, method: str) -> Fault | None:
        """The fault that a call to `method` runs into at the door; one that hangs, hangs in the engine."""
        fault = self.faults.meet(method, time.monotonic())
        return fault if fault and fault.kind != "hang" else None

    def load(self) -> dict[str, int]:
        return self._engine.load()

    def record(self) -> list[Answered]:
        """The newest requests that came to an end, oldest first."""
        return self._record.newest()

    def state(self) -> dict[str, Any]:
        """What GET /state shows: JSON values only."""
        return {
            "http": self.http,
            "grpc": self.grpc,
            "slowdown": self._slowdown,
            "restarts": self.restarts,
            "in_flight": len(self._visits),
            **self._engine.load(),
        }

    def slow_down(self, factor: float) -> None:
        """Stretch every later pass, prefill and decode, to `factor` times what the roofline says."""
        self._slowdown = factor
        self._engine.slow_down(factor)

    @property
    def fault_kinds(self) -> tuple[FaultKind, ...]:
        return FAULT_KINDS

    def fault(self, fault: Fault | None) -> None:
        """Let calls fail at the doors, or the engine hang; None ends it."""
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

    def _end_of(self, ask: Ask) -> int | None:
        """After which token the model itself will end the answer."""
        if not self.config.eos:
            return None
        tokens = ask.min_new_tokens + 1
        while tokens < ask.max_new_tokens and self._random.random() >= self.config.eos:
            tokens += 1
        return tokens if tokens < ask.max_new_tokens else None

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
        """A few tokens in a turn of the loop: between them it notes who has come in."""
        for token in [self._tokens.popleft() for _ in range(min(_AT_ONCE, len(self._tokens)))]:
            visit = self._visits.get(token.request.id)
            if visit is not None:
                visit.ended = token.end is not None
                visit.on_token(token)
        if self._tokens:
            self._loop.call_soon(self._hand_out)

    async def _open(self) -> None:
        try:
            if self.config.http is not None:
                http = http_door(self, self.http or self.config.http)
                self.http = await http.open()
                self._doors.append(http)
            if self.config.grpc is not None:
                kind = grpc_door if self.config.grpc_server == "h2" else GrpcLibraryDoor
                grpc = kind(self, self.grpc or self.config.grpc)
                self.grpc = await grpc.open()
                self._doors.append(grpc)
        except OSError:
            await self._close()
            raise

    async def _close(self) -> None:
        for door in self._doors:
            await door.close()
        self._doors.clear()
        for visit in list(self._visits.values()):
            self.leave(visit, "CANCELLED")

    def _wait_for(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
