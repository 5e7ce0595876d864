"""A TGI router with real users, as far as its shard sees it: batches, blocks, ids from 0, health checks.

It knows each user's answer beforehand and compares every token.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from exporter.simulator import Config, messages
from exporter.simulator.kv_contents import undisturbed
from exporter.simulator.tokenizer import prompt_tokens
from tests.faults.live_traffic.block_pool import Allocation, BlockPool
from tests.faults.live_traffic.shared_shard import CallFailed, Harm, decode_request

LIVENESS_ID = 2**64 - 1
LIVENESS_PLACES = 16
WORDS = ("once", "upon", "a", "time", "in", "the", "far", "land", "of", "rain", "two", "old", "men", "sat", "down")
# What users' prompts begin with: the prefix cache lives on it.
SYSTEM_PROMPTS = 5
MOST_RUNNING = 6
Call = Callable[[str, Any], Any]


@dataclass
class UserRequest:
    """One request, with the tokens of its prompt and the answer that it must get. `ours`: a probe sent it."""

    id: int
    text: str
    truncate: int
    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    allocation: Allocation | None = None
    received: int = 0
    cancelled: bool = False
    ours: bool = False


@dataclass
class RunningBatch:
    id: int
    requests: list[UserRequest] = field(default_factory=list)


class UsersRouter:
    """Makes one call of its shard in each `step`. `call` raises CallFailed."""

    def __init__(self, config: Config, call: Call, rng: random.Random, harm: list[Harm]) -> None:
        self._config, self._call, self._random, self._harm = config, call, rng, harm
        self._wire: Any = messages.module_of(config.protocol)
        self._paged = config.attention == "paged"
        self._prefixes = [self._words(rng.randint(20, 45)) for _ in range(SYSTEM_PROMPTS)]
        self.seen: Counter[str] = Counter()
        self.restarted()

    def restarted(self) -> None:
        """The whole server is new: ids count from 0 again, all blocks are free."""
        self._pool = BlockPool(self._config.kv_tokens // self._config.block_size, self._config.block_size)
        self._waiting: deque[UserRequest] = deque()
        self._running: RunningBatch | None = None
        self._next_request = self._next_batch = 0

    def batch_ids(self) -> set[int]:
        return set() if self._running is None else {self._running.id}

    def blocks(self) -> set[int]:
        return self._pool.in_use() if self._paged else set()

    def step(self) -> None:
        """What happens next: users come and go, and the shard gets one call or two."""
        chance = self._random.random()
        if len(self._waiting) < 4 and chance < 0.3:
            self.ask(*self._question())
        if chance > 0.98:
            self._check_health()
        if chance > 0.95 and self._running is not None:
            self._random.choice(self._running.requests).cancelled = True
        joining = self._joining()
        if joining:
            self._prefill(joining)
        elif self._running is not None:
            self._decode([self._running])

    def ask(self, text: str, truncate: int, tokens: int, ours: bool = False) -> UserRequest:
        """Queue a request. It waits until it is answered or cancelled."""
        special = self._paged and self._config.protocol == "v3"
        prompt = tuple(prompt_tokens(text, truncate, special))
        request = UserRequest(self._next_request, text, truncate, prompt, undisturbed(prompt, tokens), ours=ours)
        self._next_request += 1
        self._waiting.append(request)
        return request

    def _question(self) -> tuple[str, int, int]:
        text = f"{self._random.choice(self._prefixes)} {self._words(self._random.randint(1, 12))}"
        return text, 1000, self._random.randint(1, 24)

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(WORDS, k=count))

    def _joining(self) -> list[UserRequest]:
        """Those that wait and for which there is room."""
        self._waiting = deque(request for request in self._waiting if not request.cancelled)
        running = len(self._running.requests) if self._running is not None else 0
        if running and self._random.random() < 0.7:
            return []
        joining: list[UserRequest] = []
        while self._waiting and running + len(joining) < MOST_RUNNING:
            request = self._waiting[0]
            if self._paged:
                request.allocation = self._pool.allocate(request.prompt, self._places(request))
                if request.allocation is None:
                    break
                self.seen["cached tokens"] += request.allocation.cached
            joining.append(self._waiting.popleft())
        return joining

    def _places(self, request: UserRequest) -> int:
        return len(request.prompt) + len(request.answer) - 1 + self._config.speculate

    def _prefill(self, joining: list[UserRequest]) -> None:
        batch = RunningBatch(self._next_batch, joining)
        self._next_batch += 1
        wire = self._wire
        message = wire.Batch(id=batch.id, size=len(joining), requests=[self._request(one) for one in joining])
        # A prompt's prefix can be shared as soon as it was computed, even by the next request of the same step.
        if not self._advance("Prefill", wire.PrefillRequest(batch=message), [batch]):
            return
        for request in joining:
            if request.allocation is not None:
                self._pool.computed(request.allocation)
        self._settle(batch)
        if batch.requests and self._running is not None:
            self._decode([self._running, batch])
        elif batch.requests:
            self._running = batch

    def _request(self, request: UserRequest) -> Any:
        wire = self._wire
        made = wire.Request(
            id=request.id,
            inputs=request.text,
            truncate=request.truncate,
            parameters=wire.NextTokenChooserParameters(temperature=1, top_p=1, typical_p=1, repetition_penalty=1),
            stopping_parameters=wire.StoppingCriteriaParameters(max_new_tokens=len(request.answer)),
        )
        if self._config.protocol == "v3":
            made.input_chunks.chunks.add(text=request.text)
            made.add_special_tokens = True
        if request.allocation is not None:
            made.blocks.extend(request.allocation.blocks)
            made.slots.extend(request.allocation.slots(self._places(request), self._config.block_size))
            made.cache_len = request.allocation.cached
        return made

    def _decode(self, batches: list[RunningBatch]) -> None:
        """Batches that are decoded together go on as one, under the id of the first."""
        first = self._running = batches[0]
        if self._advance("Decode", decode_request(self._wire, *(batch.id for batch in batches)), batches):
            first.requests = [request for batch in batches for request in batch.requests]
            self._settle(first)
        if not first.requests:
            self._running = None

    def _advance(self, method: str, request: Any, batches: list[RunningBatch]) -> bool:
        """Make the call, and compare what users get. Without an answer the batches are lost."""
        expected = {one.id: one for batch in batches for one in batch.requests}
        self.seen[method] += 1
        try:
            answer = self._call(method, request)
        except CallFailed as failure:
            self._harm.append(Harm("answer", f"{len(expected)} users lost their answers: {failure}"))
            self._drop(batches)
            return False
        found = {generation.request_id: list(generation.tokens.texts) for generation in answer.generations}
        if found.keys() != expected.keys():
            text = f"{method} answered requests {sorted(found)} instead of {sorted(expected)}"
            self._harm.append(Harm("answer", text))
            self._drop(batches)
            return False
        for request_id, words in found.items():
            self._compare(expected[request_id], words)
        return True

    def _compare(self, request: UserRequest, words: list[str]) -> None:
        wanted = list(request.answer[request.received : request.received + len(words)])
        if words != wanted:
            text = f"request {request.id} got {words} instead of {wanted} after {request.received} tokens"
            self._harm.append(Harm("answer", text))
        request.received += len(words)
        self.seen["tokens"] += len(words)

    def _drop(self, batches: list[RunningBatch]) -> None:
        for batch in batches:
            for request in batch.requests:
                self._free(request)
            batch.requests = []
        self._running = None

    def _settle(self, batch: RunningBatch) -> None:
        """Take out the requests that are finished or whose users are gone."""
        going_on = [one for one in batch.requests if one.received < len(one.answer) and not one.cancelled]
        leaving = [one for one in batch.requests if one not in going_on]
        unfinished = any(one.received < len(one.answer) for one in batch.requests)
        for request in leaving:
            self._free(request)
            self.seen["cancelled" if request.received < len(request.answer) else "answered"] += 1
        batch.requests = going_on
        if not going_on and unfinished:
            self._call("ClearCache", self._wire.ClearCacheRequest(id=batch.id))
        elif going_on and leaving:
            ids = [request.id for request in going_on]
            try:
                self._call("FilterBatch", self._wire.FilterBatchRequest(batch_id=batch.id, request_ids=ids))
            except CallFailed as failure:
                self._harm.append(Harm("answer", f"{len(ids)} users lost their answers: {failure}"))
                self._drop([batch])

    def _free(self, request: UserRequest) -> None:
        if request.allocation is not None:
            self._pool.free(request.allocation)
            request.allocation = None

    def _check_health(self) -> None:
        """TGI's router does so after a failure, in the block that it gives to no user."""
        wire = self._wire
        request = UserRequest(LIVENESS_ID, "liveness", 10, (), ("",))
        made = self._request(request)
        if self._paged:
            made.blocks.extend([0] * LIVENESS_PLACES)
            made.slots.extend(at % self._config.block_size for at in range(LIVENESS_PLACES))
        self.seen["health checks"] += 1
        try:
            message = wire.Batch(id=LIVENESS_ID, size=1, requests=[made])
            self._call("Prefill", wire.PrefillRequest(batch=message))
        except CallFailed as failure:
            self._harm.append(Harm("answer", f"the router's health check failed: {failure}"))
