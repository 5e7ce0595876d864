"""What servers say over HTTP, and what we make of it."""

import json
from typing import Any

import pytest

from exporter.config.target import Api
from exporter.config.workload import Parameters, Workload
from exporter.observation import Failure, Outcome
from exporter.probes.router.http_apis import facts, read, request_body
from exporter.probes.router.server_errors import refused

WORKLOAD = Workload(name="w", sequence_length=100, decode_length=7)


def tgi(text: str, **more: Any) -> str:
    return json.dumps({"index": 1, "token": {"id": 5, "text": text, "special": False}} | more)


def chat(**delta: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def completion(text: str, **more: Any) -> str:
    return json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": None} | more]})


def usage(prompt: int, generated: int) -> str:
    return json.dumps({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": generated}})


END = json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]})
TGI_END = tgi(
    "c", generated_text="abc", details={"finish_reason": "length", "generated_tokens": 3, "input_length": 100}
)
STREAMS: dict[str, tuple[Api, list[str], list[tuple[float, int]], int | None]] = {
    "TGI": ("tgi", [tgi("a"), tgi("b"), TGI_END], [(0, 1), (1, 2), (2, 3)], 100),
    "TGI without details": ("tgi", [tgi("a"), tgi("b", generated_text="ab")], [(0, 1), (1, 2)], None),
    "the role is no token": ("chat", [chat(role="assistant", content=""), chat(content="a"), END], [(1, 1)], None),
    "reasoning is tokens": (
        "chat",
        [chat(role="assistant"), chat(reasoning_content="hm"), chat(reasoning="so"), chat(content="a"), END, "[DONE]"],
        [(1, 1), (2, 2), (3, 3)],
        None,
    ),
    "tool calls are tokens": ("chat", [chat(tool_calls=[{"index": 0}]), END], [(0, 1)], None),
    "null content is no token": ("chat", [chat(content=None), chat(content="a"), END], [(1, 1)], None),
    "a chunk with several tokens": (
        "chat",
        [chat(content="a b"), chat(content="c d"), END, usage(12, 4), "[DONE]"],
        [(0, 2), (1, 4)],
        12,
    ),
    "fewer chunks than tokens": (
        "completions",
        [completion("a"), completion("b"), completion("c", finish_reason="length"), usage(9, 7)],
        [(0, 2), (1, 4), (2, 7)],
        9,
    ),
    "completions": (
        "completions",
        [completion("a"), completion(""), completion("b"), "[DONE]"],
        [(0, 1), (2, 2)],
        None,
    ),
    "counted in each chunk": (
        "completions",
        [
            json.dumps(json.loads(completion("a")) | {"usage": {"prompt_tokens": 5, "completion_tokens": 3}}),
            json.dumps(json.loads(completion("b")) | {"usage": {"prompt_tokens": 5, "completion_tokens": 4}}),
            "[DONE]",
        ],
        [(0, 3), (1, 4)],
        5,
    ),
}


@pytest.mark.parametrize(("api", "events", "arrivals", "prompt"), STREAMS.values(), ids=STREAMS)
def test_events_become_the_tokens_that_really_came(
    api: Api, events: list[str], arrivals: list[tuple[float, int]], prompt: int | None
) -> None:
    reading = read(api, list(enumerate(events)))
    assert (list(reading.arrivals), reading.prompt_tokens) == (arrivals, prompt)


BAD = {
    "no end": ("tgi", [tgi("a")], Outcome.MALFORMED, "OK", "the stream ended before its last event"),
    "nothing": ("chat", [], Outcome.MALFORMED, "OK", "the stream ended before its last event"),
    "no token": ("chat", ["[DONE]"], Outcome.MALFORMED, "OK", "an answer without a token"),
    "no JSON": ("chat", ["<html>"], Outcome.MALFORMED, "OK", "an event that is no JSON: <html>"),
    "no object": ("chat", ["[1]"], Outcome.MALFORMED, "OK", "an event that is no object: [1]"),
    "TGI overloaded": (
        "tgi",
        ['{"error": "Model is overloaded", "error_type": "overloaded"}'],
        Outcome.OVERLOADED,
        "TOO_MANY_REQUESTS",
        "Model is overloaded",
    ),
    "TGI error in the middle": (
        "tgi",
        [tgi("a"), '{"error": "Request failed during generation", "error_type": "generation"}'],
        Outcome.REJECTED,
        "INTERNAL_SERVER_ERROR",
        "Request failed during generation",
    ),
    "OpenAI error": (
        "chat",
        ['{"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}'],
        Outcome.REJECTED,
        "BAD_REQUEST",
        "too long",
    ),
    "OpenAI rate limit": (
        "chat",
        ['{"error": {"message": "slow down", "type": "rate_limit_exceeded", "code": 429}}'],
        Outcome.OVERLOADED,
        "TOO_MANY_REQUESTS",
        "slow down",
    ),
    "vLLM error": (
        "completions",
        ['{"object": "error", "message": "bad", "type": "BadRequestError", "code": 404}'],
        Outcome.REJECTED,
        "NOT_FOUND",
        "bad",
    ),
}


