"""One request from its arrival at a door to the end of its answer, and what is written down of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from exporter.simulator.batcher import Request, Token
from exporter.simulator.faults import Fault
from exporter.simulator.record import Answered
from exporter.simulator.router_options import RouterConfig
from exporter.simulator.tgi_metrics import TgiMetrics

PROMPT_START = 64  # characters of the prompt that the record keeps


@dataclass(frozen=True)
class Ask:
    """What a door has understood. `method` is the rpc or path, `time_limit` in seconds, `received_ns` of perf_counter.

    `min_new_tokens` is how many come in any case; the model may end the answer only later.
    """

    method: str
    text: str
    prompt: tuple[str, ...]
    max_new_tokens: int
    received_ns: int
    min_new_tokens: int = 0
    time_limit: float | None = None
    correlation: str = ""


@dataclass(eq=False)
class Visit:
    """Belongs to the thread of the doors. `on_token` gets each token as soon as it is computed."""

    ask: Ask
    request: Request
    on_token: Callable[[Token], None]
    token_ns: list[int] = field(default_factory=list)
    ended: bool = False

    def sent(self, tokens: int) -> None:
        """`tokens` more are handed over now."""
        self.token_ns += [time.perf_counter_ns()] * tokens

    def entry(self, code: str) -> Answered:
        request = self.request
        return Answered(
            id=request.id,
            method=self.ask.method,
            code=code,
            prompt_start=self.ask.text[:PROMPT_START],
            correlation=self.ask.correlation,
            prompt_tokens=len(request.prompt),
            cached_tokens=request.cached_tokens,
            max_new_tokens=request.max_new_tokens,
            received_ns=self.ask.received_ns,
            queued_ns=round(request.queued * 1e9),
            started_ns=0 if request.started is None else round(request.started * 1e9),
            finished_ns=time.perf_counter_ns(),
            token_ns=tuple(self.token_ns),
        )


class Reception(Protocol):
    """What the doors need of the router."""

    config: RouterConfig
    metrics: TgiMetrics

    def admit(self, ask: Ask, on_token: Callable[[Token], None]) -> Visit: ...
    def refuse(self, ask: Ask, kind: str, code: str) -> None: ...
    def leave(self, visit: Visit, code: str) -> None: ...
    def meet_fault(self, method: str) -> Fault | None: ...
    def load(self) -> dict[str, int]: ...
