"""How long prompts are is found out once, with single requests; what is recorded is the server's own count."""

import itertools
from typing import Any

import pytest

from exporter.observation import Failure, Outcome
from exporter.probes.interface import Result
from exporter.probes.router.background import StreamBackground
from exporter.simulator.router import Router
from tests.router.openai_server import ChatServer, chat_server, text, words
from tests.router.parts import Probing, protocol, target, workload
from tests.router.test_streams import FAST


def tokens(result: Result) -> list[int]:
    assert result.outcome is Outcome.OK, result.detail
    return [stream.prompt_tokens for stream in result.streams]


@pytest.mark.parametrize(("length", "added", "each"), [(10, 0, 1), (64, 36, 1), (64, 12, 3), (512, 36, 2)])
def test_after_the_first_probe_no_request_is_sent_that_is_not_measured(length: int, added: int, each: int) -> None:
    with chat_server(prompt=lambda body: added + each * words(body)) as server, server.client() as client:
        first = client.probe(workload(sequence_length=length), 4)
        assert first.corrections == len(server.bodies) - 4 <= 4
        assert all(body["max_tokens"] == 1 for body in server.bodies[:-4])
        sent = len(server.bodies)
        for _ in range(10):
            result = client.probe(workload(sequence_length=length), 4)
            assert result.corrections == 0
            assert all(abs(count - length) <= each for count in tokens(result))
        assert len(server.bodies) == sent + 40


def test_a_length_that_cannot_be_had_is_found_out_once_and_nothing_more_is_sent() -> None:
    with chat_server(prompt=lambda body: 36 + words(body)) as server, server.client() as client:
        result = client.probe(workload(sequence_length=10), 8)
        assert result.outcome is Outcome.REFUSED
        assert result.detail.endswith(
            "the chat template adds 36 tokens to a prompt: sequence_length must be at least 37, not 10"
        )
        assert result.corrections == len(server.bodies) <= 3
        sent = len(server.bodies)
        for _ in range(5):
            client.prober.connect(5.0)
            with pytest.raises(Failure) as caught:
                client.prober.probe(workload(sequence_length=10), 8, lambda: False)
            assert (caught.value.outcome, caught.value.detail) == (Outcome.REFUSED, result.detail)
        assert len(server.bodies) == sent
        assert tokens(client.probe(workload(sequence_length=37), 1)) == [37]


def test_a_length_that_cannot_be_had_is_tried_again_when_the_server_is_another() -> None:
    with chat_server(prompt=lambda body: 36 + words(body)) as server, server.client() as client:
        assert client.probe(workload(sequence_length=10), 1).outcome is Outcome.REFUSED
        server.prompt = words
        server.page = lambda: (200, b'{"data": [{"id": "another"}]}')
        assert tokens(client.probe(workload(sequence_length=10), 1)) == [10]


@pytest.mark.parametrize("count", [0, 1, 5, None, "a dozen", 4.5, -3], ids=str)
def test_a_server_that_counts_no_prompts_is_measured_and_its_counts_are_marked_as_estimated(count: object) -> None:
    with chat_server(prompt=lambda body: count) as server, server.client() as client:
        for _ in range(3):
            result = client.probe(workload(sequence_length=20), 2)
            assert tokens(result) == [20, 20]
            assert all(stream.prompt_estimated for stream in result.streams)
        assert len(server.bodies) == 6 + 2, "and one request in each way that could have told"


def test_a_server_that_counts_only_without_a_stream_is_asked_once_in_that_way() -> None:
    def counts(body: dict[str, Any]) -> int | None:
        return None if body["stream"] else 36 + words(body)

    with chat_server(prompt=counts) as server, server.client() as client:
        first = client.probe(workload(sequence_length=64), 2)
        sent = len(server.bodies)
        result = client.probe(workload(sequence_length=64), 2)
    assert tokens(first) == tokens(result) == [64, 64]
    assert not any(stream.prompt_estimated for stream in result.streams)
    assert len(server.bodies) == sent + 2
    assert all(words(body) == 28 for body in server.bodies[-2:])
    whole = [body for body in server.bodies if not body["stream"]]
    assert all(body["max_tokens"] == 1 and "stream_options" not in body for body in whole)


