"""Better counts are asked for where the server gives them; one that refuses the question is asked once."""

import json
from itertools import count
from typing import Any

import pytest

from exporter.observation import Outcome
from exporter.probes.router import http_apis
from exporter.probes.router.background import StreamBackground
from exporter.probes.router.http_protocol import HttpProtocol
from tests.router.parts import Probing, target, workload
from tests.router.scripted import Scripted, answer, refusal, scripted

WORKLOAD = workload(decode_length=2, timeout="20s")
BOTH = {"include_usage": True, "continuous_usage_stats": True}
SUM = {"include_usage": True}


def good(asked: dict[str, Any]) -> list[bytes | None]:
    [prompt] = [asked["prompt"]] if "prompt" in asked else [message["content"] for message in asked["messages"]]
    chunks = [
        {
            "choices": [{"index": 0, "text": "a", "delta": {"content": "a"}}],
            "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": n},
        }
        for n in range(1, asked["max_tokens"] + 1)
    ]
    return answer(*chunks, "[DONE]")


def refusing(*names: str, status: int = 400, said: str = "") -> Any:
    """A server that forbids these options, and says so or not."""

    def script(asked: dict[str, Any]) -> list[bytes | None]:
        options = asked.get("stream_options") or {}
        wrong = [name for name in names if name in asked or name in options]
        return refusal(status, {"error": {"message": said.format(*wrong)}}) if wrong else good(asked)

    return script


def options(server: Scripted) -> list[Any]:
    """What was asked for with each stream, the short ones that find out the length of prompts included."""
    return [asked.get("stream_options") for asked in server.asked if asked["stream"]]


def probed(server: Scripted, times: int, batch: int = 1, **keys: Any) -> list[Outcome]:
    with Probing(target("chat", server.authority, None, model="m", **keys)) as client:
        return [client.probe(WORKLOAD, batch).outcome for _ in range(times)]


def test_a_server_that_takes_the_question_is_asked_it_always() -> None:
    with scripted(good) as server:
        assert probed(server, 3) == [Outcome.OK] * 3
        assert set(map(str, options(server))) == {str(BOTH)}


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("said", ["Extra inputs are not permitted", "unknown field {}"])
def test_a_server_that_refuses_it_is_asked_once_and_that_is_no_failure(status: int, said: str) -> None:
    with scripted(refusing("continuous_usage_stats", status=status, said=said)) as server:
        assert probed(server, 3) == [Outcome.OK] * 3
        first, *others = options(server)
        assert first == BOTH
        assert others == [SUM] * len(others)


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_without_stream_options_gets_none(status: int) -> None:
    with scripted(refusing("stream_options", status=status, said="unknown field {}")) as server:
        assert probed(server, 2) == [Outcome.OK] * 2
        first, second, *others = options(server)
        assert (first, second) == (BOTH, SUM)
        assert others == [None] * len(others)


def test_a_batch_is_asked_again_where_another_server_has_taken_the_place_of_one_that_knew_it() -> None:
    with scripted(good) as server, Probing(target("chat", server.authority, None, model="m")) as client:
        client.probe(WORKLOAD, 3)
        sent = len(server.asked)
        server.script = refusing("continuous_usage_stats", said="{} is unknown")
        result = client.probe(WORKLOAD, 3)
        assert [stream.outcome for stream in result.streams] == [Outcome.OK] * 3
        assert options(server)[sent:] == [BOTH] * 3 + [SUM] * 3
        assert len({str(asked["messages"]) for asked in server.asked[sent:]}) == 6  # no cache holds the second ones


def test_a_server_that_refuses_everything_is_rejected_with_its_words() -> None:
    with scripted(lambda _: refusal(400, {"error": {"message": "no such model"}})) as server:
        with Probing(target("chat", server.authority, None, model="m")) as client:
            results = [client.probe(WORKLOAD, 1) for _ in range(3)]
        assert [result.outcome for result in results] == [Outcome.REJECTED] * 3
        assert "no such model; asked for POST" in results[0].detail
        assert options(server).count(SUM) == 1  # one more request, once


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("second", [400, 422, 500, 503])
def test_a_refusal_that_fewer_options_do_not_mend_leaves_them_as_they_were(batch: int, second: int) -> None:
    loading = iter([400, second])

    def script(asked: dict[str, Any]) -> list[bytes | None]:
        status = next(loading, 200)
        return good(asked) if status == 200 else refusal(status, {"error": {"message": "model is not loaded"}})

    with scripted(script) as server, Probing(target("completions", server.authority, None, model="m")) as client:
        client.probe(WORKLOAD, batch)
        assert client.probe(WORKLOAD, batch).outcome is Outcome.OK
        assert options(server)[:2] == [BOTH, SUM]
        assert set(map(str, options(server)[2:])) == {str(BOTH)}


