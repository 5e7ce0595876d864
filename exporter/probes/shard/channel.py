"""Opens gRPC channels, and makes Failures of gRPC errors."""

from functools import cache
from urllib.parse import quote

import grpc

from exporter.analysis import statuses
from exporter.observation import Failure, Outcome
from exporter.wire import connect_errors

# Bytes. Parsing takes several times as much.
LARGEST_ANSWER = 64 * 1024 * 1024
LONGEST_METADATA = 64 * 1024
OPTIONS = (
    # A default client refuses answers over 4 MiB. Real ones can be larger; one without bound would fill our memory.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.max_metadata_size", LONGEST_METADATA),
    ("grpc.absolute_max_metadata_size", LONGEST_METADATA),
    # Two targets never share a connection: closing one must not end calls of the other.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC would wait up to two minutes before it tries a lost server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # The environment's proxy is not for a shard on this machine.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", "tgi-probe"),
)

# After these the server did not end because of the call: it was told to stop, or is slow.
_HARMLESS = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
# gRPC's words for a connection that ended during a call. Other UNAVAILABLE errors come from a living server, or mean
# that there was no connection.
_DROPPED = ("closed", "stream removed", "connection reset", "connection aborted", "broken pipe", "end of tcp stream")
# gRPC's words where we refuse an answer.
_TOO_LARGE = "eceived message larger than max"
_NOT_SENT = ("failed to connect", "dns resolution failed")


def open_channel(address: str) -> grpc.Channel:
    """A channel to `unix:///path` or `host:port`. It connects at the first call, and does not wait for a server."""
    _keep_started()
    scheme, colon, path = address.partition(":")
    # gRPC reads a socket's name as a URL, with its own meaning of %, ? and #.
    return grpc.insecure_channel(f"unix:{quote(path)}" if scheme == "unix" and colon else address, options=OPTIONS)


@cache
def _keep_started() -> grpc.Channel:
    """A channel that never connects. When its last channel is closed, gRPC stops, and without a free file descriptor to
    start again with, it ends the process.
    """
    return grpc.insecure_channel("unix:nowhere")


def was_dropped(text: str) -> bool:
    """Whether a connection ended during a call, in gRPC's words."""
    text = text.lower()
    return any(words in text for words in _DROPPED) and not any(words in text for words in _NOT_SENT)


def failure(error: grpc.RpcError, what: str, address: str, timeout: float) -> Failure:
    """The Failure of a gRPC error. Its detail: what was called where, and the server's message. `timeout`: seconds."""
    code: grpc.StatusCode = error.code()
    text = " ".join(str(error.details() or "").split())
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in text:
        most = f"more than {LARGEST_ANSWER >> 20} MiB, which no answer to a probe has"
        return Failure(Outcome.MALFORMED, "OK", f"{what} at {address}: an answer of {most}")
    suspicious = was_dropped(text) if code is grpc.StatusCode.UNAVAILABLE else code not in _HARMLESS
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        text = f"no answer within {timeout:.3g} s"
    reason = connect_errors.reason(text)
    hint = connect_errors.hint(address, reason) if reason else None
    detail = f"{what} at {address}: {reason or text or code.name}" + (f"; {hint}" if hint else "")
    return Failure(statuses.of_grpc(code.name), code.name, detail, may_have_ended_server=suspicious)
