"""How many tokens an answer's messages carry. Pure.

A server's count is used where it can be true. The stream itself is believed first: a piece of text is one token or
more, and no answer has more tokens than the request asked for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from exporter.observation import Step, lateness


class Chunk(NamedTuple):
    """One message of an answer.

    `text`: it has generated text. `silent`: it has none, but may carry a token without text (a special one, half a
    character). `so_far`: the message's own count of the tokens up to it. `last`: it ends the answer.
    """

    at: float
    text: bool
    silent: bool = False
    so_far: int | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The tokens of an answer as (instant, tokens so far), and its prompt's length as the server counts it.

    `cached_tokens`: how many tokens of the prompt its prefix cache held; None where it does not say.

    `estimated`: the server gave no count that can be true. Then an answer that ended at its full length has as many
    tokens as the request asked for, another one has a token for each chunk with text.
    """

    arrivals: Sequence[tuple[float, int]]
    prompt_tokens: int | None = None
    estimated: bool = False
    cached_tokens: int | None = None


def counted(chunks: Sequence[Chunk], totals: Sequence[int], most: int | None, full: bool = False) -> AnswerTokens:
    """`totals`: every count that the server gave, in order; the last one that can be true is the sum. `most`: how many
    tokens the request asked for, None for no bound. `full`: the server says that all of them came.
    """
    counts = [chunk.so_far for chunk in chunks if chunk.so_far]
    if full and most is not None and counts and counts[-1] < most:
        # All tokens came, so the last count is not the sum. Perhaps each one counts its own chunk.
        if gains := _counted_by_chunk(chunks, counts, totals, most):
            return AnswerTokens(gains)
        others = Counter(totals) - Counter(counts)
        one_by_one = list(counts) == list(range(1, len(counts) + 1))  # a server may have a limit of its own
        if not one_by_one and not any(counts[-1] <= count <= most for count in others):
            chunks, totals = [chunk._replace(so_far=None) for chunk in chunks], list(others.elements())
    shown = [chunk for chunk in chunks if chunk.text]
    bound = None if most is None else max(most, len(shown))
    # More pieces of text than tokens: a gateway has cut the text anew.
    least = 1 if most is not None and len(shown) > most else max(1, len(shown))
    possible = [count for count in totals if least <= count and (bound is None or count <= bound)]
    total = possible[-1] if possible else None
    arrivals = _counted_in_each(chunks, shown, bound)
    if arrivals:
        return AnswerTokens(_completed(arrivals, total, chunks))
    if total is not None:
        return AnswerTokens(spread_tokens([chunk.at for chunk in _carriers(chunks, shown, total)], total))
    guess = most if full and most is not None and len(shown) <= most else None
    return AnswerTokens(spread_tokens([chunk.at for chunk in shown], guess) if shown else [], estimated=True)


def _all_have_counts(chunks: Sequence[Chunk]) -> bool:
    must_have = [chunk for chunk in chunks if chunk.text]
    must_have = must_have or [chunk for chunk in chunks if chunk.silent and not chunk.last]
    return all(chunk.so_far for chunk in must_have)


def _counted_by_chunk(
    chunks: Sequence[Chunk], counts: Sequence[int], totals: Sequence[int], most: int
) -> list[tuple[float, int]]:
    """The running sum of the counts, where it comes to `most`."""
    one_is_left = counts[-1] + 1 in totals  # a last token without text
    if sum(counts) != most or one_is_left or not _all_have_counts(chunks):
        return []
    instants = [chunk.at for chunk in chunks if chunk.so_far]
    return list(zip(instants, accumulate(counts), strict=True))


def _counted_in_each(chunks: Sequence[Chunk], shown: Sequence[Chunk], bound: int | None) -> list[tuple[float, int]]:
    """The counts that the messages themselves carry; empty where the stream disproves them."""
    if not _all_have_counts(chunks):
        return []
    arrivals = [(chunk.at, chunk.so_far) for chunk in chunks if chunk.so_far]
    counts = [count for _, count in arrivals]
    if not counts or counts != sorted(counts) or (bound is not None and counts[-1] > bound):
        return []
    counts = [chunk.so_far or 0 for chunk in shown]
    fewer_than_shown = any(count < number for number, count in enumerate(counts, start=1))
    # The same number in every chunk is no running count. Now and then two chunks do share a token.
    never_grows = len(shown) > 1 and 2 * len(set(counts)) <= len(counts)
    return [] if fewer_than_shown or never_grows else arrivals


def _completed(
    arrivals: list[tuple[float, int]], total: int | None, chunks: Sequence[Chunk]
) -> list[tuple[float, int]]:
    """With the tokens that only the sum has: the message that ended the answer brought them, at the latest."""
    at, count = arrivals[-1]
    if total is None or total <= count:
        return arrivals
    return [*arrivals, (max([at, *(chunk.at for chunk in chunks if chunk.last)]), total)]


def _carriers(chunks: Sequence[Chunk], shown: Sequence[Chunk], total: int) -> Sequence[Chunk]:
    """The chunks that carry these tokens."""
    every = [chunk for chunk in chunks if chunk.text or chunk.silent]
    without_end = [chunk for chunk in every if chunk.text or not chunk.last]
    for candidates in (every, without_end):
        if len(candidates) == total:  # one token each, whatever the text
            return candidates
    if shown:
        return shown
    return every if 0 < len(every) <= total else [chunk for chunk in chunks if chunk.last][-1:] or chunks[-1:]


def spread_tokens(chunks: Sequence[float], total: int | None) -> list[tuple[float, int]]:
    """The instants of chunks as (instant, tokens so far), where only the sum of their tokens is known.

    With speculation, or a server that sends at intervals, a chunk has several tokens. They are spread evenly; the first
    chunk has one or more. Without a sum each chunk is one token.
    """
    count = len(chunks)
    if total is None or total == count:
        return [(instant, number + 1) for number, instant in enumerate(chunks)]
    return [(instant, max(1, (number + 1) * total // count)) for number, instant in enumerate(chunks)] if total else []


def steps(sent: float, arrivals: Sequence[tuple[float, int]]) -> tuple[Step, ...]:
    """The steps of arrivals, each (instant, tokens so far). An arrival without a new token adds its wait to the next.

    Tokens that were read at once are one step. It is as late as its first token; the next step's waiting begins with
    its last.
    """
    found: list[Step] = []
    asked, before = sent, 0
    asked_late = 0.0
    for instant, tokens in arrivals:
        if tokens > before and instant == asked and found:  # they came together
            found[-1] = replace(found[-1], tokens=found[-1].tokens + tokens - before)
        elif tokens > before:
            found.append(Step(asked, instant, tokens - before, late=lateness(instant), asked_late=asked_late))
        else:
            continue
        asked, before, asked_late = instant, tokens, lateness(instant)
    return tuple(found)
