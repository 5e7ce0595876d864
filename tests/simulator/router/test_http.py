"""The router's HTTP door, asked by the standard library's client."""

import json
import re
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, IncompleteRead
from typing import Any

import pytest

from exporter.simulator.batcher import AdmissionLimits
from exporter.simulator.faults import Fault
from exporter.simulator.router import Router
from tests.simulator.router.callers import PROMPT, Http, await_true, events_of, fast, slow

STREAM = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3, "details": True}}
COMPLETION = {"prompt": PROMPT, "max_tokens": 3, "stream": True}
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "stream": True}


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(fast(grpc=None)) as router:
        yield router


@pytest.fixture
def http(router: Router) -> Iterator[Http]:
    with Http(str(router.http)) as http:
        yield http


def test_generate_stream_sends_one_event_a_token_and_the_details_last(http: Http) -> None:
    events = http.events("/generate_stream", STREAM)
    assert [event["index"] for event in events] == [1, 2, 3]
    assert [event["generated_text"] for event in events[:2]] == [None, None]
    assert events[2]["generated_text"] == "".join(event["token"]["text"] for event in events)
    assert events[2]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 7,
    }


def test_without_details_there_are_none(http: Http) -> None:
    events = http.events("/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 2}})
    assert [event["details"] for event in events] == [None, None]


def test_the_text_is_utf_8_and_not_all_ascii(http: Http) -> None:
    answer = http.open("POST", "/generate_stream", {"inputs": PROMPT, "parameters": {"max_new_tokens": 60}})
    told = answer.read()
    assert answer.headers["content-type"] == "text/event-stream"
    assert "🌊".encode() in told


def test_generate_answers_at_once_with_its_times_in_headers(http: Http, router: Router) -> None:
    answer = http.open("POST", "/generate", STREAM)
    told = json.loads(answer.read())
    assert len(told["details"]["tokens"]) == 3
    assert {answer.headers[name].isdigit() for name in ("x-queue-time", "x-inference-time", "x-time-per-token")} == {
        True
    }
    [entry] = router.record()
    assert (entry.method, entry.code, len(entry.token_ns)) == ("/generate", "200", 3)


def test_completions_stream_ends_with_done(http: Http) -> None:
    events = http.events("/v1/completions", COMPLETION)
    assert events.pop() == "[DONE]"
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "length"]
    assert all(event["choices"][0]["text"] and event["object"] == "text_completion" for event in events)


def test_chat_tells_the_role_before_the_first_token(http: Http) -> None:
    events = http.events("/v1/chat/completions", CHAT)
    assert events.pop() == "[DONE]"
    contents = [event["choices"][0]["delta"]["content"] for event in events]
    assert contents[0] == ""
    assert all(contents[1:])
    assert len(contents) == 4


