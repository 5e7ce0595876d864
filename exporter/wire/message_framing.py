"""Splits a body into messages: server-sent events, or the messages of gRPC. Pure.

The same bytes give the same messages, wherever the network cuts them.
"""

from typing import NamedTuple

from exporter.observation import Failure, Outcome

# Bytes of one event. No real one comes near; a line without end would fill the memory.
LONGEST_EVENT = 64 * 1024 * 1024
LONGEST_STRAY = 65537
LINE_OVERHEAD = 64  # bytes that Python adds to each line
# Bytes of a whole answer: of one without a known number of tokens, and of one whose number is known. No real answer
# comes near; one without end would fill the memory.
LONGEST_ANSWER = 256 * 1024 * 1024
ANSWER_BYTES, TOKEN_BYTES = 16 * 1024 * 1024, 16 * 1024
MESSAGE_OVERHEAD = 256  # bytes that Python adds to each message that is kept
BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One server-sent event. `kind` is nearly always empty."""

    data: str
    kind: str = ""


class AnswerSize:
    """Counts the bytes that an answer takes in memory. `most`: how many tokens it can have, None where that is open."""

    def __init__(self, most: int | None = None) -> None:
        self._left = LONGEST_ANSWER if most is None else min(LONGEST_ANSWER, ANSWER_BYTES + TOKEN_BYTES * most)

    def add(self, message: bytes | str) -> None:
        """Raises Failure (malformed)."""
        self._left -= len(message) + MESSAGE_OVERHEAD
        if self._left < 0:
            raise malformed("an answer without end")


class ServerSentEvents:
    """Splits an event stream (WHATWG HTML, section 9.2) into its events.

    Comments and unknown fields are dropped, and so are events without data, which servers send to keep a connection
    open. Each byte is looked at once.
    """

    def __init__(self) -> None:
        self._beginning: bytes | None = b""  # what may become a byte order mark; None once that is known
        self._line = bytearray()  # an unfinished line
        self._data: list[bytes] = []
        self._size = 0  # of those lines
        self._kind = b""
        self._cr = False
        self.stray = bytearray()  # lines that are no fields, from the first one that begins with a brace

    def feed(self, piece: bytes) -> list[Event]:
        """Every event that ends in this piece. Raises Failure (malformed)."""
        if self._beginning is not None:
            piece = self._beginning + piece
            if len(piece) < len(BOM) and BOM.startswith(piece):
                self._beginning = piece
                return []
            piece, self._beginning = piece.removeprefix(BOM), None
        if self._cr and piece:  # the LF of a CRLF whose CR has already ended the line
            piece = piece.removeprefix(b"\n")
            self._cr = False
        if piece:
            self._cr = piece.endswith(b"\r")
        # Only the new piece is searched: the pending line holds no line end.
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = piece.split(b"\n")
        if lines and self._line:
            lines[0] = bytes(self._line + lines[0])
            self._line.clear()
        self._line += rest
        events: list[Event] = []
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                data = b"\n".join(self._data)
                if data and not data.isspace():
                    kind = self._kind.decode("utf-8", "replace") if self._kind else ""
                    events.append(Event(data.decode("utf-8", "replace"), kind))
                self._data, self._size, self._kind = [], 0, b""
            else:
                self._kind = b""
        if len(self._line) + self._size > LONGEST_EVENT:
            raise malformed("an event without end")
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + LINE_OVERHEAD
        elif name == b"event":
            self._kind = value
        elif name == b"error" and value.startswith(b"{"):  # of older llama.cpp
            self._data.append(value)
            self._size += len(value) + LINE_OVERHEAD
            self._kind = b"error"
        elif name and len(self.stray) < LONGEST_STRAY and (self.stray or line.startswith(b"{")):
            self.stray += line[:LONGEST_STRAY] + b"\n"

    def rest(self) -> list[Event]:
        """The last event where its empty line is missing: some servers forget it."""
        return self.feed(b"\n\n")


class GrpcMessages:
    """Splits the body of a gRPC answer into messages: five bytes of prefix, then the message."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Every message that ends in this piece. Raises Failure (malformed)."""
        pending = self._pending
        pending += piece
        messages = []
        at = 0
        while len(pending) - at >= 5:
            if pending[at]:
                raise malformed("a compressed message, though we accept none")
            length = int.from_bytes(pending[at + 1 : at + 5], "big")
            if length > LONGEST_EVENT:
                raise malformed(f"a message of {length} bytes")
            if len(pending) - at - 5 < length:
                break
            messages.append(bytes(pending[at + 5 : at + 5 + length]))
            at += 5 + length
        del pending[:at]
        return messages

    @property
    def complete(self) -> bool:
        """Whether no unfinished message is left."""
        return not self._pending


def malformed(what: str) -> Failure:
    return Failure(Outcome.MALFORMED, "OK", what)


def grpc_message(data: bytes) -> bytes:
    return b"\x00" + len(data).to_bytes(4, "big") + data
