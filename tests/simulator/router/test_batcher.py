"""Continuous batching in virtual time: each pass takes what the roofline says, and nothing else goes by."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.simulator.batcher import AdmissionLimits, BatchedRequest, Batcher, Overloaded, Pass, Token, TooLong
from exporter.simulator.roofline import Roofline

LIMITS = AdmissionLimits(
    max_concurrent_requests=64, max_batch_total_tokens=2000, max_batch_prefill_tokens=600, max_input_tokens=600
)


def request(
    number: int, prompt: int = 10, new: int = 5, word: str | None = None, **changes: float | int
) -> BatchedRequest:
    """A prompt of its own, unless a word is given."""
    made = BatchedRequest(number, (word or f"p{number}",) * prompt, new)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@dataclass
class Run:
    """A batcher, its time, and all that came out of it."""

    batcher: Batcher = field(default_factory=lambda: Batcher(LIMITS, Roofline()))
    now: float = 0.0
    passes: list[Pass] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)

    def submit(self, *requests: BatchedRequest) -> None:
        for one in requests:
            self.batcher.submit(one, self.now)

    def step(self) -> Pass | None:
        done = self.batcher.next_pass(self.now)
        if done is not None:
            self.now += done.seconds
            self.passes.append(done)
            self.tokens += self.batcher.finish(done, self.now)
        return done

    def to_the_end(self) -> None:
        while self.step() is not None:
            pass

    @property
    def methods(self) -> list[tuple[str, list[int]]]:
        return [(done.method, [one.id for one in done.requests]) for done in self.passes]

    def tokens_of(self, number: int) -> list[int]:
        return [token.index for token in self.tokens if token.request.id == number]


arrivals = st.lists(
    st.tuples(st.integers(1, 600), st.integers(1, 40), st.integers(0, 3), st.booleans()), min_size=1, max_size=40
)


@given(arrivals, st.one_of(st.none(), st.integers(1, 8)), st.booleans(), st.floats(0, 3), st.integers(0, 20))
def test_every_admitted_request_gets_exactly_its_tokens_in_order_within_all_limits(
    coming: list[tuple[int, int, int, bool]], most: int | None, caching: bool, ratio: float, patience: int
) -> None:
    limits = replace(
        LIMITS,
        max_batch_size=most,
        prefix_caching=caching,
        waiting_served_ratio=ratio,
        max_waiting_tokens=patience,
    )
    run = Run(Batcher(limits, Roofline()))
    asked = []
    for number, (prompt, new, steps_before, shared) in enumerate(coming):
        for _ in range(steps_before):
            run.step()
        asked.append(request(number, prompt, new, word="same" if shared else None))
        run.submit(asked[-1])
    run.to_the_end()
    for one in asked:
        assert run.tokens_of(one.id) == list(range(one.max_new_tokens))
        assert [token.end for token in run.tokens if token.request is one][-1] == "length"
    started = [number for method, numbers in run.methods if method == "prefill" for number in numbers]
    assert started == sorted(started), "first come, first served"
    for done in run.passes:
        assert len(done.requests) <= (most or len(asked))
        assert sum(one.reserved for one in done.requests) <= limits.max_batch_total_tokens
        if done.method == "prefill":
            assert sum(one.computed for one in done.requests) <= limits.max_batch_prefill_tokens
    assert run.batcher.running == []
    assert run.batcher.reserved_tokens == 0


@given(arrivals, st.sets(st.integers(0, 39)), st.integers(0, 30))
def test_a_cancelled_request_gets_no_token_more_and_the_others_all_of_theirs(
    coming: list[tuple[int, int, int, bool]], cancelled: set[int], after: int
) -> None:
    run = Run()
    asked = [request(number, prompt, new) for number, (prompt, new, _, _) in enumerate(coming)]
    run.submit(*asked)
    for _ in range(after):
        run.step()
    for number in cancelled & set(range(len(asked))):
        run.batcher.cancel(asked[number])
    before = len(run.tokens)
    run.to_the_end()
    assert not {token.request.id for token in run.tokens[before:]} & cancelled
    for one in asked:
        if one.id not in cancelled:
            assert run.tokens_of(one.id) == list(range(one.max_new_tokens))


def test_a_prefill_pauses_those_who_decode() -> None:
    run = Run(Batcher(replace(LIMITS, max_waiting_tokens=0), Roofline()))
    run.submit(request(0, new=6))
    run.step(), run.step()
    run.submit(request(1, new=3))
    run.to_the_end()
    assert run.methods == [
        ("prefill", [0]),
        ("decode", [0]),
        ("prefill", [1]),
        ("decode", [0, 1]),
        ("decode", [0, 1]),
        ("decode", [0]),
        ("decode", [0]),
    ]


def test_a_lone_request_waits_max_waiting_tokens_decodes_while_too_few_wait() -> None:
    limits = replace(LIMITS, waiting_served_ratio=2.0, max_waiting_tokens=3)
    run = Run(Batcher(limits, Roofline()))
    run.submit(request(0, new=8))
    run.step()
    run.submit(request(1, new=2))
    run.to_the_end()
    assert [method for method, _ in run.methods[:6]] == ["prefill", "decode", "decode", "decode", "prefill", "decode"]


def test_enough_waiting_requests_join_at_once() -> None:
    run = Run(Batcher(replace(LIMITS, waiting_served_ratio=2.0, max_waiting_tokens=30), Roofline()))
    run.submit(request(0, new=8))
    run.step()
    run.submit(request(1), request(2))
    run.step()
    assert run.methods[-1] == ("prefill", [1, 2])


def test_there_is_a_decode_between_two_prefills_that_interrupt() -> None:
    run = Run(Batcher(replace(LIMITS, max_waiting_tokens=0), Roofline()))
    run.submit(request(0))
    run.step(), run.step()
    run.submit(request(1, prompt=500), request(2, prompt=500))
    run.to_the_end()
    assert [method for method, _ in run.methods[2:5]] == ["prefill", "decode", "prefill"]


def test_the_time_of_a_pass_is_the_rooflines() -> None:
    run = Run()
    run.submit(request(0, prompt=100), request(1, prompt=300))
    prefill, decode = run.step(), run.step()
    assert prefill is not None
    assert decode is not None
    assert prefill.seconds == Roofline().prefill_seconds(2, 200)
    assert decode.seconds == Roofline().decode_seconds(2, 101 + 301)
    assert [one.started for one in prefill.requests] == [0.0, 0.0]


def test_a_prompt_that_was_there_before_is_nearly_free() -> None:
    run = Run()
    run.submit(request(0, prompt=600, new=1, word="same"))
    run.to_the_end()
    run.submit(request(1, prompt=600, new=1, word="same"))
    run.to_the_end()
    first, second = run.passes
    assert second.requests[0].cached_tokens == 592
    assert first.seconds == Roofline().prefill_seconds(1, 600)
    assert second.seconds == Roofline().prefill_seconds(1, 8)


def test_without_prefix_caching_the_same_prompt_costs_the_same_again() -> None:
    run = Run(Batcher(replace(LIMITS, prefix_caching=False), Roofline()))
    for number in (0, 1):
        run.submit(request(number, prompt=600, new=1, word="same"))
        run.to_the_end()
    assert run.passes[0].seconds == run.passes[1].seconds
    assert run.passes[1].requests[0].cached_tokens == 0


def test_only_so_many_requests_wait_and_run_at_once() -> None:
    run = Run(Batcher(replace(LIMITS, max_concurrent_requests=2), Roofline()))
    first, second = request(0), request(1)
    run.submit(first, second)
    with pytest.raises(Overloaded, match="Model is overloaded"):
        run.submit(request(2))
    run.batcher.cancel(second)
    run.submit(request(3))
    run.to_the_end()
    run.submit(request(4), request(5))


@pytest.mark.parametrize(
    ("prompt", "new", "words"),
    [
        (601, 1, "the input has 601 tokens, at most 600 are allowed"),
        (600, 3497, "600 input tokens + 3497 new tokens are more than 4096"),
        (600, 1401, "600 input tokens + 1401 new tokens fit in no batch"),
    ],
)
def test_what_could_never_run_is_refused(prompt: int, new: int, words: str) -> None:
    with pytest.raises(TooLong) as refused:
        Run().submit(request(0, prompt, new))
    assert str(refused.value) == words


def test_the_model_may_end_an_answer_before_the_limit() -> None:
    run = Run()
    run.submit(request(0, new=9, ends_after=4))
    run.to_the_end()
    assert [token.end for token in run.tokens] == [None, None, None, "eos"]


def test_a_request_past_its_deadline_ends_with_the_token_it_just_got() -> None:
    run = Run()
    run.submit(request(0, new=50, deadline=0.05))
    run.to_the_end()
    assert run.tokens[-1].end == "time_limit"
    assert run.now >= 0.05 > run.now - run.passes[-1].seconds


def test_with_priorities_the_queue_has_lower_numbers_first_and_within_one_the_order_of_arrival() -> None:
    limits = replace(LIMITS, scheduling_policy="priority", max_batch_size=1)
    run = Run(Batcher(limits, Roofline()))
    run.submit(request(0, priority=5), request(1, priority=5), request(2), request(3, priority=-1), request(4))
    run.to_the_end()
    assert [requests for method, requests in run.methods if method == "prefill"] == [[3], [2], [4], [0], [1]]


def test_without_them_a_priority_changes_nothing() -> None:
    run = Run(Batcher(replace(LIMITS, max_batch_size=1), Roofline()))
    run.submit(request(0, priority=5), request(1))
    run.to_the_end()
    assert [requests for method, requests in run.methods if method == "prefill"] == [[0], [1]]