def test_usage_comes_in_a_last_chunk_without_a_choice_when_asked_for(http: Http) -> None:
    events = http.events("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}})
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert {event["usage"] for event in events[:-2]} == {None}


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_without_a_stream_the_openai_forms_are_one_answer(http: Http, path: str, body: dict[str, Any]) -> None:
    status, told = http.ask("POST", path, body | {"stream": False})
    answer = json.loads(told)
    assert (status, answer["usage"]["completion_tokens"], len(answer["choices"])) == (200, 3, 1)


def test_one_chunk_may_carry_several_tokens_but_tgis_own_events_never_do() -> None:
    with Router(fast(grpc=None, tokens_per_message=2)) as router, Http(str(router.http)) as http:
        assert len(http.events("/v1/completions", COMPLETION)) == 2 + 1
        assert len(http.events("/generate_stream", STREAM)) == 3
        assert [len(entry.token_ns) for entry in router.record()] == [3, 3]


def test_the_model_may_end_early_unless_the_extensions_forbid_it() -> None:
    with Router(fast(grpc=None, eos=1.0)) as router, Http(str(router.http)) as http:
        [only] = http.events("/generate_stream", STREAM)
        assert only["details"]["finish_reason"] == "eos_token"
        assert http.events("/v1/completions", COMPLETION)[0]["choices"][0]["finish_reason"] == "stop"
        assert len(http.events("/v1/completions", COMPLETION | {"ignore_eos": True})) == 3 + 1
        assert len(http.events("/v1/completions", COMPLETION | {"min_tokens": 2})) == 3 + 1


def test_a_completion_takes_token_ids(http: Http, router: Router) -> None:
    http.events("/v1/completions", COMPLETION | {"prompt": [5, 6, 7, 8]})
    assert router.record()[-1].prompt_tokens == 4


def test_truncate_cuts_the_prompt(http: Http, router: Router) -> None:
    http.events("/generate_stream", {"inputs": "word " * 900, "parameters": {"truncate": 100, "max_new_tokens": 1}})
    assert router.record()[-1].prompt_tokens == 100


def test_info_tells_the_model_and_the_limits(http: Http) -> None:
    info = json.loads(http.ask("GET", "/info")[1])
    assert (info["model_id"], info["max_input_tokens"], info["max_total_tokens"]) == ("embedded/llama-3-8b", 4095, 4096)
    assert (info["max_concurrent_requests"], info["version"]) == (128, "3.3.7")


def test_health_models_and_tokenize_answer(http: Http) -> None:
    assert http.ask("GET", "/health") == (200, b"")
    assert json.loads(http.ask("GET", "/v1/models")[1])["data"][0]["id"] == "embedded/llama-3-8b"
    tokens = json.loads(http.ask("POST", "/tokenize", {"inputs": PROMPT})[1])
    assert [token["text"] for token in tokens] == ["<s>", "nort", "h", "rive", "r", "ston", "e"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/generate", b"{", "the body is not JSON"),
        ("/generate", b"[]", "the body is not a JSON object"),
        ("/generate", b"\xff", "the body is not JSON"),
        ("/generate", {"inputs": 3}, "inputs: expected a text"),
        ("/generate", {"inputs": ""}, "the prompt is empty"),
        ("/generate", {"inputs": "a", "parameters": 3}, "parameters: expected an object"),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 0}}, "max_new_tokens: expected a whole number"),
        ("/generate_stream", {"inputs": "a", "parameters": {"truncate": "x"}}, "truncate: expected a whole number"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt: expected one text"),
        ("/v1/completions", {"prompt": "a", "max_tokens": True}, "max_tokens: expected a whole number"),
        ("/v1/completions", {"prompt": "a", "stream_options": 1}, "stream_options: expected an object"),
        ("/v1/chat/completions", {"messages": []}, "messages: expected a list"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages: expected objects with a role"),
    ],
)
def test_a_wrong_body_is_422_with_its_reason(http: Http, path: str, body: object, words: str) -> None:
    status, told = http.ask("POST", path, body)
    answer = json.loads(told)
    assert (status, answer["error_type"]) == (422, "validation")
    assert words in answer["error"]


def test_a_full_router_is_429_or_as_tgi_an_event_in_the_stream() -> None:
    with (
        slow(grpc=None, limits=AdmissionLimits(max_concurrent_requests=1)) as router,
        Http(str(router.http)) as running,
    ):
        running.open("POST", "/generate_stream", STREAM | {"parameters": {"max_new_tokens": 50}})
        problem = {"error": "Model is overloaded", "error_type": "overloaded"}
        with Http(str(router.http)) as http:
            status, told = http.ask("POST", "/generate", STREAM)
            assert (status, json.loads(told)) == (429, problem)
            assert http.events("/generate_stream", STREAM) == [problem]
        assert [entry.code for entry in router.record()] == ["RESOURCE_EXHAUSTED"] * 2


def test_a_full_router_may_answer_a_stream_by_its_status() -> None:
    full = AdmissionLimits(max_concurrent_requests=1)
    with slow(grpc=None, limits=full, stream_errors="status") as router, Http(str(router.http)) as running:
        running.open("POST", "/v1/completions", COMPLETION)
        with Http(str(router.http)) as http:
            assert http.ask("POST", "/v1/completions", COMPLETION)[0] == 429


def test_a_prompt_that_is_too_long_is_422(http: Http) -> None:
    status, told = http.ask("POST", "/generate", {"inputs": "word " * 5000})
    assert status == 422
    assert b"the input has 5001 tokens" in told


def test_a_client_that_goes_away_leaves_the_router() -> None:
    with slow(grpc=None) as router:
        with Http(str(router.http)) as http:
            answer = http.open("POST", "/generate_stream", STREAM)
            assert router.state()["in_flight"] == 1
            answer.close()
        await_true(lambda: router.state()["in_flight"] == 0)
        assert [entry.code for entry in router.record()] == ["CANCELLED"]


def test_the_bearer_token_guards_the_model_and_not_the_pages() -> None:
    with Router(fast(grpc=None, token="secret")) as router, Http(str(router.http)) as http:
        assert http.ask("POST", "/generate", STREAM)[0] == 401
        assert http.ask("POST", "/generate", STREAM, authorization="Bearer wrong")[0] == 401
        assert http.ask("POST", "/generate", STREAM, authorization="Bearer secret")[0] == 200
        assert http.ask("GET", "/info")[0] == 200


@pytest.mark.parametrize(("kind", "status"), [("unavailable", 503), ("internal", 424)])
def test_a_fault_fails_as_many_calls_as_it_says(http: Http, router: Router, kind: Any, status: int) -> None:
    router.fault(Fault(kind, count=1, method="/generate"))
    assert http.ask("POST", "/generate", STREAM)[0] == status
    assert http.ask("POST", "/generate", STREAM)[0] == 200


