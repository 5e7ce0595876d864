"""What is said over HTTP: the requests of TGI and of the OpenAI forms, and what their events mean. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from exporter import statuses
from exporter.observation import Failure, Outcome
from exporter.settings import Api, Parameters, Workload
from exporter.streaming.framing import spread_tokens
from exporter.targets import Facts

PATHS: dict[Api, str] = {"tgi": "/generate_stream", "completions": "/v1/completions", "chat": "/v1/chat/completions"}
FACTS_PATHS: dict[Api, str] = {"tgi": "/info", "completions": "/v1/models", "chat": "/v1/models"}
DONE = "[DONE]"
# Where a delta of a chat can hold generated text. Models that think aloud do it in one of the first two.
DELTA_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


def request_body(
    api: Api, prompt: str, workload: Workload, model: str, extra: Mapping[str, Any], seed: int | None
) -> bytes:
    """The JSON of one request for `decode_length` tokens."""
    said: dict[str, Any]
    match api:
        case "tgi":
            said = {"inputs": prompt, "parameters": _tgi_parameters(workload, seed)}
        case "completions":
            said = {"prompt": prompt} | _openai_parameters(workload, model, seed)
        case "chat":
            said = {"messages": [{"role": "user", "content": prompt}]} | _openai_parameters(workload, model, seed)
        case _:
            assert_never(api)
    for key, value in extra.items():
        inner = said.get(key)
        said[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return json.dumps(said).encode()


def _tgi_parameters(workload: Workload, seed: int | None) -> dict[str, Any]:
    parameters = workload.parameters
    said: dict[str, Any] = {
        "max_new_tokens": workload.decode_length,
        "truncate": workload.sequence_length,  # the prompt's length is exact where the text is long enough
        "do_sample": parameters.do_sample,
        "details": True,
    }
    if parameters.watermark:
        said["watermark"] = True
    if parameters.top_n_tokens:
        said["top_n_tokens"] = parameters.top_n_tokens
    if seed is not None and parameters.do_sample:
        said["seed"] = seed
    # TGI rejects most neutral values: it wants these left out.
    return said | _unlike_neutral(
        parameters, "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "frequency_penalty"
    )


def _openai_parameters(workload: Workload, model: str, seed: int | None) -> dict[str, Any]:
    parameters = workload.parameters
    said: dict[str, Any] = {
        "model": model,
        "max_tokens": workload.decode_length,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": parameters.temperature if parameters.do_sample else 0.0,
    }
    if seed is not None and parameters.do_sample:
        said["seed"] = seed
    return said | _unlike_neutral(parameters, "top_p", "top_k", "typical_p", "repetition_penalty", "frequency_penalty")


def _unlike_neutral(parameters: Parameters, *names: str) -> dict[str, Any]:
    neutral = Parameters()
    return {name: getattr(parameters, name) for name in names if getattr(parameters, name) != getattr(neutral, name)}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a stream of events came to: (instant, tokens so far) and the prompt's length as the server counts it."""

    arrivals: Sequence[tuple[float, int]]
    prompt_tokens: int | None


def read(api: Api, events: Sequence[tuple[float, str]]) -> Reading:
    """The events of one whole answer, as (instant, data). Raises Failure."""
    chunks: list[float] = []
    counted: list[tuple[float, int]] = []
    total = prompt = None
    finished = False
    for instant, text in events:
        if text == DONE:
            finished = True
            continue
        event = parsed(text)
        if api == "tgi":
            has_token, usage, last = _tgi_event(event)
        else:
            has_token, usage, last = _openai_event(event, api)
        finished = finished or last
        if has_token:
            chunks.append(instant)
        if usage is not None:
            prompt = usage.prompt if usage.prompt is not None else prompt
            total = usage.generated if usage.generated is not None else total
            if has_token and usage.generated is not None:
                counted.append((instant, usage.generated))
    if not finished:
        raise malformed("the stream ended before its last event")
    if not chunks:
        raise malformed("an answer without a token")
    # A server that counts in each chunk is believed; else the tokens are spread over the chunks.
    if len(counted) == len(chunks) and api != "tgi":
        return Reading(counted, prompt)
    return Reading(spread_tokens(chunks, total), prompt)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as a server tells them, each where it does."""

    prompt: int | None
    generated: int | None


def _tgi_event(event: Mapping[str, Any]) -> tuple[bool, Usage | None, bool]:
    details = _mapping(event.get("details"))
    usage = Usage(_count(details.get("input_length")), _count(details.get("generated_tokens"))) if details else None
    return event.get("token") is not None, usage, event.get("generated_text") is not None


def _openai_event(event: Mapping[str, Any], api: Api) -> tuple[bool, Usage | None, bool]:
    said = _mapping(event.get("usage"))
    usage = Usage(_count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))) if said else None
    choices = event.get("choices")
    choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    if api == "completions":
        has_token = bool(choice.get("text"))
    else:
        delta = _mapping(choice.get("delta"))
        has_token = any(delta.get(key) for key in (*DELTA_TEXTS, "tool_calls"))
    return has_token, usage, bool(choice.get("finish_reason"))


def parsed(text: str) -> Mapping[str, Any]:
    """One event's JSON. Raises Failure where it is none, or where it is the server's word of an error."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise malformed(f"an event that is no JSON: {shortened(text)}") from None
    if not isinstance(event, dict):
        raise malformed(f"an event that is no object: {shortened(text)}")
    failure = error_of(event)
    if failure is not None:
        raise failure
    return event


