"""Builds requests whose prompts have the wanted number of tokens. It learns from what the server counts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Step, Stream, lateness
from exporter.plan.prompt_lengths import PromptLengths
from exporter.plan.prompts import Prompts
from exporter.plan.safety import over_limits
from exporter.plan.targets import Facts
from exporter.plan.words import WORDS
from exporter.probes.deadline import DEADLINE_EXCEEDED, out_of_time
from exporter.probes.router.protocol import Ask, RouterProtocol, TokenReader
from exporter.probes.router.token_counts import AnswerTokens, steps
from exporter.wire.connection import ClientConnection
from exporter.wire.exchanges import Exchange
from exporter.wire.trace_context import trace_headers

# How many texts the server counts until a length is found: a short one, a longer one and the wanted one are enough.
TRIES = 6


class RequestResult(NamedTuple):
    """What became of one request: the facts, a line for people, and the prompt's length where the server counts it."""

    stream: Stream
    detail: str
    prompt_tokens: int | None

    def tokens_or_failure(self) -> int | None:
        """`prompt_tokens`. Raises Failure where the request failed."""
        if self.stream.outcome is not Outcome.OK:
            raise Failure(self.stream.outcome, self.stream.code, self.detail)
        return self.prompt_tokens


# Sends one prompt as a stream and waits for its end.
SendOne = Callable[[Workload, str], RequestResult]


