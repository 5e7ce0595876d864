"""What an error means, in every form in which servers and gateways say it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.analysis import statuses
from exporter.config.secrets import Secret
from exporter.observation import Failure, Outcome
from exporter.probes.router.fmaas_protocol import GenerationReader
from exporter.probes.router.hints import hinted
from exporter.probes.router.http_apis import read
from exporter.probes.router.http_protocol import EventStreamReader
from exporter.probes.router.server_errors import broken_off, error_in, refused, shortened
from exporter.wire.http_codec import End

TOKEN: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
REJECTED, OVERLOADED, TIMEOUT = Outcome.REJECTED, Outcome.OVERLOADED, Outcome.TIMEOUT
UNREACHABLE, MALFORMED = Outcome.UNREACHABLE, Outcome.MALFORMED
ERRORS: dict[str, tuple[Any, Outcome, str, str]] = {
    "a text": ({"error": "broke"}, REJECTED, "INTERNAL_SERVER_ERROR", "broke"),
    "a number": ({"error": {"message": "m", "code": 429}}, OVERLOADED, "TOO_MANY_REQUESTS", "m"),
    "a number as text": ({"error": {"message": "m", "code": "429"}}, OVERLOADED, "TOO_MANY_REQUESTS", "m"),
    "LiteLLM": (
        {"error": {"message": "m", "type": "None", "param": "None", "code": "500"}},
        REJECTED,
        "INTERNAL_SERVER_ERROR",
        "m",
    ),
    "vLLM": ({"error": {"message": "m", "type": "BadRequestError", "code": 400}}, REJECTED, "BAD_REQUEST", "m"),
    "older vLLM": ({"object": "error", "message": "m", "type": "NotFoundError"}, REJECTED, "NOT_FOUND", "m"),
    "SGLang": (
        {"error": {"object": "error", "message": "m", "type": "SERVICE_UNAVAILABLE", "param": None}},
        UNREACHABLE,
        "SERVICE_UNAVAILABLE",
        "m",
    ),
    "a name as code": (
        {"error": {"message": "m", "type": "tokens", "code": "rate_limit_exceeded"}},
        OVERLOADED,
        "TOO_MANY_REQUESTS",
        "m",
    ),
    "a name alone": ({"error": "rate_limit_exceeded"}, OVERLOADED, "TOO_MANY_REQUESTS", "rate_limit_exceeded"),
    "a code beside its error": ({"error": "m", "status_code": 504}, TIMEOUT, "GATEWAY_TIMEOUT", "m"),
    "true, with a message": ({"error": True, "message": "m", "status": 401}, REJECTED, "UNAUTHORIZED", "m"),
    "Anthropic": (
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        OVERLOADED,
        "TOO_MANY_REQUESTS",
        "Overloaded",
    ),
    "Responses": ({"type": "error", "code": "server_error", "message": "m"}, REJECTED, "INTERNAL_SERVER_ERROR", "m"),
    "Google": (
        {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}},
        OVERLOADED,
        "SERVICE_UNAVAILABLE",
        "The model is overloaded.",
    ),
    "Google in a list": (
        [{"error": {"code": 429, "message": "m", "status": "RESOURCE_EXHAUSTED"}}],
        OVERLOADED,
        "TOO_MANY_REQUESTS",
        "m",
    ),
    "a gRPC name": ({"error": {"status": "DEADLINE_EXCEEDED", "message": "m"}}, TIMEOUT, "GATEWAY_TIMEOUT", "m"),
    "FastAPI": ({"detail": "m"}, REJECTED, "INTERNAL_SERVER_ERROR", "m"),
    "pydantic": (
        {"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]},
        REJECTED,
        "INTERNAL_SERVER_ERROR",
        "body.model: Field required",
    ),
    "a message and a code": ({"message": "m", "code": 529}, OVERLOADED, "HTTP_529", "m"),
    "a message and a name": ({"message": "m", "code": "rate_limit_exceeded"}, OVERLOADED, "TOO_MANY_REQUESTS", "m"),
    "another word for message": ({"code": 500, "msg": "m"}, REJECTED, "INTERNAL_SERVER_ERROR", "m"),
    "a message, a code and no choices": (
        {"choices": [], "message": "m", "code": 500},
        REJECTED,
        "INTERNAL_SERVER_ERROR",
        "m",
    ),
    "several": ({"errors": [{"message": "m", "code": 422}, {}]}, REJECTED, "UNPROCESSABLE_ENTITY", "m"),
    "several texts": ({"errors": ["m", "n"]}, REJECTED, "INTERNAL_SERVER_ERROR", "m"),
    "a fault": ({"errors": {"fault": {"faultstring": "m"}}}, REJECTED, "INTERNAL_SERVER_ERROR", "m"),
    "in a choice": (
        {"choices": [{"delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "m"}}]},
        UNREACHABLE,
        "BAD_GATEWAY",
        "m",
    ),
    "beside choices": (TOKEN | {"error": {"code": 502, "message": "m"}}, UNREACHABLE, "BAD_GATEWAY", "m"),
    "TGI, full": ({"error": "m", "error_type": "overloaded"}, OVERLOADED, "TOO_MANY_REQUESTS", "m"),
    "TGI, wrong": ({"error": "m", "error_type": "validation"}, REJECTED, "UNPROCESSABLE_ENTITY", "m"),
    "TGI, half": ({"error": "m", "error_type": "incomplete_generation"}, REJECTED, "INTERNAL_SERVER_ERROR", "m"),
    "a queue": ({"error": "The request queue is full."}, OVERLOADED, "TOO_MANY_REQUESTS", "The request queue is full."),
    "no words": ({"error": {"code": 500}}, REJECTED, "INTERNAL_SERVER_ERROR", '{"code": 500}'),
    "half a character": ({"error": "a\ud800b\x1b[1m"}, REJECTED, "INTERNAL_SERVER_ERROR", "a\ufffdb\ufffd[1m"),
}


def failed(*events: Any, api: str = "chat", kind: str = "", after: bytes = b"") -> Failure:
    """How a stream fails at the last of these events, without waiting for its end."""
    answer = EventStreamReader(api, Secret(""))  # type: ignore[arg-type]
    answer.head(200, {"content-type": "text/event-stream"})
    for number, event in enumerate(events, start=1):
        text = event if isinstance(event, str) else json.dumps(event)
        data = f"event: {kind}\ndata: {text}\n\n" if kind and number == len(events) else f"data: {text}\n\n"
        if number < len(events):
            answer.body(float(number), data.encode())
            continue
        with pytest.raises(Failure) as caught:
            answer.body(float(number), data.encode())
        return caught.value
    raise AssertionError


@pytest.mark.parametrize(("event", "outcome", "code", "detail"), ERRORS.values(), ids=ERRORS)
def test_an_error_in_a_stream_means_what_it_says_and_ends_it_at_once(
    event: Any, outcome: Outcome, code: str, detail: str
) -> None:
    for events in ([event], [TOKEN, event]):
        failure = failed(*events)
        assert (failure.outcome, failure.code, failure.detail) == (outcome, code, detail)


@pytest.mark.parametrize(
    ("data", "outcome", "code", "detail"),
    [
        ('{"message": "m", "type": "x"}', REJECTED, "INTERNAL_SERVER_ERROR", "m"),
        ('{"error": {"message": "m", "code": 503}}', UNREACHABLE, "SERVICE_UNAVAILABLE", "m"),
        ("Rate limit reached", OVERLOADED, "TOO_MANY_REQUESTS", "Rate limit reached"),
        ("worker died", REJECTED, "INTERNAL_SERVER_ERROR", "worker died"),
        ('"worker died"', REJECTED, "INTERNAL_SERVER_ERROR", "worker died"),
        ("[1]", REJECTED, "INTERNAL_SERVER_ERROR", "[1]"),
    ],
)
def test_an_event_called_error_is_one_whatever_is_in_it(data: str, outcome: Outcome, code: str, detail: str) -> None:
    failure = failed(TOKEN, data, kind="error")
    assert (failure.outcome, failure.code, failure.detail) == (outcome, code, detail)


def test_an_error_in_a_field_of_that_name_is_told() -> None:
    answer = EventStreamReader("completions", Secret(""))
    answer.head(200, {"content-type": "text/event-stream"})
    with pytest.raises(Failure, match="the request exceeds the context") as caught:
        answer.body(1.0, b'error: {"code":400,"message":"the request exceeds the context","type":"x"}\n\n')
    assert (caught.value.outcome, caught.value.code) == (REJECTED, "BAD_REQUEST")


HARMLESS: list[dict[str, Any]] = [
    {},
    {"type": "ping"},
    {"status": "queued", "message": "two before you"},
    {"code": 0, "message": "ok"},
    {"code": 200, "message": "success"},
    {"error": None, "choices": []},
    {"error": "", "errors": [], "object": "chat.completion.chunk", "choices": []},
    {"choices": [], "detail": "the choices come later"},
    {"choices": [{"delta": {"content": 'she said {"error": "overloaded"}'}}]},
    {"choices": [{"delta": {"content": '"error" rate_limit_exceeded queue is full'}}]},
]


@pytest.mark.parametrize("event", HARMLESS)
def test_what_is_no_error_is_passed_over(event: dict[str, Any]) -> None:
    answer = EventStreamReader("chat", Secret(""), 4)
    answer.head(200, {"content-type": "text/event-stream"})
    for data in (TOKEN, event, "[DONE]"):
        answer.body(1.0, f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())
    assert answer.tokens().arrivals


FINISHES: list[tuple[object, Outcome | None, str]] = [
    *((reason, None, "") for reason in ("stop", "length", "eos_token", "stop_sequence", "tool_calls", "function_call")),
    *((reason, None, "") for reason in ("content_filter", "MAX_TOKENS", "end_turn", "SAFETY", "unheard_of", 7, True)),
    *((reason, None, "") for reason in (None, "", {}, {"type": "length", "length": 4}, {"type": "stop"}, ["stop"])),
    *((reason, MALFORMED, "OK") for reason in ("abort", "ABORT", "aborted", "FINISHED_ABORTED", "FinishReason.ABORT")),
    *((reason, MALFORMED, "OK") for reason in ("error", "Error", "engine_error", "internalError", "error: it died")),
    *((reason, MALFORMED, "OK") for reason in ("cancelled", "canceled", "CANCELLED", "request-cancelled", "failed")),
    *((reason, TIMEOUT, "OK") for reason in ("timeout", "TIME_LIMIT", "timed_out", "deadline_exceeded")),
    *((reason, OVERLOADED, "TOO_MANY_REQUESTS") for reason in ("insufficient_system_resource", "overloaded")),
    ({"type": "abort", "message": "m"}, MALFORMED, "OK"),
    ({"type": "abort", "message": "m", "status_code": 503}, UNREACHABLE, "SERVICE_UNAVAILABLE"),
    ({"type": "abort", "message": "The queue is full", "status_code": 503}, OVERLOADED, "SERVICE_UNAVAILABLE"),
    ({"type": "abort", "message": "m", "status_code": 400, "err_type": "BadRequestError"}, REJECTED, "BAD_REQUEST"),
    ({"status_code": 500}, REJECTED, "INTERNAL_SERVER_ERROR"),
]


@pytest.mark.parametrize(("reason", "outcome", "code"), FINISHES)
def test_a_reason_to_end_that_is_a_failure_is_one_in_every_dialect(
    reason: object, outcome: Outcome | None, code: str
) -> None:
    for api, last in (
        ("chat", {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}),
        ("completions", {"choices": [{"text": ""}, {"index": 1, "text": "", "finish_reason": reason}]}),
        ("tgi", {"token": {"text": "b"}, "generated_text": "ab", "details": {"finish_reason": reason}}),
    ):
        first: dict[str, Any] = {"choices": [{"text": "a", "delta": {"content": "a"}}], "token": {"text": "a"}}
        events = [(1.0, json.dumps(first)), (2.0, json.dumps(last)), (3.0, "[DONE]")]
        if outcome is None:
            assert read(api, events, 4).arrivals  # type: ignore[arg-type]
            continue
        with pytest.raises(Failure, match="the stream ended with finish_reason") as caught:
            read(api, events, 4)  # type: ignore[arg-type]
        assert (caught.value.outcome, caught.value.code) == (outcome, code)


def test_what_the_server_says_of_an_aborted_answer_is_in_the_line() -> None:
    failure = broken_off({"type": "abort", "message": "input\n too long"})
    assert failure is not None
    assert failure.detail == "the stream ended with finish_reason abort: input too long"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["type", "code", "status_code", "message", "loc"]) | st.text(max_size=3), inner
            )
        ),
    )
)
def test_any_reason_and_any_object_is_an_end_or_a_failure_in_one_line(value: Any) -> None:
    for failure in (broken_off(value), error_in({"error": value}), error_in({"detail": value})):
        assert failure is None or ("\n" not in failure.detail and len(failure.detail) <= 200 and failure.detail)


STATUSES = {
    **dict.fromkeys((408, 499, 504, 524), TIMEOUT),
    **dict.fromkeys((502, 503, 520, 521, 522, 523, 525, 526, 527, 530), UNREACHABLE),
    **dict.fromkeys((429, 498, 529), OVERLOADED),
    **dict.fromkeys((301, 302, 307, 308, 400, 401, 403, 404, 413, 422, 500, 501), REJECTED),
}


@pytest.mark.parametrize(("status", "outcome"), STATUSES.items())
@pytest.mark.parametrize(
    "body", [b"", b"down", b"error code: 522", b"<html><h1>down</h1></html>", b'{"error": "down"}']
)
def test_a_status_means_the_same_whatever_the_body(status: int, outcome: Outcome, body: bytes) -> None:
    assert refused(status, body).outcome is outcome


BUSY = (
    "The request queue is full.",
    "Model is overloaded",
    "server busy, please try again. maximum pending requests exceeded",
    "pending request queue full",
    "Exceeds maximum queue size",
    "upstream connect error or disconnect/reset before headers. reset reason: overflow",
    "too many concurrent requests",
    "Rate limit exceeded",
    "The engine is currently overloaded, please try again later",
    "no slot available",
)
DOWN = (
    "no healthy upstream",
    "The server is temporarily unable to service your request due to maintenance downtime or capacity problems.",
    "Loading model",
    "No server is available to handle this request.",
    "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_says_that_it_has_too_much_to_do_is_overloaded(status: int) -> None:
    for text in BUSY:
        forms = (
            text,
            f"<html><body><p>{text}</p></body></html>",
            json.dumps({"error": {"message": text, "type": "x"}}),
            json.dumps({"object": "error", "message": text, "code": status}),
            json.dumps({"detail": text}),
        )
        assert {refused(status, form.encode()).outcome for form in forms} == {OVERLOADED}, text
    for text in DOWN:
        assert refused(503, text.encode()).outcome is UNREACHABLE, text
    assert refused(400, b"too many requests in one batch; the queue is full").outcome is REJECTED


def test_the_same_over_grpc() -> None:
    for text in BUSY:
        assert statuses.of_grpc("UNAVAILABLE", text) is statuses.of_grpc("UNKNOWN", text) is OVERLOADED, text
        assert statuses.of_grpc("INVALID_ARGUMENT", text) is REJECTED
    for text in DOWN:
        assert statuses.of_grpc("UNAVAILABLE", text) is UNREACHABLE, text


NGINX = b"""<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>
<hr><center>nginx/1.24.0</center>\r\n</body>\r\n</html>"""
SAID: list[tuple[int, bytes, dict[str, str], str]] = [
    (502, NGINX, {}, "502 Bad Gateway nginx/1.24.0"),
    (503, b"<html><head><title>Sorry &amp; bye</title><style>p {}</style></head><body></body>", {}, "Sorry & bye"),
    (500, b"<body><script>var x = 1;</script><p>it\n broke<STYLE>p{}</STYLE ><style>", {}, "it broke"),
    (503, b"<Error><Code>SlowDown</Code><Message>wait</Message></Error>", {}, "SlowDown wait"),
    (400, b'{"error": {"message": "no\\nsuch model", "type": "x", "param": null}}', {}, "no such model"),
    (422, b'{"detail": [{"loc": ["body", "n"], "msg": "too many", "type": "x"}]}', {}, "body.n: too many"),
    (403, b'{"type": "about:blank", "title": "Forbidden", "status": 403}', {}, "Forbidden"),
    (403, b'{"a": [1, 2]}', {}, '{"a": [1, 2]}'),
    (500, b'[{"error": {"message": "m", "code": 500}}]', {}, "m"),
    (429, b"slow down", {"retry-after": "30"}, "slow down (Retry-After: 30)"),
    (503, b"", {"retry-after": "30"}, "SERVICE_UNAVAILABLE (Retry-After: 30)"),
    (400, b"no", {"retry-after": "30"}, "no"),
    (
        307,
        b"<html>moved</html>",
        {"location": "https://h/v2"},
        "the server redirects to https://h/v2; if that is the server, change the address",
    ),
    (302, b"", {}, "FOUND"),
]


@pytest.mark.parametrize(("status", "body", "headers", "said"), SAID)
def test_of_an_error_page_its_words_are_kept(status: int, body: bytes, headers: dict[str, str], said: str) -> None:
    assert refused(status, body, headers).detail == said


APACHE = b"""<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2.0//EN"><html><head><title>400 Bad Request</title></head><body>
<h1>Bad Request</h1><p>Your browser sent a request that this server could not understand.<br />Reason: You're speaking
plain HTTP to an SSL-enabled server port.<br />Instead use the HTTPS scheme to access this URL, please.<br />
</p></body>"""
TO_HTTPS = (
    b"<head><title>400 The plain HTTP request was sent to HTTPS port</title></head><body><h1>400 Bad Request</h1>\
<center>The plain HTTP request was sent to HTTPS port</center></body>"
)


@pytest.mark.parametrize("page", [APACHE, TO_HTTPS, b"Client sent an HTTP request to an HTTPS server.\n"])
def test_the_page_of_a_server_that_expects_tls_still_has_its_hint(page: bytes) -> None:
    failure = hinted(refused(400, page), "http", secure=False, has_answered=False)
    assert failure.detail.endswith("; change the address to https://…")


def test_a_large_error_page_costs_no_more_than_its_size() -> None:
    for body in (b"<script>" * 8000, b"<" * 60_000, b"<body" * 10_000, b"queue " * 10_000, b'{"a":' * 10_000):
        assert len(refused(500, body).detail) <= 200


def answered(status: int, headers: dict[str, str], body: bytes, secret: str = "") -> Failure:
    answer = EventStreamReader("chat", Secret(secret))
    try:
        answer.head(status, headers)
        answer.body(1.0, body)
        answer.end(2.0, End())
    except Failure as failure:
        return failure
    raise AssertionError


INSTEAD: list[tuple[dict[str, str], bytes, str]] = [
    (
        {"content-type": "application/json"},
        b'{"choices": []}',
        'application/json instead of an event stream: {"choices',
    ),
    (
        {"content-type": "application/x-ndjson"},
        b'{"message": {}}\n{}',
        "application/x-ndjson instead of an event stream",
    ),
    (
        {"content-type": "text/html; charset=utf-8"},
        b"<h1>Sign in</h1>",
        "text/html instead of an event stream: <h1>Sign",
    ),
    ({}, b"data: x\n\n", "no content type instead of an event stream: data: x"),
    (
        {"content-type": "text/event-stream"},
        b'{"a": 1}\n{"a": 2}\n',
        'lines of JSON instead of an event stream: {"a": 1}',
    ),
    (
        {"content-type": "text/event-stream", "content-encoding": "gzip"},
        b"\x1f\x8b",
        "an answer in gzip encoding, though",
    ),
]


@pytest.mark.parametrize(("headers", "body", "begin"), INSTEAD)
def test_what_came_instead_of_an_event_stream_is_named(headers: dict[str, str], body: bytes, begin: str) -> None:
    failure = answered(200, headers, body)
    assert failure.outcome is MALFORMED
    assert failure.detail.startswith(begin)


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_an_error_that_came_as_a_success_without_a_stream_means_what_it_says(kind: str) -> None:
    failure = answered(200, {"content-type": kind}, b'{"error": {"message": "m", "code": 429}}\n')
    assert (failure.outcome, failure.code, failure.detail) == (OVERLOADED, "TOO_MANY_REQUESTS", "m")


def test_an_error_that_is_not_even_an_event_is_told() -> None:
    head = {"content-type": "text/event-stream"}
    error = b'{\n "error": {"code": 503,\n "message": "The model is overloaded."}\n}\n'
    failure = answered(200, head, b"data: " + json.dumps(TOKEN).encode() + b"\n\n" + error)
    assert (failure.outcome, failure.detail) == (OVERLOADED, "The model is overloaded.")
    answer = EventStreamReader("chat", Secret(""))
    answer.head(200, head)
    answer.body(1.0, b'{"a": 1}\ndata: ' + json.dumps(TOKEN).encode() + b"\n\ndata: [DONE]\n\n" + error)
    answer.end(2.0, End())
    assert answer.tokens().arrivals


@pytest.mark.parametrize(
    "said",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "[{'type': 'extra_forbidden', 'loc': ('body', 'top_k'), 'msg': 'Extra inputs are not permitted'}]",
        "unknown field `repetition_penalty`",
    ],
)
def test_a_field_that_a_server_does_not_take_has_its_hint(said: str) -> None:
    detail = refused(400, json.dumps({"error": {"message": said}}).encode()).detail
    assert detail == f"{said}; extra_body can give a field another value, or null"
    assert "extra_body" not in refused(400, b"max_tokens must be less than 10").detail
    assert "extra_body" not in refused(404, b"unknown model").detail


@pytest.mark.parametrize(
    ("headers", "trailers", "line"),
    [
        ({"content-type": "text/html; charset=utf-8"}, {}, "the server answers with text/html instead of gRPC"),
        ({"content-type": "application/grpc+proto"}, {}, "the answer ended without trailers"),
        ({}, {"grpc-status": "14", "grpc-message": "down"}, "down"),
    ],
)
def test_what_came_instead_of_a_grpc_answer_is_named(
    headers: dict[str, str], trailers: dict[str, str], line: str
) -> None:
    answer = GenerationReader()

    def hear() -> None:
        answer.head(200, headers)
        answer.end(1.0, End(trailers))

    with pytest.raises(Failure) as caught:
        hear()
    assert caught.value.detail.startswith(line)


def test_a_secret_is_in_none_of_it() -> None:
    for status, headers, body in (
        (302, {"location": "https://h/?token=s3cret-t0ken"}, b""),
        (429, {"retry-after": "s3cret-t0ken"}, b""),
        (200, {"content-type": "text/event-stream"}, b'{"a": "s3cret-t0ken"}\n\n'),
        (200, {"content-type": "text/event-stream"}, b"event: error\ndata: s3cret-t0ken\n\n"),
        (200, {"content-type": "text/event-stream", "content-encoding": "s3cret-t0ken"}, b""),
    ):
        assert "s3cret" not in answered(status, headers, body, "s3cret-t0ken").detail


@pytest.mark.parametrize("key", ["error", "detail", "errors", "a"])
def test_an_error_nested_as_deep_as_can_be_is_one_line(key: str) -> None:
    for depth in (10, 200, 900, 950, 980, 100_000):
        for begin, end in ((f'{{"{key}":', "}"), ("[", "]")):
            text = '{"error":' + begin * depth + "1" + end * depth + "}"
            assert len(refused(500, text.encode()).detail) <= 200
            assert len(failed(text, kind="error").detail) <= 200


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.wire.message_framing.LONGEST_ANSWER", 1000)
    answer = EventStreamReader("chat", Secret(""))
    answer.head(200, {"content-type": "text/event-stream"})
    with pytest.raises(Failure, match="an answer without end"):
        answer.body(1.0, b"data: {}\n\n" * 501)


def test_a_line_is_short_and_holds_what_every_log_can() -> None:
    assert shortened("a\n\tb") == "a b"
    assert shortened("x" * 10_000_000) == "x" * 199 + "…"
    assert shortened("a\x00b\u202ec\udfff") == "a\ufffdb\ufffdc\ufffd"