def test_a_server_that_counts_only_what_its_cache_did_not_hold_is_believed_the_first_time() -> None:
    seen: set[str] = set()

    def count(body: dict[str, Any]) -> int:
        known = text(body) in seen
        seen.add(text(body))
        return 0 if known else words(body)

    work = workload(sequence_length=20, prompt_cache="hit")
    with chat_server(prompt=count) as server, server.client() as client:
        results = [client.probe(work, 3) for _ in range(4)]
    for result in results:
        assert tokens(result) == [20] * 3
        assert not any(stream.prompt_estimated for stream in result.streams)
    assert [result.corrections for result in results[1:]] == [0, 0, 0]


@pytest.mark.parametrize("mend", [{"min_tokens": 8}, {}], ids=["more are asked for", "a single one has no text"])
def test_a_server_that_does_not_take_a_request_for_one_token_gets_whole_ones(mend: dict[str, Any]) -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, bytes] | None:
        return (400, b'{"error": "min_tokens must be <= max_tokens"}') if body["max_tokens"] == 1 else None

    with chat_server(refuse=refuse) as server, server.client(extra_body=mend) as client:
        assert tokens(client.probe(workload(sequence_length=20), 2)) == [20, 20]
        sent = len(server.bodies)
        assert client.probe(workload(sequence_length=20), 2).corrections == 0
        assert len(server.bodies) == sent + 2


def test_another_model_behind_the_same_name_is_put_right_with_one_batch() -> None:
    with chat_server(prompt=lambda body: 12 + words(body)) as server, server.client() as client:
        assert tokens(client.probe(workload(sequence_length=100), 4)) == [100] * 4
        server.prompt = lambda body: 30 + words(body)
        result = client.probe(workload(sequence_length=100), 4)
        assert tokens(result) == [100] * 4
        assert result.corrections == 4
        assert client.probe(workload(sequence_length=100), 4).corrections == 0


def test_a_server_whose_counts_wander_is_recorded_as_it_counts_and_gets_no_more_for_it() -> None:
    wander = itertools.cycle([0, 0, 0, 20, 5, 35, 10])
    with chat_server(prompt=lambda body: words(body) + next(wander)) as server, server.client() as client:
        client.probe(workload(sequence_length=50), 1)
        sent = len(server.bodies)
        results = [client.probe(workload(sequence_length=50), 1) for _ in range(10)]
    assert all(len(tokens(result)) == 1 for result in results)
    assert len(server.bodies) <= sent + 11


def test_a_server_that_fails_is_no_matter_of_lengths() -> None:
    with chat_server(refuse=lambda body: (500, b"down")) as server, server.client() as client:
        for _ in range(3):
            result = client.probe(workload(), 8)
            assert (result.outcome, result.code) == (Outcome.REJECTED, "INTERNAL_SERVER_ERROR")
        assert len(server.bodies) <= 4, "single requests, until one has told a length"
        server.refuse = lambda body: None
        assert tokens(client.probe(workload(), 8)) == [32] * 8


def background(server: ChatServer, **keys: Any) -> StreamBackground:
    place = target("chat", server.address, None)
    return StreamBackground(place, workload(load={"mode": "closed", "users": 1}, **keys), protocol(place))


def test_a_load_finds_its_length_out_once_too() -> None:
    with chat_server(prompt=lambda body: 36 + words(body)) as server:
        load = background(server, sequence_length=64)
        load.connect(5.0)
        load.warm(lambda: False)
        assert 36 + words(server.bodies[-1]) == 64
        sent = len(server.bodies)
        load.warm(lambda: False)
        assert len(server.bodies) == sent + 1
        load.close()


def test_a_load_whose_length_cannot_be_had_is_refused_and_sends_nothing_more() -> None:
    with chat_server(prompt=lambda body: 36 + words(body)) as server:
        load = background(server, sequence_length=10)
        for attempt in range(3):
            load.connect(5.0)
            with pytest.raises(Failure) as caught:
                load.warm(lambda: False)
            assert caught.value.outcome is Outcome.REFUSED
            assert caught.value.corrections == (0 if attempt else len(server.bodies))
        assert len(server.bodies) <= 3
        load.close()


@pytest.mark.parametrize("door", ["fmaas", "tgi"])
def test_the_prompt_of_a_server_that_truncates_is_exact_and_barely_longer_before_that(door: str) -> None:
    with Router(FAST) as router, Probing(target(door, router.http, router.grpc)) as client:
        for length in (7, 32, 100, 1000):
            assert tokens(client.probe(workload(sequence_length=length), 3)) == [length] * 3
            assert all(len(prompt.split()) <= length + 2 for prompt in client.prompts)
