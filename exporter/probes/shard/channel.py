"""The only opener of gRPC channels, and the one place where a status code becomes an Outcome."""

from urllib.parse import quote

import grpc

from exporter.analysis import statuses
from exporter.observation import Failure
from exporter.wire import connect_errors

OPTIONS = (
    # A default client refuses answers over 4 MiB and leaves the batch cached in the shard.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Two targets never share a connection: closing one must not end calls of the other.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC would wait up to two minutes before it tries a server again that was away.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A proxy of the environment is for the web; a shard is a neighbour.
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", "tgi-probe"),
)


# Statuses that say nothing of a server that ended by itself: it stops as it was told to, or is slow.
_HARMLESS = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
# How gRPC says that a connection ended in the middle of a call. Another UNAVAILABLE is the word of a server that lives,
# or says that gRPC never had a connection.
_DROPPED = ("closed", "stream removed", "connection reset", "connection aborted", "broken pipe", "end of tcp stream")
_NOT_SENT = ("failed to connect", "dns resolution failed")


def open_channel(address: str) -> grpc.Channel:
    """A channel to `unix:///path` or `host:port`. It connects on the first call, and does not wait for a server."""
    scheme, colon, path = address.partition(":")
    # gRPC takes a socket's name for a URL, where a %, ? or # would mean something else.
    return grpc.insecure_channel(f"unix:{quote(path)}" if scheme == "unix" and colon else address, options=OPTIONS)


def was_dropped(said: str) -> bool:
    """Whether these are gRPC's words for a connection that ended in the middle of a call."""
    said = said.lower()
    return any(words in said for words in _DROPPED) and not any(words in said for words in _NOT_SENT)


def failure(error: grpc.RpcError, what: str, address: str, timeout: float) -> Failure:
    """The Failure that a gRPC error means, its detail one line: what was called where, and what the server said.

    `timeout`: how long was waited, in seconds.
    """
    code: grpc.StatusCode = error.code()
    said = " ".join(str(error.details() or "").split())
    suspicious = was_dropped(said) if code is grpc.StatusCode.UNAVAILABLE else code not in _HARMLESS
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        said = f"no answer within {timeout:.3g} s"
    reason = connect_errors.reason(said)
    hint = connect_errors.hint(address, reason) if reason else None
    detail = f"{what} at {address}: {reason or said or code.name}" + (f"; {hint}" if hint else "")
    return Failure(statuses.of_grpc(code.name), code.name, detail, may_have_ended_server=suspicious)
