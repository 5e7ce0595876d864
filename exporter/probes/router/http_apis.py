"""The APIs over HTTP: the requests of TGI and of the OpenAI API, and what their events mean. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, assert_never

from exporter.config.target import Api
from exporter.config.workload import Parameters, Workload
from exporter.plan.targets import Facts
from exporter.probes.router.server_errors import broken_off, error_in, loaded, shortened
from exporter.probes.router.token_counts import AnswerTokens, Chunk, counted
from exporter.wire.message_framing import malformed

PATHS: dict[Api, str] = {"tgi": "/generate_stream", "completions": "/v1/completions", "chat": "/v1/chat/completions"}
FACTS_PATHS: dict[Api, str] = {"tgi": "/info", "completions": "/v1/models", "chat": "/v1/models"}
DONE = "[DONE]"
# Stream options that ask for token counts. The second one is vLLM's extension, which others have too.
USAGE: Mapping[str, Any] = {"include_usage": True}
USAGE_IN_EACH_CHUNK: Mapping[str, Any] = {"include_usage": True, "continuous_usage_stats": True}
# Keys of a chat's delta that hold no generated text.
NO_TEXT = frozenset(
    ("role", "id", "type", "object", "index", "model", "name", "status", "format", "signature", "event", "created")
)
DEEPEST = 4
# No answer to a probe has more tokens.
MOST_TOKENS = 1_000_000
# Where servers put their counts, beside the event itself, and the names of the counts.
USAGES = ("usage", "x_groq", "message", "details", "meta_info", "usageMetadata", "timings")
PROMPT_COUNTS = (
    *("prompt_tokens", "input_tokens", "input_length", "prompt_token_count", "promptTokenCount"),
    *("input_token_count", "prompt_eval_count"),
)
GENERATED_COUNTS = (
    *("completion_tokens", "output_tokens", "generated_tokens", "candidatesTokenCount", "generated_token_count"),
    *("output_token_count", "eval_count", "predicted_n", "tokens_predicted"),
)


def request_body(
    api: Api,
    prompt: str,
    workload: Workload,
    model: str,
    extra: Mapping[str, Any],
    seed: int | None,
    usage: Mapping[str, Any] | None = USAGE,
) -> bytes:
    """The JSON of one request for `decode_length` tokens. `usage`: the stream options, None for none."""
    body: dict[str, Any]
    match api:
        case "tgi":
            body = {"inputs": prompt, "parameters": _tgi_parameters(workload, seed)}
        case "completions":
            body = {"prompt": prompt} | _openai_parameters(workload, model, seed, usage)
        case "chat":
            messages = [{"role": "user", "content": prompt}]
            body = {"messages": messages} | _openai_parameters(workload, model, seed, usage)
        case _:
            assert_never(api)
    for key, value in extra.items():
        inner = body.get(key)
        body[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return json.dumps(body).encode()


def _tgi_parameters(workload: Workload, seed: int | None) -> dict[str, Any]:
    parameters = workload.parameters
    body: dict[str, Any] = {
        "max_new_tokens": workload.decode_length,
        "truncate": workload.sequence_length,  # the prompt's length is exact where the text is long enough
        "do_sample": parameters.do_sample,
        "details": True,
    }
    if parameters.watermark:
        body["watermark"] = True
    if parameters.top_n_tokens:
        body["top_n_tokens"] = parameters.top_n_tokens
    if seed is not None and parameters.do_sample:
        body["seed"] = seed
    # TGI rejects most neutral values: it wants these left out.
    return body | _unlike_neutral(
        parameters, "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "frequency_penalty"
    )


def _openai_parameters(
    workload: Workload, model: str, seed: int | None, usage: Mapping[str, Any] | None
) -> dict[str, Any]:
    parameters = workload.parameters
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": workload.decode_length,
        "stream": True,
        "temperature": parameters.temperature if parameters.do_sample else 0.0,
    }
    if usage is not None:
        body["stream_options"] = dict(usage)
    if seed is not None and parameters.do_sample:
        body["seed"] = seed
    return body | _unlike_neutral(parameters, "top_p", "top_k", "typical_p", "repetition_penalty", "frequency_penalty")


def _unlike_neutral(parameters: Parameters, *names: str) -> dict[str, Any]:
    neutral = Parameters()
    return {name: getattr(parameters, name) for name in names if getattr(parameters, name) != getattr(neutral, name)}


def most_tokens(api: Api, workload: Workload, extra: Mapping[str, Any]) -> int | None:
    """How many tokens the request asks for; None where `extra_body` removes that bound."""
    names = ("max_new_tokens",) if api == "tgi" else ("max_tokens", "max_completion_tokens")
    inner = _mapping(extra.get("parameters")) if api == "tgi" else extra
    bounds = [_count(inner[name]) or 0 for name in names if name in inner]
    most = max(bounds, default=workload.decode_length)
    return most * (_count(extra.get("n")) or 1) if most else None


def read(api: Api, events: Sequence[tuple[float, str]], most: int | None = None) -> AnswerTokens:
    """The tokens of a whole answer. `events`: (instant, data). `most`: how many it can have. Raises Failure."""
    chunks: list[Chunk] = []
    totals: list[int] = []
    listed = 0  # tokens that came as ids
    prompt: int | None = None
    cached: int | None = None
    finished = full = False
    for instant, text in events:
        if is_done(text):
            finished = True
            continue
        event = parsed(text)
        content = _tgi_event(event) if api == "tgi" else _openai_event(event)
        finished, full = finished or content.last, full or content.full
        listed += content.ids
        prompt = content.prompt or prompt
        if (now_cached := _cached(event)) is not None:
            cached = max(now_cached, cached or 0)
        generated = listed if content.ids else content.generated
        if generated and generated > MOST_TOKENS:
            generated = None
        if generated:
            totals.append(generated)
        if content.part:
            # TGI has one total, which comes with its last token.
            opening = content.opening and not chunks
            count = generated if api != "tgi" and not opening else None
            chunks.append(Chunk(instant, content.text, not opening, count, content.last))
    if not finished:
        raise malformed("the stream ended before its last event")
    found = counted(chunks, totals, most, full)
    if not found.arrivals:
        raise malformed("an answer without a token")
    # Each event of TGI is one token, so without a total nothing is estimated.
    return AnswerTokens(found.arrivals, prompt, found.estimated and (api != "tgi" or bool(totals)), cached)


class EventContent(NamedTuple):
    """What one event holds. `part`: it may bring tokens. `opening`: it has the role and no token. `ids`: how many token
    ids it lists. `prompt`, `generated`: its counts. `last`: it ends the answer. `full`: the answer reached its length.
    """

    part: bool
    text: bool
    last: bool
    opening: bool = False
    ids: int = 0
    prompt: int | None = None
    generated: int | None = None
    full: bool = False


def _tgi_event(event: Mapping[str, Any]) -> EventContent:
    """A token is one, whatever its text. Raises Failure where the answer was broken off."""
    _check_end(_mapping(event.get("details")).get("finish_reason"))
    prompt, generated = _counts(event)
    token = event.get("token") is not None
    last = event.get("generated_text") is not None
    return EventContent(token or last, token, last, prompt=prompt, generated=generated)


def _openai_event(event: Mapping[str, Any]) -> EventContent:
    """Raises Failure where the answer was broken off."""
    text = last = full = role = False
    ids = 0
    listed = event.get("choices")
    choices = [choice for choice in listed if isinstance(choice, dict)] if isinstance(listed, list) else []
    for choice in choices:
        delta, listed_ids, reason = choice.get("delta"), choice.get("token_ids"), choice.get("finish_reason")
        text = text or _has_text(choice.get("text"))
        if isinstance(delta, dict):
            # The beginning of a tool call is a token, even without a text.
            text = text or bool(delta.get("content") and _has_text(delta["content"]))
            text = text or bool(delta.get("tool_calls") or delta.get("function_call")) or _has_text(delta)
            role = role or bool(delta.get("role"))
        if isinstance(listed_ids, list):
            ids += len(listed_ids)
        if reason:
            _check_end(reason)
            last, full = True, full or (isinstance(reason, str) and reason.lower() in ("length", "max_tokens"))
    prompt, generated = _counts(event, choices)
    return EventContent(bool(choices), text, last, role and not (text or last or ids), ids, prompt, generated, full)


def _cached(event: Mapping[str, Any]) -> int | None:
    """How many of the prompt's tokens the prefix cache held, as OpenAI's usage tells it; None where it does not."""
    found = _mapping(_mapping(event.get("usage")).get("prompt_tokens_details")).get("cached_tokens")
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= MOST_TOKENS else None


def _check_end(reason: object) -> None:
    failure = broken_off(reason)
    if failure is not None:
        raise failure


def _has_text(value: object, depth: int = 0) -> bool:
    """Whether there is a text in any field of a delta, or in a part of one."""
    if isinstance(value, str):
        return bool(value)
    if depth == DEEPEST:
        return False
    if isinstance(value, list):
        return any(_has_text(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return any(
            _has_text(inner, depth + 1)
            for key, inner in value.items()
            if inner and key not in NO_TEXT and not key.endswith(("_id", "_reason"))
        )
    return False


def _counts(event: Mapping[str, Any], choices: Sequence[Mapping[str, Any]] = ()) -> tuple[int | None, int | None]:
    """The event's counts of the prompt's tokens and of those generated. 0 is no count."""
    if not event.get("usage") and _MAY_COUNT.isdisjoint(event) and not any("usage" in choice for choice in choices):
        return None, None  # nearly every event
    places: list[Any] = [place for name in USAGES if (place := event.get(name))]
    places = [place.get("usage", place) for place in places if isinstance(place, dict)]
    places += [choice["usage"] for choice in choices if choice.get("usage")]
    prompt = generated = None
    for place in (*places, event):
        if isinstance(place, dict) and not _COUNTS.isdisjoint(place):
            prompt = prompt or _first_count(place, PROMPT_COUNTS)
            generated = generated or _first_count(place, GENERATED_COUNTS)
    return prompt, generated


_COUNTS = frozenset((*PROMPT_COUNTS, *GENERATED_COUNTS))
_MAY_COUNT = _COUNTS.union(USAGES) - {"usage"}


def _first_count(place: Mapping[str, Any], names: Sequence[str]) -> int | None:
    return next((count for name in names if name in place and (count := _count(place[name]))), None)


def is_done(text: str) -> bool:
    """Whether this event says that the stream is over."""
    return len(text) < 100 and text.strip() == DONE


def ends(api: Api, text: str) -> bool:
    """Whether nothing that still comes is part of the answer."""
    if api != "tgi":
        return is_done(text)
    return _TGI_END.search(text) is not None and _mapping(loaded(text)).get("generated_text") is not None


_TGI_END = re.compile(r'"generated_text"\s*:\s*(?!null|\s)')


def may_be_error(text: str) -> bool:
    """Whether an event must be parsed at once: after an error a server may keep the stream open."""
    return '"error' in text or not ('"delta"' in text or '"text"' in text or '"token"' in text or is_done(text))


def parsed(text: str) -> Mapping[str, Any]:
    """One event's JSON. Raises Failure where it is none, or an error of the server."""
    event = loaded(text)
    if event is None:
        raise malformed(f"an event that is no JSON: {shortened(text)}")
    inner = event[0] if isinstance(event, list) and event else event
    failure = error_in(inner) if isinstance(inner, dict) and may_be_error(text) else None
    if failure is not None:
        raise failure
    if not isinstance(event, dict):
        raise malformed(f"an event that is no object: {shortened(text)}")
    return event


def counting_body(body: bytes) -> bytes:
    """The same request for one token and not as a stream: its answer counts the prompt's tokens."""
    request = json.loads(body)
    for key in ("stream_options", "min_tokens", "max_completion_tokens"):
        request.pop(key, None)
    return json.dumps({**request, "stream": False, "max_tokens": 1}).encode()


def counted_prompt(document: Mapping[str, Any]) -> int | None:
    """The prompt's length in an answer that is no stream."""
    return _counts(document)[0]


def facts(api: Api, document: Mapping[str, Any], model: str) -> Facts:
    """The facts in /info or /v1/models. `model`: the configured one, or empty."""
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
    """The name of the first model, exactly as a request must give it; the one in `Facts` may be shortened."""
    if api == "tgi":
        return _text(document, "model_id")
    listed = document.get("data")
    return _text(_mapping(listed[0]), "id") if isinstance(listed, list) and listed else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    """A count, however it is written: 4, 4.0, "4"."""
    if isinstance(value, str) and len(value) < 20:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""
