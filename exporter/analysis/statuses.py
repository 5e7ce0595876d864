"""gRPC codes and HTTP statuses to outcomes: the only tables of them. Pure."""

import re
from http import HTTPStatus

from exporter.observation import Outcome

# In the order of their numbers.
GRPC_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
# Any other code means that the server understood the request and rejected it.
_GRPC_OUTCOMES = {
    "OK": Outcome.OK,
    "DEADLINE_EXCEEDED": Outcome.TIMEOUT,
    "UNAVAILABLE": Outcome.UNREACHABLE,
    # A server that shuts down ends its calls in flight with CANCELLED; we cancel none that we still wait for.
    "CANCELLED": Outcome.UNREACHABLE,
    "RESOURCE_EXHAUSTED": Outcome.OVERLOADED,
}
# With what gateways of Cloudflare (520 to 530), Groq (498) and nginx (499) say of a server behind them.
_HTTP_OUTCOMES: dict[int, Outcome] = {
    **dict.fromkeys((408, 499, 504, 524), Outcome.TIMEOUT),
    **dict.fromkeys((502, 503, 520, 521, 522, 523, 525, 526, 527, 530), Outcome.UNREACHABLE),
    **dict.fromkeys((429, 498, 529), Outcome.OVERLOADED),
}
# How servers and gateways say that they have too much to do, where the status does not.
_OVERLOADED = re.compile(
    r"overload|throttl|rate.?limit|resource.?exhausted|reset reason: overflow|no (free |available )?slots?\b"
    r"|queue\b[^.]{0,40}\b(full|exceed|overflow)|(exceed|full|maximum)\w*\b[^.]{0,20}\bqueue|queue.?full"
    r"|(too many|maximum|max)\b[^.]{0,20}\b(requests|concurren)|\b(at|over|exceed\w*) (its |the )?capacity"
    r"|capacity exceeded|\b(server|engine|model|system|service)( is)?( too| currently)? busy",
    re.IGNORECASE,
)
# What gRPC's own clients make of an answer that has no gRPC status in it.
_HTTP_TO_GRPC = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    429: "UNAVAILABLE",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
# The error code of a torn-down HTTP/2 stream.
_RESET_TO_GRPC = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}


def of_grpc(code: str, message: str = "") -> Outcome:
    """What a gRPC code means. A server's own error whose text says that it has too much to do is overloaded."""
    if code in ("UNAVAILABLE", "UNKNOWN", "INTERNAL") and says_overloaded(message):
        return Outcome.OVERLOADED
    return _GRPC_OUTCOMES.get(code, Outcome.REJECTED)


def grpc_code(number: str) -> str:
    """The name of a `grpc-status`."""
    return GRPC_CODES[int(number)] if number.isdecimal() and int(number) < len(GRPC_CODES) else "UNKNOWN"


def grpc_code_of_http(status: int) -> str:
    return _HTTP_TO_GRPC.get(status, "UNKNOWN")


def grpc_code_of_reset(error_code: int) -> str:
    return _RESET_TO_GRPC.get(error_code, "INTERNAL")


def of_http(status: int, message: str = "") -> Outcome:
    """What an HTTP status means. A server sends 429 when it is overloaded, a gateway 502 to 504 for a server that it
    cannot reach or that is too slow; other errors are about the request. A 5xx whose text says that the server has too
    much to do is overloaded too.
    """
    if status < 300:
        return Outcome.OK
    if status >= 500 and says_overloaded(message):
        return Outcome.OVERLOADED
    return _HTTP_OUTCOMES.get(status, Outcome.REJECTED)


def says_overloaded(text: str) -> bool:
    return _OVERLOADED.search(text[:2000]) is not None


def http_code(status: int) -> str:
    """The name of an HTTP status, such as TOO_MANY_REQUESTS; OK for every success."""
    if 200 <= status < 300:
        return "OK"
    try:
        return HTTPStatus(status).name
    except ValueError:
        return f"HTTP_{status}"


def is_http_error(code: str) -> bool:
    """Whether this is the name of an HTTP status that is no success, as `http_code` gives it."""
    return code.startswith("HTTP_") or (code in HTTPStatus.__members__ and HTTPStatus[code] >= 300)
