"""Which protocol a server speaks, by the first bytes that it sends. Pure."""

HTTP1, HTTP2, TLS = "HTTP/1.1", "HTTP/2", "TLS"
ANSWERS_PLAIN = "the server answers without TLS"
NO_HTTP2 = "the server does not offer HTTP/2, which gRPC needs"
NOT_GRPC = "instead of gRPC"
# Ambiguous: servers that stop do it too. So it is a hint only before a target has answered at all.
CLOSED = "the server closed the connection"
ENOUGH = 9  # bytes, to recognise a protocol by
_HANDSHAKE, _ALERT = 0x16, 0x15
_SETTINGS = 4


def detect_protocol(first: bytes) -> str | None:
    """The protocol of a server whose first bytes these are; None where they tell nothing."""
    if first.startswith(b"HTTP/1."):
        return HTTP1
    if len(first) >= 2 and first[0] in (_HANDSHAKE, _ALERT) and first[1] == 3:
        return TLS
    # A frame's header: three bytes of length, type, flags, the number of its stream.
    if len(first) >= ENOUGH and first[0] == 0 and first[3] == _SETTINGS and first[5:9] == bytes(4):
        return HTTP2
    return None


def plain(first: bytes) -> bool:
    """Whether a TLS client that hears this hears no TLS."""
    return first[0] not in (_HANDSHAKE, _ALERT)


def answers_in(first: bytes, expected: str) -> str | None:
    """What to say of a server that speaks another protocol than expected; None where it does not, or nobody knows."""
    heard = detect_protocol(first)
    return answers(heard) if heard not in (None, expected) else None


def answers(heard: str | None) -> str:
    """The sentence that `probes.router.hints` looks for."""
    return f"the server answers in {heard}"