def error_of(event: Mapping[str, Any], status: int = 200) -> Failure | None:
    """The Failure that an error object means; None when it is none. TGI: error, error_type; OpenAI: error or object."""
    error = event.get("error")
    if error is None and event.get("object") == "error":
        error = event
    if error is None:
        return None
    if isinstance(error, Mapping):
        kind, said, code = str(error.get("type") or ""), str(error.get("message") or error), error.get("code")
        status = int(code) if isinstance(code, int) and 400 <= code < 600 else status
    else:
        kind, said = str(event.get("error_type") or ""), str(error)
    name = statuses.http_code(status) if status >= 400 else "INTERNAL_SERVER_ERROR"
    overloaded = "overloaded" in kind.lower() or "overloaded" in said.lower() or "rate_limit" in kind.lower()
    if overloaded and status < 400:
        name = "TOO_MANY_REQUESTS"
    outcome = statuses.of_http(status) if status >= 400 else Outcome.REJECTED
    return Failure(Outcome.OVERLOADED if overloaded else outcome, name, shortened(said))


def refused(status: int, body: bytes) -> Failure:
    """The Failure that an answer with an error status means."""
    text = body.decode("utf-8", "replace")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        event = None
    failure = error_of(event, status) if isinstance(event, dict) else None
    said = shortened(text) or statuses.http_code(status)
    return failure or Failure(statuses.of_http(status), statuses.http_code(status), said)


def counting_body(body: bytes) -> bytes:
    """The same request of an OpenAI form for one token, and not as a stream: to be told how long its prompt is."""
    said = json.loads(body)
    for key in ("stream_options", "min_tokens", "max_completion_tokens"):
        said.pop(key, None)
    return json.dumps({**said, "stream": False, "max_tokens": 1}).encode()


def counted_prompt(document: Mapping[str, Any]) -> int | None:
    """The length of the prompt, as an answer of an OpenAI form that is no stream tells it."""
    return _count(_mapping(document.get("usage")).get("prompt_tokens"))


def facts(api: Api, document: Mapping[str, Any], model: str) -> Facts:
    """What /info or /v1/models says. `model` is what the configuration asks for, if it does."""
    if api == "tgi":
        return Facts(
            protocol="http/tgi",
            ranks=1,
            model=model or _text(document, "model_id"),
            dtype=_text(document, "model_dtype"),
            device=_text(document, "model_device_type"),
            max_input_tokens=_count(document.get("max_input_tokens", document.get("max_input_length"))),
            max_total_tokens=_count(document.get("max_total_tokens")),
        )
    listed = document.get("data")
    models = [_mapping(item) for item in listed] if isinstance(listed, list) else []
    chosen = next((item for item in models if item.get("id") == model or not model), {})
    limit = _count(chosen.get("max_model_len"))
    return Facts(protocol=f"http/{api}", ranks=1, model=model or _text(chosen, "id"), max_total_tokens=limit)


def served_model(api: Api, document: Mapping[str, Any]) -> str:
    """The name of the first model, as a request must say it: letter by letter, unlike the one in `Facts`."""
    if api == "tgi":
        return _text(document, "model_id")
    listed = document.get("data")
    return _text(_mapping(listed[0]), "id") if isinstance(listed, list) and listed else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def shortened(text: str) -> str:
    """One line, short enough for a log."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"


def malformed(what: str) -> Failure:
    return Failure(Outcome.MALFORMED, "OK", what)
