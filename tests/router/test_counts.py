"""What the stream shows goes before what the server counts: no token is invented, none is lost, and a guess says so."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.target import Api
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import fmaas_pb2 as pb
from exporter.probes.router.fmaas_protocol import GenerationReader
from exporter.probes.router.http_apis import most_tokens, read
from exporter.probes.router.token_counts import Chunk, counted, spread_tokens, steps
from exporter.wire.http_codec import End
from exporter.wire.message_framing import grpc_message

Events = list[dict[str, Any] | str]


def chat(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | more


def completion(text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]} | more


def usage(generated: Any, prompt: Any = 10, **more: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": generated} | more}


def total(generated: Any) -> dict[str, Any]:
    return {"choices": []} | usage(generated)


def tgi(text: str, **more: Any) -> dict[str, Any]:
    return {"index": 1, "token": {"id": 2, "text": text, "special": not text}, "generated_text": None} | more


def tgi_end(text: str, generated: Any, **more: Any) -> dict[str, Any]:
    details = {"finish_reason": "length", "generated_tokens": generated, "input_length": 10} | more
    return tgi(text, generated_text="x", details=details)


ROLE: dict[str, Any] = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
FOUR = [chat("a"), chat("b"), chat("c"), chat("d", "stop")]
DONE = "[DONE]"
# What is sent at 0, 1, 2 … for an answer of at most four tokens; the (instant, tokens so far) it comes to; a guess?
ONE_EACH: list[tuple[float, int]] = [(0, 1), (1, 2), (2, 3), (3, 4)]
STREAMS: dict[str, tuple[Api, Any, list[tuple[float, int]], bool]] = {
    "the sum at the end": ("chat", [*FOUR, total(4), DONE], ONE_EACH, False),
    "zeros, then the sum": ("chat", [*(one | usage(0) for one in FOUR), total(4), DONE], ONE_EACH, False),
    "zeros, then the sum in the last": (
        "chat",
        [*(one | usage(0, 0) for one in FOUR[:3]), FOUR[3] | usage(4), DONE],
        ONE_EACH,
        False,
    ),
    "null, then the sum": ("chat", [*(one | {"usage": None} for one in FOUR), total(4), DONE], ONE_EACH, False),
    "no usage": ("chat", [*FOUR, DONE], ONE_EACH, True),
    "a zero at the end": ("chat", [*FOUR, total(0), DONE], ONE_EACH, True),
    "zeros only": ("chat", [*(one | usage(0) for one in FOUR), DONE], ONE_EACH, True),
    "always one": ("chat", [*(one | usage(1) for one in FOUR), DONE], ONE_EACH, True),
    "always the sum": ("chat", [*(one | usage(4) for one in FOUR), DONE], ONE_EACH, False),
    "backwards": ("chat", [*(one | usage(4 - n) for n, one in enumerate(FOUR)), DONE], ONE_EACH, False),
    "fewer than the texts": ("chat", [*FOUR, total(2), DONE], ONE_EACH, True),
    "more than were asked for": ("chat", [*FOUR, total(10**9), DONE], ONE_EACH, True),
    "one more than was asked for": ("chat", [*FOUR, total(5), DONE], ONE_EACH, True),
    "negative": ("chat", [*FOUR, total(-4), DONE], ONE_EACH, True),
    "true": ("chat", [*FOUR, total(True), DONE], ONE_EACH, True),
    "half a token": ("chat", [*FOUR, total(4.5), DONE], ONE_EACH, True),
    "words": ("chat", [*FOUR, total("four"), DONE], ONE_EACH, True),
    "a list": ("chat", [*FOUR, total([4]), DONE], ONE_EACH, True),
    "wrong in the chunks, right at the end": (
        "chat",
        [*(one | usage(99) for one in FOUR), total(4), DONE],
        ONE_EACH,
        False,
    ),
    "right, then wrong": ("chat", [*FOUR, total(4), total(0), total(77), DONE], ONE_EACH, False),
    "a float": ("chat", [chat("a b"), chat("c d", "stop"), total(4.0), DONE], [(0, 2), (1, 4)], False),
    "digits": ("chat", [chat("a b"), chat("c d", "stop"), total("4"), DONE], [(0, 2), (1, 4)], False),
    "digits with a point": ("chat", [chat("a b"), chat("c d", "stop"), total("4.0"), DONE], [(0, 2), (1, 4)], False),
    "long enough, uncounted": ("chat", [chat("a b"), chat("c d", "length"), DONE], [(0, 2), (1, 4)], True),
    "long enough, counted": ("chat", [chat("a"), chat("b", "length"), total(3), DONE], [(0, 1), (1, 3)], False),
    "counted in each": (
        "chat",
        [ROLE | usage(0), chat("a") | usage(1), chat("b c") | usage(3), chat(None, "stop") | usage(3), total(3), DONE],
        [(1, 1), (2, 3), (3, 3)],
        False,
    ),
    "counted in each, the role too": (
        "chat",
        [ROLE | usage(1), chat("a") | usage(1), chat("b") | usage(2), DONE],
        [(1, 1), (2, 2)],
        False,
    ),
    "a last token without text": (
        "chat",
        [chat("a") | usage(1), chat("b") | usage(2), chat(None, "stop") | usage(3), total(3), DONE],
        [(0, 1), (1, 2), (2, 3)],
        False,
    ),
    "a last token that only the sum has": (
        "chat",
        [chat("a") | usage(1), chat("b") | usage(2), chat(None, "stop"), total(3), DONE],
        [(0, 1), (1, 2), (2, 3)],
        False,
    ),
    "two chunks of one step": (
        "chat",
        [
            chat("") | usage(1),
            chat("a") | usage(2),
            chat("b") | usage(3),
            chat("c") | usage(3),
            chat(None, "stop"),
            DONE,
        ],
        [(0, 1), (1, 2), (2, 3), (3, 3)],
        False,
    ),
    "special tokens, counted in each": (
        "completions",
        [*(completion("") | usage(n) for n in (1, 2, 3)), completion("", "length") | usage(4), DONE],
        ONE_EACH,
        False,
    ),
    "special tokens, counted at the end": (
        "completions",
        [*(completion("") for _ in range(3)), completion("", "length"), total(4), DONE],
        ONE_EACH,
        False,
    ),
    "half a character": (
        "completions",
        [completion(""), completion("é"), completion("b"), completion("c", "length"), total(4), DONE],
        ONE_EACH,
        False,
    ),
    "special tokens by their ids": (
        "completions",
        [
            {"choices": [{"text": text, "token_ids": ids}]}
            for text, ids in (("", [7]), ("", [8]), ("a b", [9, 10]), ("", []))
        ]
        + [DONE],
        [(0, 1), (1, 2), (2, 4)],
        False,
    ),
    "an end at once": ("chat", [ROLE, chat(None, "stop"), total(1), DONE], [(1, 1)], False),
    "an end at once, counted with it": ("chat", [ROLE, chat(None, "stop") | usage(1), DONE], [(1, 1)], False),
    "an end at once, after an empty text": (
        "chat",
        [ROLE, chat(""), chat(None, "stop"), total(1), DONE],
        [(1, 1)],
        False,
    ),
    "an end at once of completions": ("completions", [completion("", "stop"), total(1), DONE], [(0, 1)], False),
    "all at the end": ("chat", [ROLE, chat(None, "stop"), total(3), DONE], [(1, 3)], False),
    "the role in each": (
        "chat",
        [{"choices": [{"delta": {"role": "assistant", "content": text}}]} | usage(n + 1) for n, text in enumerate("ab")]
        + [DONE],
        [(0, 1), (1, 2)],
        False,
    ),
    "empty chunks that keep the connection open": (
        "chat",
        [ROLE, chat(), chat(), *FOUR, total(4), DONE],
        [(3, 1), (4, 2), (5, 3), (6, 4)],
        False,
    ),
    "a text cut anew": (
        "chat",
        [*(chat(letter) for letter in "abcdefgh"), chat(None, "stop"), total(4), DONE],
        [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)],
        False,
    ),
    "more than was asked for, really": ("chat", [*FOUR, *FOUR, total(8), DONE], [(n, n + 1) for n in range(8)], False),
    "two answers": (
        "chat",
        [{"choices": [{"index": n, "delta": {"content": "a"}}]} for n in (0, 1)]
        + [{"choices": [{"index": n, "delta": {}, "finish_reason": "stop"}]} for n in (1, 0)]
        + [total(2), DONE],
        [(0, 1), (1, 2)],
        False,
    ),
    "an end in the second choice": (
        "chat",
        [{"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {}, "finish_reason": "stop"}]}],
        [(0, 1)],
        True,
    ),
    "a token of TGI's without text": ("tgi", [tgi(""), tgi("a"), tgi(""), tgi_end("b", 4)], ONE_EACH, False),
    "TGI with zeros": ("tgi", [tgi("a"), tgi("b"), tgi("c"), tgi_end("d", 0)], ONE_EACH, False),
    "TGI with too few": ("tgi", [tgi("a"), tgi("b"), tgi("c"), tgi_end("d", 2)], ONE_EACH, True),
    "TGI with too many": ("tgi", [tgi("a"), tgi("b"), tgi("c"), tgi_end("d", 999)], ONE_EACH, True),
    "TGI by digits": ("tgi", [tgi("a b"), tgi_end("c d", "4")], [(0, 2), (1, 4)], False),
}


@pytest.mark.parametrize(("api", "events", "arrivals", "estimated"), STREAMS.values(), ids=STREAMS)
def test_tokens_are_those_that_came(
    api: Api, events: Events, arrivals: list[tuple[float, int]], estimated: bool
) -> None:
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    reading = read(api, list(enumerate(texts)), 4)
    assert list(reading.arrivals) == arrivals
    assert reading.estimated is estimated


DELTAS: dict[str, tuple[dict[str, Any], bool]] = {
    "a text": ({"content": "a"}, True),
    "parts": ({"content": [{"type": "text", "text": "a"}]}, True),
    "empty parts": ({"content": [{"type": "text", "text": ""}]}, False),
    "no parts": ({"content": []}, False),
    "reasoning": ({"reasoning": "a"}, True),
    "reasoning content": ({"reasoning_content": "a", "content": None}, True),
    "thinking": ({"thinking": "a"}, True),
    "thinking blocks": ({"thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "x"}]}, True),
    "a signature": ({"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "x"}]}, False),
    "reasoning details": ({"reasoning_details": [{"type": "reasoning.text", "text": "a", "id": None}]}, True),
    "a name that nobody knows": ({"musings": {"so": ["far"]}}, True),
    "a refusal": ({"refusal": "no"}, True),
    "a function": ({"function_call": {"name": "f", "arguments": ""}}, True),
    "arguments": ({"function_call": {"arguments": "{"}}, True),
    "a tool": ({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}, True),
    "a transcript": ({"audio": {"id": "x", "transcript": "a"}}, True),
    "a sound without words": ({"audio": {"id": "x", "expires_at": 123}}, False),
    "the role": ({"role": "assistant", "content": ""}, False),
    "the role and nothing": ({"role": "assistant", "content": None, "tool_calls": None, "refusal": None}, False),
    "an id": ({"id": "x", "tool_call_id": "y", "item_id": "z", "type": "text", "name": "n"}, False),
    "numbers": ({"index": 3, "logprob": -1.5, "final": True}, False),
    "deep": ({"a": {"b": {"c": {"d": {"e": {"f": "g"}}}}}}, False),
}


@pytest.mark.parametrize(("delta", "is_token"), DELTAS.values(), ids=DELTAS)
def test_any_text_in_a_delta_but_the_role_and_ids_is_a_token(delta: dict[str, Any], is_token: bool) -> None:
    events = [(1.0, json.dumps({"choices": [{"delta": delta}]})), (2.0, json.dumps(chat("b"))), (3.0, DONE)]
    assert [at for at, _ in read("chat", events).arrivals] == ([1.0, 2.0] if is_token else [2.0])


COUNTS: list[dict[str, Any]] = [
    {"usage": {"prompt_tokens": 10, "completion_tokens": 4}},
    {"usage": {"input_tokens": 10, "output_tokens": 4}},
    {"usage": {"input_tokens": "10", "output_tokens": 4.0}},
    {"usage": {"prompt_tokens": 10, "generated_tokens": 4}},
    {"x_groq": {"id": "r", "usage": {"prompt_tokens": 10, "completion_tokens": 4}}},
    {"type": "message_delta", "message": {"usage": {"input_tokens": 10, "output_tokens": 4}}},
    {"usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 4}},
    {"prompt_eval_count": 10, "eval_count": 4},
    {"meta_info": {"prompt_tokens": 10, "completion_tokens": 4}},
    {"choices": [{"delta": {}, "usage": {"prompt_tokens": 10, "completion_tokens": 4}}]},
    {"usage": {"prompt_tokens": 10, "completion_tokens": 0}, "timings": {"prompt_n": 1, "predicted_n": 4}},
]


@pytest.mark.parametrize("counts", COUNTS)
def test_counts_are_found_where_servers_put_them(counts: dict[str, Any]) -> None:
    events = [(float(n), json.dumps(one)) for n, one in enumerate((chat("a b"), chat("c d", "stop"), counts))]
    reading = read("chat", [*events, (9.0, DONE)], 8)
    assert (reading.arrivals[-1][1], reading.prompt_tokens, reading.estimated) == (4, 10, False)


def test_a_prompt_of_no_tokens_is_not_counted() -> None:
    for zero in (0, 0.0, "0", None, False, -1):
        events = [(1.0, json.dumps(chat("a", "stop") | usage(1, zero))), (2.0, DONE)]
        assert read("chat", events).prompt_tokens is None


@pytest.mark.parametrize(
    "events",
    [
        [ROLE, DONE],
        [ROLE, chat("", "stop"), total(0), DONE],
        [chat(None, "length"), DONE],
        [total(4), DONE],
        [{}, DONE],
        [DONE],
    ],
)
def test_an_answer_that_shows_no_token_is_none(events: Events) -> None:
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    with pytest.raises(Failure, match="an answer without a token") as caught:
        read("chat", list(enumerate(texts)), 4)
    assert caught.value.outcome is Outcome.MALFORMED


def test_the_bound_is_what_was_really_asked_for() -> None:
    workload = Workload(name="w", decode_length=8)
    for api, extra, most in (
        ("chat", {}, 8),
        ("chat", {"max_tokens": 4}, 4),
        ("chat", {"max_completion_tokens": 100}, 100),
        ("completions", {"max_tokens": None}, None),
        ("chat", {"max_tokens": None, "max_completion_tokens": 6}, 6),
        ("chat", {"max_tokens": "odd"}, None),
        ("chat", {"n": 2}, 16),
        ("tgi", {"parameters": {"max_new_tokens": 3}}, 3),
        ("tgi", {"max_tokens": 3}, 8),
        ("tgi", {"parameters": "odd"}, 8),
    ):
        assert most_tokens(api, workload, extra) == most  # type: ignore[arg-type]


def told_in_each(
    *counts: int, finish: str = "length", after: Sequence[int] = ()
) -> tuple[list[tuple[float, int]], bool]:
    """What an answer of at most eight tokens comes to, with a chunk of text at 0, 1, 2 … for each of these counts."""
    chunks = [chat("a" * count, finish if n == len(counts) - 1 else None) for n, count in enumerate(counts)]
    told = [*(one | usage(count) for one, count in zip(chunks, counts, strict=True)), *map(total, after), DONE]
    texts = [event if isinstance(event, str) else json.dumps(event) for event in told]
    reading = read("chat", list(enumerate(texts)), 8)
    return list(reading.arrivals), reading.estimated


@pytest.mark.parametrize("after", [[], [8]])
def test_counts_of_single_chunks_that_come_to_all_that_were_asked_for_are_added_up(after: list[int]) -> None:
    assert told_in_each(2, 3, 3, after=after) == ([(0, 2), (1, 5), (2, 8)], False)
    assert told_in_each(1, 2, 5, after=after) == ([(0, 1), (1, 3), (2, 8)], False)
    assert told_in_each(3, 2, 3, after=after) == ([(0, 3), (1, 5), (2, 8)], False)
    assert told_in_each(*[1] * 8, after=after) == ([(n, n + 1) for n in range(8)], False)


def test_rising_counts_that_end_below_what_came_are_not_believed() -> None:
    assert told_in_each(2, 2, 3) == ([(0, 2), (1, 5), (2, 8)], True)
    assert told_in_each(2, 3, 5, after=[99]) == ([(0, 2), (1, 5), (2, 8)], True)
    assert told_in_each(1, 4, 6, after=[2]) == ([(0, 2), (1, 5), (2, 8)], True)


def test_rising_counts_below_what_was_asked_for_are_believed_where_the_server_ends_earlier() -> None:
    assert told_in_each(2, 3, 5, after=[5]) == ([(0, 2), (1, 3), (2, 5)], False)
    assert told_in_each(2, 3, 3, finish="stop") == ([(0, 2), (1, 3), (2, 3)], False)
    assert told_in_each(1, 2, 3, 4, 5) == ([(n, n + 1) for n in range(5)], False)
    assert told_in_each(1, 2, 4, after=[5]) == ([(0, 1), (1, 2), (2, 4), (2, 5)], False)


def generation(*messages: tuple[str, int, int]) -> tuple[list[int], bool]:
    """Tokens of each step, and whether they are a guess, of fmaas messages (text, count, reason)."""
    answer = GenerationReader(4)
    answer.head(200, {})
    for at, (text, count, reason) in enumerate(messages, start=1):
        message = pb.GenerationResponse(text=text, generated_token_count=count, stop_reason=reason)  # type: ignore[arg-type]
        answer.body(float(at), grpc_message(message.SerializeToString()))
    answer.end(99.0, End({"grpc-status": "0"}))
    tokens = answer.tokens()
    return [step.tokens for step in steps(0.0, tokens.arrivals)], tokens.estimated


def test_over_grpc_it_is_the_same() -> None:
    assert generation(("", 0, 0), ("a", 1, 0), ("", 2, 0), ("b c", 4, 1)) == ([1, 1, 2], False)
    assert generation(("", 0, 0), ("a", 0, 0), ("b", 0, 0), ("", 0, 2)) == ([1, 1], True)
    assert generation(("", 0, 0), ("a b", 0, 0), ("c d", 0, 1)) == ([2, 2], True)
    assert generation(("a", 1, 0), ("b", 1, 0), ("c", 1, 2)) == ([1, 1, 1], True)
    assert generation(("a", 1, 0), ("b c d", 3, 1)) == ([1, 3], False)
    assert generation(("a", 99, 0), ("b", 4, 1)) == ([2, 2], False)
    assert generation(("", 1, 2)) == ([1], False)


CHUNKS = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.none() | st.integers(0, 12), st.booleans()), max_size=8
).map(lambda parts: [Chunk(float(n), *part) for n, part in enumerate(parts)])


@given(CHUNKS, st.lists(st.integers(0, 20), max_size=4), st.none() | st.integers(1, 10), st.booleans())
def test_whatever_is_counted_the_stream_is_not_contradicted(
    chunks: list[Chunk], totals: list[int], most: int | None, full: bool
) -> None:
    found = counted(chunks, totals, most, full)
    shown = sum(chunk.text for chunk in chunks)
    tokens = [step.tokens for step in steps(-1.0, found.arrivals)]
    assert all(gain > 0 for gain in tokens)
    assert [at for at, _ in found.arrivals] == sorted(at for at, _ in found.arrivals)
    assert bool(tokens) == bool(found.arrivals)
    if shown:
        assert tokens
    if most is None or shown <= most:
        assert sum(tokens) >= shown
    if most is not None:
        assert sum(tokens) <= max(most, shown)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50).map(sorted), st.integers(1, 200))
def test_tokens_spread_over_chunks_are_all_there_and_the_first_chunk_has_one(chunks: list[float], total: int) -> None:
    spread = spread_tokens(chunks, total)
    counts = [tokens for _, tokens in spread]
    assert counts[0] >= 1
    assert counts[-1] == total
    assert counts == sorted(counts)
    gains = [after - before for before, after in pairwise([0, *counts])]
    assert max(gains) - min(gains) <= 1 or total < len(chunks)


def test_a_chunk_counts_as_a_token_where_no_one_says_otherwise() -> None:
    assert spread_tokens([1.0, 2.0], None) == [(1.0, 1), (2.0, 2)]
