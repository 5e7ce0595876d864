"""Which protocol a server speaks, by its first bytes. Pure. The texts are what `probes.router.hints` looks for."""

HTTP1, HTTP2, TLS = "HTTP/1.1", "HTTP/2", "TLS"
ANSWERS_PLAIN = "the server answers without TLS"
NO_HTTP2 = "the server does not offer HTTP/2, which gRPC needs"
NOT_GRPC = "instead of gRPC"
# A server that speaks another protocol closes the connection, but so does one that stops. So this is a sign of a wrong
# protocol only before a target's first answer.
CLOSED = "the server closed the connection"
ENOUGH = 9  # bytes, to recognise a protocol by
_HANDSHAKE, _ALERT = 0x16, 0x15
_SETTINGS = 4


def detect_protocol(first: bytes) -> str | None:
    """The protocol with these first bytes; None where they do not show it."""
    if first.startswith(b"HTTP/1."):
        return HTTP1
    if len(first) >= 2 and first[0] in (_HANDSHAKE, _ALERT) and first[1] == 3:
        return TLS
    # A frame's header: three bytes of length, the type, the flags, the stream.
    if len(first) >= ENOUGH and first[0] == 0 and first[3] == _SETTINGS and first[5:9] == bytes(4):
        return HTTP2
    return None


def plain(first: bytes) -> bool:
    """Whether these first bytes are no TLS."""
    return first[0] not in (_HANDSHAKE, _ALERT)


def answers_in(first: bytes, expected: str) -> str | None:
    """The message about a server that speaks another protocol than expected; None where none is known."""
    detected = detect_protocol(first)
    return answers(detected) if detected not in (None, expected) else None


def answers(protocol: str | None) -> str:
    return f"the server answers in {protocol}"
