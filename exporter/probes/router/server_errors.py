"""Makes Failures of the errors of servers and gateways: a status and a body, an event, or a finish_reason. Pure."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from exporter.analysis import statuses
from exporter.observation import Failure, Outcome, legible

# Keys of an error's message, and keys of its kind.
MESSAGES = (
    *("message", "msg", "Message", "error_message", "error_msg", "errorMessage", "error_description", "detail"),
    *("faultstring", "fault", "title", "description", "error", "errors", "details", "reason"),
)
KINDS = ("code", "status_code", "statusCode", "http_code", "http_status", "status", "error_code", "type", "error_type")
# Keys of an answer's events. An event with a message and without these is no part of an answer.
ANSWERS = ("token", "generated_text", "usage", "details", "delta", "text")
DEEPEST = 4
_JSON = json.JSONDecoder(strict=False)
# Statuses by the error names of HTTP and of the APIs, in lower case and without `error` or `exception`.
_STATUSES = {re.sub("[^a-z]", "", status.name.lower()): int(status) for status in HTTPStatus if status >= 400} | {
    **dict.fromkeys(("invalidrequest", "invalidargument", "contextlengthexceeded"), 400),
    **dict.fromkeys(("authentication", "unauthenticated", "invalidapikey"), 401),
    **dict.fromkeys(("permission", "permissiondenied"), 403),
    **dict.fromkeys(("validation", "template"), 422),
    **dict.fromkeys(("insufficientquota", "quotaexceeded"), 429),
    **dict.fromkeys(("internal", "api", "server"), 500),
    **dict.fromkeys(("unavailable", "connection", "apiconnection"), 503),
    **dict.fromkeys(("cancelled", "canceled", "clientclosedrequest"), 499),
    **dict.fromkeys(("unimplemented", "notsupported"), 501),
    **dict.fromkeys(("timeout", "deadlineexceeded", "apitimeout"), 504),
}
# Words in a finish_reason of a broken answer. With any other reason the answer is complete.
_BROKEN_OFF = frozenset(
    (
        *("abort", "aborted", "cancel", "cancelled", "canceled", "cancellation", "interrupted", "preempted", "evicted"),
        *("error", "errored", "fail", "failed", "failure", "exception", "crash", "crashed", "killed", "disconnected"),
        "shutdown",
    )
)
# A server refuses one of our options.
_REFUSES_FIELD = re.compile(
    r"(?=.*(not (permitted|supported|allowed)|un(known|recognized|expected|supported)|extra (input|field)))"
    r".*(stream_options|include_usage|max_tokens|max_new_tokens|temperature|top_k|top_p|typical_p|_penalty|\bseed\b)",
    re.IGNORECASE,
)
_TIME_OVER = re.compile(r"time.?out|timed.?out|time.?limit|deadline", re.IGNORECASE)
_TOO_MUCH = re.compile(r"insufficient.*resource", re.IGNORECASE)


def error_in(event: Mapping[str, Any], status: int = 200) -> Failure | None:
    """The Failure of an object that a server sent; None where it is no error."""
    error = _error_object(event)
    if error is None:
        return None
    layers = [layer for layer in (error, event) if isinstance(layer, Mapping)]
    kinds = [layer[kind] for layer in layers for kind in KINDS if isinstance(layer.get(kind), str | int)]
    if isinstance(error, str) and " " not in error:  # {"error": "rate_limit_exceeded"}
        kinds.append(error)
    return _failure(kinds, _message(error) or _message(event) or _written(error), status)


def event_of_error(text: str) -> Failure:
    """The Failure of an event of the kind `error`."""
    event = loaded(text)
    return (error_in(event) if isinstance(event, Mapping) else None) or _failure((), _message(event) or text, 200)


def refused(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Failure:
    """The Failure of an answer with an error status."""
    text = body.decode("utf-8", "replace")
    headers = headers or {}
    if status < 400:
        where = shortened(headers.get("location", ""))
        message = f"the server redirects to {where}; if that is the server, change the address" if where else ""
        code = statuses.http_code(status)
        return Failure(statuses.of_http(status), code, message or shortened(_words(text)) or code)
    event = loaded(text)
    if isinstance(event, list) and event:
        event = event[0]
    failure = error_in(event, status) if isinstance(event, Mapping) else None
    if failure is None:
        failure = _failure((), _message(event) or _words(text), status)
    if failure.outcome is Outcome.REJECTED and _REFUSES_FIELD.search(failure.detail):
        message = f"{failure.detail}; extra_body can give a field another value, or null"
        return Failure(failure.outcome, failure.code, message)
    if "retry-after" in headers and failure.outcome in (Outcome.OVERLOADED, Outcome.UNREACHABLE):
        wait = shortened(headers["retry-after"])
        failure = Failure(failure.outcome, failure.code, shortened(f"{failure.detail} (Retry-After: {wait})"))
    return failure


def broken_off(reason: object) -> Failure | None:
    """The Failure of a finish_reason; None where the answer is complete.

    SGLang sends an object with a type, a message and a status; others send a word, some with `: text` behind it.
    """
    if not reason:
        return None
    message, status = "", 0
    if isinstance(reason, Mapping):
        message, status = _message(reason), _status(reason[kind] for kind in KINDS[:6] if kind in reason)
        reason = reason.get("type")
    name, _, after = reason.partition(":") if isinstance(reason, str) else ("", "", "")
    message = message or after.strip()
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name[:200])}
    overloaded = statuses.says_overloaded(name) or _TOO_MUCH.search(name)
    late = _TIME_OVER.search(name)
    broken = not words.isdisjoint(_BROKEN_OFF)
    if not (status or overloaded or late or broken):
        return None
    line = shortened(f"the stream ended with finish_reason {name or status}{f': {message}' if message else ''}")
    if status:
        return Failure(statuses.of_http(status, message), statuses.http_code(status), line)
    if overloaded or statuses.says_overloaded(message):
        return Failure(Outcome.OVERLOADED, "TOO_MANY_REQUESTS", line)
    return Failure(Outcome.TIMEOUT if late else Outcome.MALFORMED, "OK", line)


def loaded(text: str) -> Any:
    """The JSON; None where the text is none. Strings may hold control characters."""
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError):
        return None


def _written(value: object) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return ""


def shortened(text: str) -> str:
    """One line, short enough for a log, of characters that every log can hold."""
    return legible(text, 200)


def _error_object(event: Mapping[str, Any]) -> object:
    """The error in this event; None where there is none."""
    error = event.get("error") or event.get("errors")
    if error:
        first = error[0] if isinstance(error, list) else error
        return event if isinstance(first, bool | int | float) or not first else first
    if event.get("object") == "error" or event.get("type") == "error":
        return event
    empty = event.get("error") is not None and event["error"] is not False
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and choice.get("error"):
            return choice["error"]
    if choices or any(event.get(key) is not None for key in ANSWERS):
        return None
    if empty and choices is None:
        return event
    is_error = (choices is None and bool(event.get("detail"))) or any(
        _means_error(event[kind]) for kind in KINDS if kind in event
    )
    return event if is_error and _message(event) else None


def _means_error(kind: object) -> bool:
    """Whether a code, status or type means an error; {"status": "queued"} does not."""
    return bool(_status([kind])) or (isinstance(kind, str) and "error" in kind.lower())


def _failure(kinds: Sequence[object], message: str, status: int) -> Failure:
    """`status`: that of the answer, below 400 where it was no error. A status in the error goes before it."""
    status = _status(kind for kind in kinds if not isinstance(kind, str) or kind.isdecimal()) or status
    if status < 400:
        status = _status(kinds)
    overloaded = any(statuses.says_overloaded(kind) for kind in kinds if isinstance(kind, str))
    code = statuses.http_code(status) if status else "INTERNAL_SERVER_ERROR"
    outcome = statuses.of_http(status or 500, message)
    if overloaded or outcome is Outcome.OVERLOADED:
        return Failure(Outcome.OVERLOADED, code if status else "TOO_MANY_REQUESTS", shortened(message) or code)
    return Failure(outcome, code, shortened(message) or code)


def _status(kinds: Iterable[object]) -> int:
    """The first error status among these: a number, its digits, or its name. 0: none."""
    for kind in kinds:
        if isinstance(kind, str) and kind.isascii() and kind.isdecimal() and len(kind) == 3:
            kind = int(kind)
        if isinstance(kind, int) and not isinstance(kind, bool) and 400 <= kind < 600:
            return kind
        if isinstance(kind, str):
            name = re.sub("[^a-z]", "", kind[:100].lower())
            found = _STATUSES.get(name) or _STATUSES.get(name.removesuffix("exception").removesuffix("error"))
            if found or statuses.says_overloaded(kind):
                return found or 429
    return 0


def _message(value: object, depth: int = 0) -> str:
    """The error's message, wherever in the object it is; "" where there is none."""
    if isinstance(value, str):
        return value
    if depth == DEEPEST:
        return ""
    if isinstance(value, list):
        return next(filter(None, (_message(item, depth + 1) for item in value)), "")
    if isinstance(value, Mapping):
        message = next(filter(None, (_message(value[key], depth + 1) for key in MESSAGES if key in value)), "")
        place = value.get("loc")  # pydantic's and FastAPI's errors: where in the request, then what
        parts = [str(part) for part in place[:8] if isinstance(part, str | int)] if isinstance(place, list) else []
        return f"{'.'.join(parts)}: {message}" if message and parts else message
    return ""


def _words(text: str) -> str:
    return (_visible(text) if text.lstrip().startswith("<") else "") or text


def _visible(page: str) -> str:
    """The visible text of a page of HTML or XML: its body, else its title."""
    start = re.search("<body", page, re.IGNORECASE)
    text = page[start.start() :] if start else page
    for tag in ("script", "style"):
        first, *pieces = re.split(f"<{tag}", text, flags=re.IGNORECASE)
        ends = [re.split(f"</{tag}[^>]*>", piece, maxsplit=1, flags=re.IGNORECASE)[1:] for piece in pieces]
        text = first + "".join(after for end in ends for after in end)
    seen = " ".join(html.unescape(re.sub("<[^<>]*>?", " ", text)).split())
    return seen if seen or not start else _visible(page[: start.start()])
