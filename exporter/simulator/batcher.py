"""Continuous batching over the roofline, as a TGI router does it: arithmetic and state, no clock, no I/O, no threads.

    submit ─► waiting ─► next_pass: a prefill of waiting requests, else a decode of the running ones
       ▲   first come,      │
       │  first served      └─► finish: one token each ─► running, or gone
    cancel: gone at the next pass

A pass is a prefill or a decode, never both: the running requests wait while new ones are prefilled. Time is an
argument, in seconds of any one clock. Unlike the real router, prompts are never computed in chunks, and a request
reserves all the tokens that it may need when it starts, in tokens and not in blocks.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from exporter.simulator.prefix_cache import PrefixCache
from exporter.simulator.roofline import Roofline

End = Literal["length", "eos", "time_limit"]


class Overloaded(Exception):
    """As many requests wait and run as are allowed."""


class TooLong(ValueError):
    """A request that no batch could ever hold; the message says which limit it breaks."""


@dataclass(frozen=True)
class AdmissionLimits:
    """What the router admits. Names and defaults are those of the TGI launcher, but for the KV cache and its blocks.

    `max_batch_size` None = only the tokens count. `max_waiting_tokens` is after how many decodes a lone waiting request
    may interrupt; before that `waiting_served_ratio` times the running ones must wait. `max_total_tokens` bounds the
    prompt and the answer of one request. With `scheduling_policy` "priority", as in vLLM, the queue is in the order of
    the requests' priorities, a lower number first; a running request is not interrupted for another.
    """

    max_concurrent_requests: int = 128
    max_input_tokens: int = 4095
    max_total_tokens: int = 4096
    max_batch_size: int | None = None
    max_batch_prefill_tokens: int = 4096
    max_batch_total_tokens: int = 100_000
    max_waiting_tokens: int = 20
    waiting_served_ratio: float = 0.3
    prefix_caching: bool = True
    block_size: int = 16
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"


@dataclass(eq=False)
class BatchedRequest:
    """One request in the queue or the batch. `ends_after`: the token after which the model itself ends the answer.

    At `deadline` (the caller's clock) the answer ends with the tokens that there are. The fields below it change.
    """

    id: int
    prompt: tuple[str, ...]
    max_new_tokens: int
    ends_after: int | None = None
    deadline: float = math.inf
    priority: int = 0
    cached_tokens: int = 0
    generated: int = 0
    queued: float = 0.0
    started: float | None = None
    cancelled: bool = False

    @property
    def computed(self) -> int:
        """Prompt tokens that its prefill computes."""
        return len(self.prompt) - self.cached_tokens

    @property
    def reserved(self) -> int:
        return len(self.prompt) + self.max_new_tokens

    @property
    def context(self) -> int:
        return len(self.prompt) + self.generated


@dataclass(frozen=True)
class Pass:
    """What the GPU does next, and how long by the roofline."""

    method: Literal["prefill", "decode"]
    requests: tuple[BatchedRequest, ...]
    seconds: float


@dataclass(frozen=True)
class Token:
    """The token number `index` (from 0) of a request; `end` is why it was the last one."""

    request: BatchedRequest
    index: int
    end: End | None


@dataclass
class Batcher:
    """The queue and the running batch. One pass at a time: `finish` it before the next one."""

    limits: AdmissionLimits
    roofline: Roofline
    waiting: deque[BatchedRequest] = field(default_factory=deque)
    running: list[BatchedRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._prefixes = PrefixCache(
            self.limits.block_size, self.limits.max_batch_total_tokens // self.limits.block_size
        )
        self._decodes = 0  # since the last prefill
        self._may_join = True

    @property
    def reserved_tokens(self) -> int:
        return sum(request.reserved for request in self.running)

    def submit(self, request: BatchedRequest, now: float) -> None:
        """Put a request at the end of the queue, or of its priority; raises TooLong or Overloaded."""
        self._check(request)
        if self._alive() >= self.limits.max_concurrent_requests:
            raise Overloaded("Model is overloaded")
        request.queued = now
        place = len(self.waiting)
        if self.limits.scheduling_policy == "priority":
            place = sum(other.priority <= request.priority for other in self.waiting)
        self.waiting.insert(place, request)

    def cancel(self, request: BatchedRequest) -> None:
        """The client is gone: the request gets no more tokens and leaves at the next pass."""
        request.cancelled = True

    def next_pass(self, now: float) -> Pass | None:
        """What to compute now; None when there is nothing to do."""
        self.waiting = deque(request for request in self.waiting if not request.cancelled)
        self.running = [request for request in self.running if not request.cancelled]
        joining = self._joining() if self._may_join or not self.running else []
        if joining:
            return self._prefill(joining, now)
        if not self.running:
            return None
        self._may_join = True
        self._decodes += 1
        context = sum(request.context for request in self.running)
        return Pass("decode", tuple(self.running), self.roofline.decode_seconds(len(self.running), context))

    def finish(self, done: Pass, now: float) -> list[Token]:
        """The pass has been computed: one token for each request that is not cancelled, in order of arrival."""
        if done.method == "prefill" and self.limits.prefix_caching:
            for request in done.requests:
                self._prefixes.add(request.prompt)
        tokens = [self._advance(request, now) for request in done.requests if not request.cancelled]
        gone = {token.request.id for token in tokens if token.end}
        self.running = [request for request in self.running if request.id not in gone and not request.cancelled]
        return tokens

    def _check(self, request: BatchedRequest) -> None:
        prompt, new, limits = len(request.prompt), request.max_new_tokens, self.limits
        if prompt > limits.max_input_tokens:
            raise TooLong(f"the input has {prompt} tokens, at most {limits.max_input_tokens} are allowed")
        if prompt + new > limits.max_total_tokens:
            raise TooLong(f"{prompt} input tokens + {new} new tokens are more than {limits.max_total_tokens}")
        if prompt > limits.max_batch_prefill_tokens or prompt + new > limits.max_batch_total_tokens:
            raise TooLong(f"{prompt} input tokens + {new} new tokens fit in no batch")

    def _alive(self) -> int:
        return sum(not request.cancelled for queue in (self.waiting, self.running) for request in queue)

    def _joining(self) -> list[BatchedRequest]:
        """The requests at the head of the queue that fit; none while too few wait to interrupt the running ones."""
        least = 1
        if self.running and self._decodes < self.limits.max_waiting_tokens:
            least = math.floor(len(self.running) * self.limits.waiting_served_ratio)
        room = math.inf if self.limits.max_batch_size is None else self.limits.max_batch_size - len(self.running)
        if len(self.waiting) < least or room < 1:
            return []
        prefill, total = 0, self.reserved_tokens
        chosen: list[BatchedRequest] = []
        for request in self.waiting:
            request.cached_tokens = self._prefixes.cached_tokens(request.prompt) if self.limits.prefix_caching else 0
            prefill += request.computed
            total += request.reserved
            over = prefill > self.limits.max_batch_prefill_tokens or total > self.limits.max_batch_total_tokens
            if over or len(chosen) >= room:
                break
            chosen.append(request)
        return chosen if len(chosen) >= least else []

    def _prefill(self, joining: list[BatchedRequest], now: float) -> Pass:
        # A second prefill may follow the first one directly; later there is a decode between two prefills.
        self._may_join = not self.running
        self._decodes = 0
        for request in joining:
            self.waiting.popleft()
            request.started = now
        self.running += joining
        mean = sum(request.computed for request in joining) / len(joining)
        return Pass("prefill", tuple(joining), self.roofline.prefill_seconds(len(joining), mean))

    def _advance(self, request: BatchedRequest, now: float) -> Token:
        index = request.generated
        request.generated += 1
        end: End | None = None
        if request.generated == request.ends_after:
            end = "eos"
        elif request.generated == request.max_new_tokens:
            end = "length"
        elif now >= request.deadline:
            end = "time_limit"
        return Token(request, index, end)