@pytest.mark.parametrize(("api", "events", "outcome", "code", "detail"), BAD.values(), ids=BAD)
def test_a_bad_stream_is_a_failure(api: Api, events: list[str], outcome: Outcome, code: str, detail: str) -> None:
    with pytest.raises(Failure) as caught:
        read(api, list(enumerate(events)))
    assert (caught.value.outcome, caught.value.code, caught.value.detail) == (outcome, code, detail)


@pytest.mark.parametrize(
    ("status", "body", "outcome", "code", "detail"),
    [
        (
            429,
            b'{"error":"Model is overloaded","error_type":"overloaded"}',
            "overloaded",
            "TOO_MANY_REQUESTS",
            "Model is overloaded",
        ),
        (
            422,
            b'{"error":"inputs too long","error_type":"validation"}',
            "rejected",
            "UNPROCESSABLE_ENTITY",
            "inputs too long",
        ),
        (503, b"upstream\n  down", "unreachable", "SERVICE_UNAVAILABLE", "upstream down"),
        (502, b"<html>", "unreachable", "BAD_GATEWAY", "<html>"),
        (504, b"", "timeout", "GATEWAY_TIMEOUT", "GATEWAY_TIMEOUT"),
        (429, b"", "overloaded", "TOO_MANY_REQUESTS", "TOO_MANY_REQUESTS"),
        (401, b'{"detail":"no"}', "rejected", "UNAUTHORIZED", "no"),
        (599, b"x" * 500, "rejected", "HTTP_599", "x" * 199 + "…"),
        (500, b"\xff\xfe", "rejected", "INTERNAL_SERVER_ERROR", "\ufffd\ufffd"),
    ],
)
def test_an_error_status_is_a_failure_with_what_the_server_said(
    status: int, body: bytes, outcome: str, code: str, detail: str
) -> None:
    failure = refused(status, body)
    assert (failure.outcome, failure.code, failure.detail) == (outcome, code, detail)


def body(api: Api, workload: Workload = WORKLOAD, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(request_body(api, "a b", workload, "m", extra or {}, 3))
    return said


def test_tgi_is_asked_for_exact_lengths_and_neutral_values_are_left_out() -> None:
    assert body("tgi") == {
        "inputs": "a b",
        "parameters": {"max_new_tokens": 7, "truncate": 100, "do_sample": False, "details": True},
    }


def test_sampling_is_passed_on_where_it_is_not_neutral() -> None:
    sampled = WORKLOAD.model_copy(update={"parameters": Parameters(do_sample=True, top_p=0.9, temperature=0.7)})
    assert (
        body("tgi", sampled)["parameters"].items()
        >= {"do_sample": True, "top_p": 0.9, "temperature": 0.7, "seed": 3}.items()
    )
    assert body("chat", sampled).items() >= {"top_p": 0.9, "temperature": 0.7, "seed": 3}.items()


def test_the_openai_forms_ask_for_the_usage() -> None:
    common = {
        "model": "m",
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    }
    assert body("completions") == {"prompt": "a b"} | common
    assert body("chat") == {"messages": [{"role": "user", "content": "a b"}]} | common


def test_an_extra_body_is_merged_into_the_request() -> None:
    assert body("completions", extra={"ignore_eos": True})["ignore_eos"] is True
    parameters = body("tgi", extra={"parameters": {"adapter_id": "x"}})["parameters"]
    assert parameters["adapter_id"] == "x"
    assert parameters["max_new_tokens"] == 7


def test_what_info_says_is_the_facts() -> None:
    said = {"model_id": "llama", "model_dtype": "float16", "max_input_tokens": 10, "max_total_tokens": 20}
    found = facts("tgi", said, "")
    assert (found.model, found.dtype, found.max_input_tokens, found.max_total_tokens) == ("llama", "float16", 10, 20)


def test_the_model_is_the_one_configured_or_the_first_listed() -> None:
    listed = {"data": [{"id": "a", "max_model_len": 100}, {"id": "b", "max_model_len": 200}]}
    assert (facts("chat", listed, "").model, facts("chat", listed, "").max_total_tokens) == ("a", 100)
    assert (facts("chat", listed, "b").model, facts("chat", listed, "b").max_total_tokens) == ("b", 200)
    assert facts("chat", {}, "c").model == "c"
    assert facts("chat", {"data": "odd"}, "").model == ""
