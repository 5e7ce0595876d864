"""An answer ends with its last event: what the connection does afterwards is not part of it."""

import pytest

from exporter.observation import Outcome
from tests.router.parts import Probing, target, workload
from tests.router.scripted import EVENT_STREAM, Scripted, chunk, events, scripted

WORKLOAD = workload(decode_length=4, timeout="20s")
CHAT = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in "abcd"]
COMPLETIONS = [{"choices": [{"index": 0, "text": text}]} for text in "abcd"]
USAGE = {"choices": [], "usage": {"prompt_tokens": 32, "completion_tokens": 4}}
DETAILS = {"finish_reason": "length", "generated_tokens": 4, "input_length": 32}
TGI = [{"index": n, "token": {"id": n, "text": "a"}, "generated_text": None} for n in range(3)]
WHOLE = {
    "chat": events(*CHAT, USAGE, "[DONE]"),
    "completions": events(*COMPLETIONS, USAGE, " [DONE] "),
    "tgi": events(*TGI, {"token": {"id": 3, "text": "d"}, "generated_text": "aaad", "details": DETAILS}),
}
END = b"0\r\n\r\n"


@pytest.fixture(params=sorted(WHOLE))
def api(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def twice(api: str, server: Scripted) -> tuple[list[Outcome], list[int], list[int]]:
    """Outcomes, tokens and opened connections of two probes, when the length of prompts has been found out."""
    outcomes, tokens, opened = [], [], []
    with Probing(target(api, server.authority, None)) as client:
        client.probe(WORKLOAD, 1)
        for _ in range(2):
            result = client.probe(WORKLOAD, 1)
            outcomes.append(result.outcome)
            opened.append(len(result.setups))
            tokens += [sum(step.tokens for step in stream.steps) for stream in result.streams]
            if result.outcome is Outcome.OK:
                assert all(stream.ended == stream.steps[-1].arrived for stream in result.streams)
    return outcomes, tokens, opened


def test_a_connection_whose_body_ends_after_the_answer_is_used_again(api: str) -> None:
    with scripted(lambda _: [EVENT_STREAM, chunk(WHOLE[api]), END]) as server:
        assert twice(api, server) == ([Outcome.OK, Outcome.OK], [4, 4], [0, 0])


def test_a_body_that_is_held_open_after_the_answer_is_not_waited_for(api: str) -> None:
    with scripted(lambda _: [EVENT_STREAM, chunk(WHOLE[api])]) as server:  # and waits for the next request
        assert twice(api, server) == ([Outcome.OK, Outcome.OK], [4, 4], [1, 1])


def test_a_connection_that_is_cut_after_the_answer_is_no_failure(api: str) -> None:
    with scripted(lambda _: [EVENT_STREAM, chunk(WHOLE[api]), None]) as server:
        assert twice(api, server) == ([Outcome.OK, Outcome.OK], [4, 4], [1, 1])


def test_what_comes_after_the_answer_is_not_part_of_it(api: str) -> None:
    more = events(CHAT[0], COMPLETIONS[0], TGI[0], {"error": "too late"}, "no JSON")
    for pieces in (
        [chunk(WHOLE[api] + more), END],
        [chunk(WHOLE[api]), chunk(more), END],
    ):
        with scripted(lambda _, pieces=pieces: [EVENT_STREAM, *pieces]) as server:  # type: ignore[misc]
            outcomes, tokens, _ = twice(api, server)
            assert (outcomes, tokens) == ([Outcome.OK, Outcome.OK], [4, 4])


def test_a_connection_that_is_cut_before_the_last_event_is_unreachable(api: str) -> None:
    cut = WHOLE[api][: WHOLE[api].rindex(b"data:")]
    with scripted(lambda _: [EVENT_STREAM, chunk(cut), None]) as server:
        outcomes, _, _ = twice(api, server)
        assert outcomes == [Outcome.UNREACHABLE, Outcome.UNREACHABLE]
