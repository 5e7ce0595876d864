"""One request to the router: as it was parsed, and while it is answered."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from exporter.simulator.batcher import BatchedRequest, Token
from exporter.simulator.faults import Fault
from exporter.simulator.lies import ENDLESS_TOKENS
from exporter.simulator.record import AnsweredRequest
from exporter.simulator.router_options import RouterConfig
from exporter.simulator.tgi_metrics import TgiMetrics

PROMPT_START = 64  # characters of the prompt that the record keeps


@dataclass(frozen=True)
class ParsedRequest:
    """A request as the HTTP or gRPC server has parsed it. `method` is the RPC or path, `time_limit` in seconds.

    `received_ns` is an instant of perf_counter. The model does not end the answer before `min_new_tokens`.
    """

    method: str
    text: str
    prompt: tuple[str, ...]
    max_new_tokens: int
    received_ns: int
    min_new_tokens: int = 0
    time_limit: float | None = None
    correlation: str = ""
    priority: int = 0


@dataclass(eq=False)
class ActiveRequest:
    """An admitted request, until its answer is complete. `on_token` gets each token as soon as it is computed.

    Only the thread of the servers may use it.
    """

    parsed: ParsedRequest
    request: BatchedRequest
    on_token: Callable[[Token], None]
    token_ns: list[int] = field(default_factory=list)
    ended: bool = False
    met_fault: bool = False

    def sent(self, tokens: int) -> None:
        """Note the instant at which that many more tokens are given to the socket."""
        self.token_ns += [time.perf_counter_ns()] * tokens

    def meet(self, fault: Fault | None, tokens: int) -> bool:
        """After so many tokens: whether the fault of this stream breaks it off now. An endless one gets more tokens."""
        if fault is None or self.met_fault or tokens < (fault.at or 1):
            return False
        self.met_fault = True
        if fault.kind == "endless":
            self.request.max_new_tokens += ENDLESS_TOKENS
        if fault.at is not None:
            fault.signal_process()
        return fault.kind == "cut" or fault.status is not None

    def entry(self, code: str) -> AnsweredRequest:
        request = self.request
        return AnsweredRequest(
            id=request.id,
            method=self.parsed.method,
            code=code,
            prompt_start=self.parsed.text[:PROMPT_START],
            correlation=self.parsed.correlation,
            prompt_tokens=len(request.prompt),
            cached_tokens=request.cached_tokens,
            max_new_tokens=request.max_new_tokens,
            received_ns=self.parsed.received_ns,
            queued_ns=round(request.queued * 1e9),
            started_ns=0 if request.started is None else round(request.started * 1e9),
            finished_ns=time.perf_counter_ns(),
            token_ns=tuple(self.token_ns),
        )


class RequestHandler(Protocol):
    """What the HTTP and gRPC servers need of the router."""

    config: RouterConfig
    metrics: TgiMetrics

    def admit(self, parsed: ParsedRequest, on_token: Callable[[Token], None]) -> ActiveRequest: ...
    def refuse(self, parsed: ParsedRequest, kind: str, code: str) -> None: ...
    def leave(self, active: ActiveRequest, code: str) -> None: ...
    def meet_fault(self, method: str, named: bool = False) -> Fault | None: ...
    def load(self) -> dict[str, int]: ...
