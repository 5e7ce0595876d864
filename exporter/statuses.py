"""What a status means: gRPC codes and HTTP statuses to outcomes. Pure; the one table of each."""

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
# Not in the table: UNKNOWN and the rest are what the server said of a request it had understood: rejected.
_GRPC_OUTCOMES = {
    "OK": Outcome.OK,
    "DEADLINE_EXCEEDED": Outcome.TIMEOUT,
    "UNAVAILABLE": Outcome.UNREACHABLE,
    # A server that shuts down ends its calls in flight with CANCELLED; we cancel none that we still wait for.
    "CANCELLED": Outcome.UNREACHABLE,
    "RESOURCE_EXHAUSTED": Outcome.OVERLOADED,
}
_HTTP_OUTCOMES: dict[int, Outcome] = {
    HTTPStatus.TOO_MANY_REQUESTS: Outcome.OVERLOADED,
    HTTPStatus.BAD_GATEWAY: Outcome.UNREACHABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: Outcome.UNREACHABLE,
    HTTPStatus.GATEWAY_TIMEOUT: Outcome.TIMEOUT,
}
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


def of_grpc(code: str) -> Outcome:
    return _GRPC_OUTCOMES.get(code, Outcome.REJECTED)


def grpc_code(number: str) -> str:
    """The name of a `grpc-status`."""
    return GRPC_CODES[int(number)] if number.isdecimal() and int(number) < len(GRPC_CODES) else "UNKNOWN"


def grpc_code_of_http(status: int) -> str:
    return _HTTP_TO_GRPC.get(status, "UNKNOWN")


def grpc_code_of_reset(error_code: int) -> str:
    return _RESET_TO_GRPC.get(error_code, "INTERNAL")


def of_http(status: int) -> Outcome:
    """429 is a server that protects itself, and 502 to 504 are what a gateway says of one that it does not reach or
    wait for any longer; other errors are what the server said of the request.
    """
    return Outcome.OK if status < 300 else _HTTP_OUTCOMES.get(status, Outcome.REJECTED)


def http_code(status: int) -> str:
    """The name of an HTTP status, such as TOO_MANY_REQUESTS; OK for every success."""
    if 200 <= status < 300:
        return "OK"
    try:
        return HTTPStatus(status).name
    except ValueError:
        return f"HTTP_{status}"
