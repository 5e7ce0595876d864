"""Requests whose prompts have the wanted length in tokens; learns the length from what the server counts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Stream, lateness
from exporter.plan.prompts import WORDS, Lengths, Prompts
from exporter.plan.targets import Facts, over_limits
from exporter.probes.deadline import DEADLINE_EXCEEDED, out_of_time
from exporter.probes.router.protocol import Ask, RouterProtocol, Told
from exporter.wire.connection import ClientConnection
from exporter.wire.exchanges import Exchange
from exporter.wire.trace_context import HEADER, traceparent

# How many texts are counted, at most, until a length is found. Three will do: a short, a longer, and the wanted one.
TRIES = 6
# Sends one prompt as a stream and watches it to its end: the stream, a line for people, and the prompt's length as
# the server counts it.
Single = Callable[[Workload, str], tuple[Stream, str, int | None]]


class RequestBuilder:
    """Composes for one target. `seed` makes prompts repeatable."""

    def __init__(self, target: Target, protocol: RouterProtocol, seed: int | None = None) -> None:
        self._target = target
        self._protocol = protocol
        self._random = random.Random(seed)
        self._order = self._random.sample(WORDS, len(WORDS))
        self._prompts: dict[tuple[str, int] | None, Prompts] = {}
        self._lengths = Lengths(protocol.truncates)
        self._texts: WeakKeyDictionary[Exchange, str] = WeakKeyDictionary()
        # prompt_cache: hit: what was counted of a text when it was sent for the first time.
        self._first_counts: dict[str, int] = {}
        self._sent_before: set[str] = set()
        self._put_right: set[int] = set()
        # What this server can do, as far as it is known.
        self._tokenizes = target.kind == "fmaas"
        self._streams_count = self._takes_one_token = True
        self._corrections = 0

    def forget(self) -> None:
        """Before a connection to what may be another server: its lengths are asked for anew."""
        self._protocol.forget()
        self._lengths.forget()
        self._first_counts.clear()
        self._sent_before.clear()
        self._put_right.clear()
        self._tokenizes = self._target.kind == "fmaas"
        self._streams_count = self._takes_one_token = True

    def corrections(self) -> int:
        """See `Observation`: those since last asked."""
        taken, self._corrections = self._corrections, 0
        return taken

    def fit(self, workload: Workload, single: Single, ask: Ask, late: Callable[[], bool]) -> None:
        """Once for each length: find out how many words make it, with single requests until it is `late`.

        Raises Failure: refused where no prompt can be that short.
        """
        wanted = workload.sequence_length
        for _ in range(TRIES):
            if self._lengths.settled(wanted) or late():
                break
            words = self._lengths.next_words(wanted)
            [text] = self._of(None).texts(1, words)
            self._lengths.learn(wanted, words, self._counted(workload, text, single, ask))
        if not self._lengths.settled(wanted):
            self._lengths.settle(wanted)
        self.check_length(workload)

    def _counted(self, workload: Workload, text: str, single: Single, ask: Ask) -> int | None:
        """What the server counts of this prompt, found out as cheaply as it lets us. Raises Failure."""
        if self._tokenizes:
            self._corrections += 1
            counted = self._protocol.tokenize(ask, text)
            self._tokenizes = counted is not None
            if counted is not None:
                return counted
        counted = None
        if self._streams_count:
            stream, detail, counted = self._alone(workload, text, single)
            if stream.outcome is not Outcome.OK:
                raise Failure(stream.outcome, stream.code, detail)
            self._streams_count = counted is not None
        if counted is None:
            self._corrections += 1
            counted = self._protocol.count(ask, text, workload)
        return counted

    def _alone(self, workload: Workload, text: str, single: Single) -> tuple[Stream, str, int | None]:
        """For one token, where the server takes that: it may want more, or have no text for a single one."""
        if self._takes_one_token:
            self._corrections += 1
            stream, detail, counted = single(workload.model_copy(update={"decode_length": 1}), text)
            if stream.outcome not in (Outcome.REJECTED, Outcome.MALFORMED):
                return stream, detail, counted
            self._takes_one_token = False
        self._corrections += 1
        return single(workload, text)

    def texts(self, workload: Workload, count: int) -> list[str]:
        """The next prompts. With prompt_cache: hit the same one for ever, all of a batch alike."""
        key = (workload.name, count) if workload.prompt_cache == "hit" else None
        return self._of(key).texts(count, self._lengths.words(workload.sequence_length))

    def _of(self, key: tuple[str, int] | None) -> Prompts:
        if key not in self._prompts:
            self._prompts[key] = Prompts(self._random, key is not None, self._order)
        return self._prompts[key]

    def fill_cache(self, workload: Workload, count: int, single: Single) -> None:
        """Send the text of a batch that is meant to hit a cache, if that cannot hold it yet. Raises Failure."""
        if workload.prompt_cache != "hit":
            return
        text = self.texts(workload, count)[0]
        if text in self._sent_before:
            return
        self._corrections += 1
        stream, detail, _ = single(workload, text)
        if stream.outcome is not Outcome.OK:
            raise Failure(stream.outcome, stream.code, detail)
        self._sent_before.add(text)

    def off(self, workload: Workload, counts: Sequence[int]) -> bool:
        """Whether prompts that were counted so have the wrong length, and sending others would help. Only once for each
        server: one whose counts wander is measured as it counts.
        """
        wanted = workload.sequence_length
        if not counts or not self.learn(workload, sum(counts) / len(counts)):
            return False
        if wanted in self._put_right or self._lengths.least(wanted):
            return False
        self._put_right.add(wanted)
        self._corrections += len(counts)
        return True

    def learn(self, workload: Workload, counted: float) -> bool:
        """Whether a length, as the server counts it, is off by more than a word or two; the next ones differ then."""
        wanted = workload.sequence_length
        if workload.prompt_cache == "hit" and not self._lengths.off(wanted, counted):
            return False  # another text would spoil what the cache holds
        return self._lengths.check(wanted, counted)

    def exchange(self, connection: ClientConnection, text: str, workload: Workload, trace_id: str = "") -> Exchange:
        """Ready to be launched. Raises Failure."""
        request = self._protocol.request(text, workload, self._random.getrandbits(31))
        if trace_id:
            request = replace(request, headers=(*request.headers, (HEADER, traceparent(trace_id))))
        exchange = Exchange(connection, request, self._protocol.answer(workload))
        self._texts[exchange] = text
        return exchange

    def check_limits(self, facts: Facts | None, workload: Workload) -> None:
        """Raises Failure where the server has said that it would reject such requests."""
        if facts is None:
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{self._target.address}: not connected")
        why = over_limits(facts, workload)
        if why is not None:
            raise Failure(Outcome.REFUSED, "REFUSED", f"{self._target.address}: {why}")

    def check_length(self, workload: Workload) -> None:
        """Raises Failure where it was found out that no prompt of that length can be had."""
        least = self._lengths.least(workload.sequence_length)
        if least is None:
            return
        tokens, added = least
        what = "the chat template" if self._target.kind == "http" and self._target.api == "chat" else "the server"
        raise Failure(
            Outcome.REFUSED,
            "REFUSED",
            f"{self._target.address}: {what} adds {added} tokens to a prompt: sequence_length must be at least "
            f"{tokens}, not {workload.sequence_length}",
        )

    def stream(
        self, exchange: Exchange, workload: Workload, intended: float | None = None
    ) -> tuple[Stream, str, int | None]:
        """An exchange that has ended: its facts, a line for people, the prompt's length if it is known."""
        assert exchange.ended is not None
        failure, told = exchange.failure, Told((), None)
        if failure is None:
            try:
                told = exchange.reader.told(exchange.sent)  # type: ignore[attr-defined]  # made by `exchange` above
            except Failure as error:
                failure = error
        tokens, counted = self._prompt(self._texts.pop(exchange), workload, told.prompt_tokens)
        estimated = counted is None and self._lengths.estimated
        if failure is None:
            stream = Stream(
                1,
                tokens,
                exchange.sent,
                exchange.ended,
                told.steps,
                intended=intended,
                prompt_estimated=estimated,
                generated_estimated=told.estimated,
                sent_late=exchange.sent_late,
                ended_late=lateness(exchange.ended),
                read_delay=exchange.read_delay,
            )
            return stream, "", counted
        failure = self._protocol.explained(self._protocol.discreet(failure))
        stream = Stream(
            1, tokens, exchange.sent, exchange.ended, (), failure.outcome, failure.code, intended, estimated
        )
        said = failure.detail.removeprefix(f"{exchange.connection.where}: ")
        if failure.code == DEADLINE_EXCEEDED:
            quiet = exchange.ended - exchange.heard if exchange.heard is not None else 0.0
            said = out_of_time(workload, exchange.reader.so_far(), quiet)  # type: ignore[attr-defined]  # as above
        return stream, f"{self._target.address}: {said}", None

    def _prompt(self, text: str, workload: Workload, told: int | None) -> tuple[int, int | None]:
        """A prompt's tokens, and what the server has counted of them, where that can be true.

        A text sent again is no shorter than before: some servers count only what their cache did not hold.
        """
        words, wanted = text.count(" ") + 1, workload.sequence_length
        counted = told if told is not None and self._lengths.plausible(words, wanted, told) else None
        if workload.prompt_cache == "hit":
            first = self._first_counts.get(text)
            if counted is not None and first is None:
                self._first_counts[text] = counted
            elif first is not None:
                counted = max(first, counted or 0)
        return (self._lengths.tokens(words, wanted) if counted is None else counted), counted
