"""Requests whose prompts have the wanted length in tokens; learns the length from what the server counts."""

import random
from collections.abc import Callable
from dataclasses import replace

from exporter.observation import Failure, Outcome, Stream
from exporter.probes.front import Front, Told
from exporter.prompts import Prompts, Ruler, off
from exporter.settings import Target, Workload
from exporter.streaming.exchange import Request
from exporter.streaming.flights import Connection, Flight
from exporter.targets import Facts, over_limits
from exporter.tracing import HEADER, traceparent

# Two lengths tell both what a word counts and what the server adds to a prompt.
MEASURED_WORDS = (8, 256)


class Composer:
    """Composes for one target. `seed` makes prompts repeatable."""

    def __init__(self, target: Target, front: Front, seed: int | None = None) -> None:
        self._target = target
        self._front = front
        self._random = random.Random(seed)
        self._prompts: dict[tuple[str, int] | None, Prompts] = {}
        self._rulers: dict[tuple[str, int], Ruler] = {}
        self._measured: Ruler | None = None
        self._sent_before: set[str] = set()

    def measure(self, ask: Callable[[Request], bytes]) -> None:
        """Once: let the server count, where it does. Raises Failure."""
        if self._measured is not None:
            return
        prompts, ruler = Prompts(self._random), Ruler()
        counted = self._front.measure(ask, [prompts.texts(1, words)[0] for words in MEASURED_WORDS])
        for words, tokens in zip(MEASURED_WORDS, counted or (), strict=False):
            ruler.learn(words, tokens)
        self._measured = ruler

    def texts(self, workload: Workload, count: int) -> list[str]:
        """The next prompts. With prompt_cache: hit the same one for ever, all of a batch alike."""
        hit = workload.prompt_cache == "hit"
        key = (workload.name, count) if hit else None
        if key not in self._prompts:
            self._prompts[key] = Prompts(self._random, hit)
        return self._prompts[key].texts(count, self._ruler(workload).words(workload.sequence_length))

    def cold(self, workload: Workload, text: str) -> bool:
        """Whether this text is meant to hit a cache that cannot hold it yet. Asking means that it is sent now."""
        if workload.prompt_cache != "hit" or text in self._sent_before:
            return False
        self._sent_before.add(text)
        return True

    def corrected(self, workload: Workload, counted: float | None) -> bool:
        """Whether prompts that were `counted` as so many tokens (the mean) have the wrong length. The next ones
        differ.
        """
        if counted is None:
            return False
        wrong = off(counted, workload.sequence_length)
        # A small difference is put right from the next probe on, but not where that would spoil what a cache holds.
        if wrong or (workload.prompt_cache == "miss" and round(counted) != workload.sequence_length):
            ruler = self._ruler(workload)
            ruler.learn(ruler.words(workload.sequence_length), counted)
        return wrong

    def wrong_length(self, workload: Workload, counted: float | None) -> Failure:
        """What to say where correcting does not help."""
        return Failure(
            Outcome.REFUSED,
            "REFUSED",
            f"{self._target.address}: a prompt for sequence_length {workload.sequence_length} is {counted or 0:g}"
            " tokens there, and no text comes closer; make sequence_length longer than what the server adds to it",
        )

    def _ruler(self, workload: Workload) -> Ruler:
        key = (workload.name, workload.sequence_length)
        if key not in self._rulers:
            known = self._measured or Ruler()
            self._rulers[key] = Ruler(known.each, known.beside)
        return self._rulers[key]

    def flight(self, connection: Connection, text: str, workload: Workload, trace_id: str = "") -> Flight:
        """Ready to be launched. Raises Failure."""
        request = self._front.request(text, workload, self._random.getrandbits(31))
        if trace_id:
            request = replace(request, headers=(*request.headers, (HEADER, traceparent(trace_id))))
        return Flight(connection, request, self._front.answer())

    def check_limits(self, facts: Facts | None, workload: Workload) -> None:
        """Raises Failure where the server has said that it would reject such requests."""
        if facts is None:
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{self._target.address}: not connected")
        why = over_limits(facts, workload)
        if why is not None:
            raise Failure(Outcome.REFUSED, "REFUSED", f"{self._target.address}: {why}")

    def stream(
        self, flight: Flight, workload: Workload, intended: float | None = None
    ) -> tuple[Stream, str, int | None]:
        """What became of a flight that has ended: the facts, a line for people, the prompt's length if it was told."""
        assert flight.ended is not None
        failure, told = flight.failure, Told((), None)
        if failure is None:
            try:
                told = flight.answer.told(flight.sent)  # type: ignore[attr-defined]  # made by `flight` above
            except Failure as error:
                failure = error
        tokens = workload.sequence_length if told.prompt_tokens is None else told.prompt_tokens
        if failure is None:
            return Stream(1, tokens, flight.sent, flight.ended, told.steps, intended=intended), "", told.prompt_tokens
        failure = self._front.discreet(failure)
        stream = Stream(1, tokens, flight.sent, flight.ended, (), failure.outcome, failure.code, intended)
        return stream, f"{self._target.address}: {failure.detail}", None