class RequestBuilder:
    """Builds the requests for one target."""

    def __init__(self, target: Target, protocol: RouterProtocol) -> None:
        self._target = target
        self._protocol = protocol
        self._random = random.Random()
        self._order = self._random.sample(WORDS, len(WORDS))
        self._prompts: dict[tuple[str, int] | None, Prompts] = {}
        self._lengths = PromptLengths(protocol.truncates)
        self._in_flight: WeakKeyDictionary[Exchange, tuple[str, TokenReader]] = WeakKeyDictionary()
        self._corrections = 0
        self.forget()

    def forget(self) -> None:
        """The next connection may lead to another server: find out the lengths again."""
        self._protocol.forget()
        self._lengths.forget()
        # With prompt_cache: hit, the server's count of a text when it was sent for the first time.
        self._first_counts: dict[str, int] = {}
        self._sent_before: set[str] = set()
        self._corrected: set[int] = set()
        # What this server can do, as far as known.
        self._tokenizes = self._protocol.tokenizes
        self._streams_count = self._takes_one_token = True

    def corrections(self) -> int:
        """See `Observation`: those since the last call."""
        taken, self._corrections = self._corrections, 0
        return taken

    def fit(self, workload: Workload, send: SendOne, ask: Ask, late: Callable[[], bool]) -> None:
        """Find out how many words make a prompt of the wanted length, until it is `late`. Once for each length.

        Raises Failure: refused where no prompt can be that short.
        """
        wanted = workload.sequence_length
        if self._protocol.exact() and not self._lengths.settled(wanted):
            self._lengths.settle(wanted)
        for _ in range(TRIES):
            if self._lengths.settled(wanted) or late():
                break
            words = self._lengths.next_words(wanted)
            [text] = self._of(None).texts(1, words)
            self._lengths.learn(wanted, words, self._counted(workload, text, send, ask))
        if not self._lengths.settled(wanted):
            self._lengths.settle(wanted)
        self.check_length(workload)

    def _counted(self, workload: Workload, text: str, send: SendOne, ask: Ask) -> int | None:
        """The server's count of this prompt, in the cheapest way that the server offers. Raises Failure."""
        counted = None
        if self._tokenizes:
            counted = self._count_prompt(workload, text, ask)
            self._tokenizes = counted is not None
        if counted is None and self._streams_count:
            counted = self._shortest(workload, text, send).tokens_or_failure()
            self._streams_count = counted is not None
        if counted is None and not self._protocol.tokenizes:
            counted = self._count_prompt(workload, text, ask)
        return counted

    def _count_prompt(self, workload: Workload, text: str, ask: Ask) -> int | None:
        self._corrections += 1
        return self._protocol.count_prompt(ask, text, workload)

    def _shortest(self, workload: Workload, text: str, send: SendOne) -> RequestResult:
        """A request for one token, or for all where the server refuses that or sends no text for one token."""
        if self._takes_one_token:
            self._corrections += 1
            result = send(workload.model_copy(update={"decode_length": 1}), text)
            if result.stream.outcome not in (Outcome.REJECTED, Outcome.MALFORMED):
                return result
            self._takes_one_token = False
        self._corrections += 1
        return send(workload, text)

    def texts(self, workload: Workload, count: int) -> list[str]:
        """The next prompts. With prompt_cache: hit always the same text, for all requests of a batch."""
        key = (workload.name, count) if workload.prompt_cache == "hit" else None
        return self._of(key).texts(count, self._lengths.words(workload.sequence_length))

    def _of(self, key: tuple[str, int] | None) -> Prompts:
        if key not in self._prompts:
            self._prompts[key] = Prompts(self._random, key is not None, self._order)
        return self._prompts[key]

    def fill_cache(self, workload: Workload, count: int, send: SendOne) -> None:
        """With prompt_cache: hit, send the text of a batch once before the batch. Raises Failure."""
        if workload.prompt_cache != "hit":
            return
        text = self.texts(workload, count)[0]
        if text not in self._sent_before:
            self._corrections += 1
            send(workload, text).tokens_or_failure()
            self._sent_before.add(text)

    def wrong_length(self, workload: Workload, counts: Sequence[int]) -> bool:
        """Whether prompts with these counts have the wrong length, and others would have the right one.

        True only once for each server: one whose counts vary is measured as it counts.
        """
        wanted = workload.sequence_length
        if not counts or not self.learn(workload, sum(counts) / len(counts)):
            return False
        if wanted in self._corrected or self._lengths.least(wanted):
            return False
        self._corrected.add(wanted)
        self._corrections += len(counts)
        return True

    def learn(self, workload: Workload, counted: float) -> bool:
        """Whether the server's count is off by more than a word or two. The next prompts differ then."""
        wanted = workload.sequence_length
        if workload.prompt_cache == "hit" and not self._lengths.off(wanted, counted):
            return False  # another text would not be in the cache
        return self._lengths.check(wanted, counted)

    def exchange(self, connection: ClientConnection, text: str, workload: Workload, trace_id: str = "") -> Exchange:
        """A request that is ready to be sent. Raises Failure."""
        request = self._protocol.request(text, workload, self._random.getrandbits(31))
        request = replace(request, headers=request.headers + trace_headers(trace_id))
        reader = self._protocol.token_reader(workload)
        exchange = Exchange(connection, request, reader)
        self._in_flight[exchange] = text, reader
        return exchange

    def check_limits(self, facts: Facts | None, workload: Workload) -> None:
        """Raises Failure where the server would reject such requests, or where no prompt is that short."""
        if facts is None:
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{self._target.address}: not connected")
        why = over_limits(facts, workload)
        if why is not None:
            raise Failure(Outcome.REFUSED, "REFUSED", f"{self._target.address}: {why}")
        self.check_length(workload)

    def check_length(self, workload: Workload) -> None:
        """Raises Failure where no prompt is as short as the workload wants it."""
        least = self._lengths.least(workload.sequence_length)
        if least is None:
            return
        tokens, added = least
        what = "the chat template" if self._target.kind == "http" and self._target.api == "chat" else "the server"
        detail = (
            f"{self._target.address}: {what} adds {added} tokens to a prompt: sequence_length must be at least "
            f"{tokens}, not {workload.sequence_length}"
        )
        raise Failure(Outcome.REFUSED, "REFUSED", detail)

    def result(self, exchange: Exchange, workload: Workload, intended: float | None = None) -> RequestResult:
        """What became of an exchange that has ended."""
        assert exchange.ended is not None
        text, reader = self._in_flight.pop(exchange)
        failure, tokens, found = exchange.failure, AnswerTokens(()), tuple[Step, ...]()
        if failure is None:
            try:
                tokens = reader.tokens()
                found = steps(exchange.sent, tokens.arrivals)
            except Failure as error:
                failure = error
        prompt_tokens, counted = self._prompt_tokens(text, workload, tokens.prompt_tokens)
        stream = Stream(
            1,
            prompt_tokens,
            exchange.sent,
            exchange.ended,
            found,
            intended=intended,
            prompt_estimated=counted is None and self._lengths.estimated,
        )
        if failure is None:
            stream = replace(
                stream,
                generated_estimated=tokens.estimated,
                sent_late=exchange.sent_late,
                ended_late=lateness(exchange.ended),
                read_delay=exchange.read_delay,
                cached_tokens=tokens.cached_tokens,
            )
            return RequestResult(stream, "", counted)
        failure = self._protocol.explained(self._protocol.without_secrets(failure))
        detail = failure.detail.removeprefix(f"{exchange.connection.where}: ")
        if failure.code == DEADLINE_EXCEEDED:
            quiet = exchange.ended - exchange.last_arrival if exchange.last_arrival is not None else 0.0
            detail = out_of_time(workload, reader.tokens_so_far(), quiet)
        stream = replace(stream, outcome=failure.outcome, code=failure.code)
        return RequestResult(stream, f"{self._target.address}: {detail}", None)

    def _prompt_tokens(self, text: str, workload: Workload, counted: int | None) -> tuple[int, int | None]:
        """A prompt's tokens, and the server's count of them where that can be true.

        A server may count only what its cache did not hold. So a text that is sent again keeps its first count.
        """
        words, wanted = text.count(" ") + 1, workload.sequence_length
        if counted is not None and not self._lengths.plausible(words, wanted, counted):
            counted = None
        if workload.prompt_cache == "hit":
            first = self._first_counts.get(text)
            if counted is not None and first is None:
                self._first_counts[text] = counted
            elif first is not None:
                counted = max(first, counted or 0)
        return (self._lengths.tokens(words, wanted) if counted is None else counted), counted