def test_an_internal_fault_is_an_event_inside_a_stream(http: Http, router: Router) -> None:
    router.fault(Fault("internal", count=1))
    [problem] = http.events("/generate_stream", STREAM)
    assert problem == {"error": "Fault by command: internal", "error_type": "generation"}


def test_a_cut_stream_ends_with_an_error_event_after_its_first_token(http: Http, router: Router) -> None:
    router.fault(Fault("cut", count=1))
    token, problem = http.events("/generate_stream", STREAM)
    assert token["index"] == 1
    assert problem == {"error": "Fault by command: cut", "error_type": "generation"}
    assert len(http.events("/generate_stream", STREAM)) == 3


def test_where_errors_are_statuses_a_cut_stream_has_no_end() -> None:
    with Router(fast(grpc=None, stream_errors="status")) as router, Http(str(router.http)) as http:
        router.fault(Fault("cut", count=1))
        answer = http.open("POST", "/v1/completions", COMPLETION)
        with pytest.raises(IncompleteRead) as broken:
            answer.read()
        assert broken.value.partial.count(b"data: ") == 1
        assert [len(entry.token_ns) for entry in router.record()] == [1]


def test_the_same_prompt_again_is_found_in_the_cache_unless_that_is_off() -> None:
    body = {"inputs": "word " * 100, "parameters": {"max_new_tokens": 1}}
    for caching, cached in ((True, [0, 96]), (False, [0, 0])):
        with (
            Router(fast(grpc=None, limits=AdmissionLimits(prefix_caching=caching))) as router,
            Http(str(router.http)) as http,
        ):
            http.ask("POST", "/generate", body)
            http.ask("POST", "/generate", body)
            assert [entry.cached_tokens for entry in router.record()] == cached


def test_a_hanging_router_goes_on_when_the_fault_is_taken_back(http: Http, router: Router) -> None:
    router.fault(Fault("hang"))
    http.connection.request("POST", "/generate_stream", json.dumps(STREAM).encode())
    await_true(lambda: router.state()["queue_size"] == 1)
    router.fault(None)
    assert len(events_of(http.connection.getresponse().read())) == 3


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/generate", 405)])
def test_an_unknown_place_is_told_so(http: Http, path: str, status: int) -> None:
    assert http.ask("GET", path)[0] == status


def test_fragments_carry_the_same_bytes_in_pieces() -> None:
    with Router(fast(grpc=None, fragment=7)) as router, socket.create_connection(split(router), timeout=20) as client:
        body = json.dumps(STREAM).encode()
        client.sendall(b"POST /generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        told = b""
        while not told.endswith(b"0\r\n\r\n"):
            told += client.recv(65536)
    chunks = re.findall(rb"[0-9a-f]+\r\n(data: .*?\n\n)\r\n", told, re.DOTALL)
    assert [event["index"] for event in events_of(b"".join(chunks))] == [1, 2, 3]


def test_requests_in_one_packet_are_answered_in_order(router: Router) -> None:
    body = json.dumps(STREAM).encode()
    one = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(split(router), timeout=20) as client:
        client.sendall(one + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        told = b""
        while piece := client.recv(65536):
            told += piece
    assert told.count(b"HTTP/1.1 200") == 2
    assert told.index(b"generated_text") < told.index(b"content-length: 0")


def test_what_is_no_http_is_400(router: Router) -> None:
    with socket.create_connection(split(router), timeout=20) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 4")


def test_five_hundred_streams_at_once_all_get_all_their_tokens() -> None:
    with Router(fast(grpc=None, limits=AdmissionLimits(max_concurrent_requests=500))) as router:
        router.slow_down(1000.0)
        body = json.dumps({"inputs": PROMPT, "parameters": {"max_new_tokens": 20}}).encode()
        clients = [socket.create_connection(split(router), timeout=20) for _ in range(500)]
        for client in clients:
            client.sendall(b"POST /generate_stream HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        for client in clients:
            with client, client.makefile("rb") as told:
                assert told.read().count(b"data: ") == 20
        assert {len(entry.token_ns) for entry in router.record()} == {20}


def split(router: Router) -> tuple[str, int]:
    host, _, port = str(router.http).rpartition(":")
    return host, int(port)


def test_a_head_request_is_answered_without_a_body_and_the_connection_lives_on(router: Router) -> None:
    host, port = str(router.http).split(":")
    connection = HTTPConnection(host, int(port), timeout=10)
    try:
        for method, least in (("HEAD", 0), ("GET", 1), ("HEAD", 0)):
            connection.request(method, "/metrics")
            answer = connection.getresponse()
            assert answer.status == 200
            assert min(len(answer.read()), 1) == least
    finally:
        connection.close()