def test_a_refusal_with_other_words_each_time_costs_one_more_request_for_each_try() -> None:
    numbers = count()
    with scripted(lambda _: refusal(400, {"error": {"message": f"no, {next(numbers)}"}})) as server:
        with Probing(target("chat", server.authority, None, model="m")) as client:
            for _ in range(3):
                assert client.probe(WORKLOAD, 3).outcome is Outcome.REJECTED
        asked = options(server)
        assert asked == [BOTH, SUM] * (len(asked) // 2)


def test_a_batch_refused_without_a_name_is_asked_once_more_and_no_oftener() -> None:
    numbers = count()
    protocol = HttpProtocol(target("chat", "127.0.0.1:1", None, model="m"))
    for _ in range(3):
        assert protocol.drop_option([(Outcome.REJECTED, "BAD_REQUEST", f"no, {next(numbers)}") for _ in range(3)])
        assert not protocol.drop_option([(Outcome.REJECTED, "BAD_REQUEST", f"no, {next(numbers)}") for _ in range(3)])


def test_what_may_be_another_server_is_asked_for_everything_again() -> None:
    with scripted(refusing("continuous_usage_stats")) as server:
        with Probing(target("chat", server.authority, None, model="m")) as client:
            assert client.probe(WORKLOAD, 1).outcome is Outcome.OK
            server.script = lambda _: [None]
            assert client.probe(WORKLOAD, 1).outcome is Outcome.UNREACHABLE
            server.script = good
            sent = len(server.asked)
            assert client.probe(WORKLOAD, 1).outcome is Outcome.OK
        assert set(map(str, options(server)[sent:])) == {str(BOTH)}


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_other_refusals_have_nothing_to_do_with_it(status: int) -> None:
    with scripted(lambda _: refusal(status, {"error": {"message": "no"}})) as server:
        assert Outcome.OK not in probed(server, 2)
        assert set(map(str, options(server))) == {str(BOTH)}


def test_a_server_that_has_once_answered_keeps_it() -> None:
    with scripted(good) as server, Probing(target("chat", server.authority, None, model="m")) as client:
        assert client.probe(WORKLOAD, 1).outcome is Outcome.OK
        server.script = lambda _: refusal(400, {"error": {"message": "too long"}})
        assert client.probe(WORKLOAD, 1).outcome is Outcome.REJECTED
        server.script = good
        assert client.probe(WORKLOAD, 1).outcome is Outcome.OK
        assert set(map(str, options(server))) == {str(BOTH)}


@pytest.mark.parametrize("said", [{"include_usage": False}, {"include_usage": True, "x": 1}, None])
def test_what_extra_body_says_is_asked_as_it_is(said: Any) -> None:
    with scripted(lambda _: refusal(400, {"error": {"message": "stream_options"}})) as server:
        assert probed(server, 1, extra_body={"stream_options": said}) == [Outcome.REJECTED]
        assert set(map(str, options(server))) == {str(said and {"include_usage": True} | said)}


def test_a_background_load_asks_once_too() -> None:
    with scripted(refusing("continuous_usage_stats")) as server:
        one = target("completions", server.authority, None, model="m")
        load = StreamBackground(one, WORKLOAD, HttpProtocol(one))
        load.connect(5.0)
        load.warm(lambda: False)
        load.close()
        first, *others = options(server)
        assert first == BOTH
        assert others == [SUM] * len(others)


@pytest.mark.parametrize(("details", "cached"), [({"cached_tokens": 5}, 5), ({}, None), (None, None)])
def test_what_the_prefix_cache_held_is_read_where_a_server_tells_it(details: object, cached: int | None) -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 1, "prompt_tokens_details": details}
    event = json.dumps({"choices": [{"text": "a", "finish_reason": "length"}], "usage": usage})
    assert http_apis.read("completions", [(1.0, event), (1.1, http_apis.DONE)]).cached_tokens == cached
