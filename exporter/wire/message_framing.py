"""How a stream of bytes falls into events, and events into tokens. Pure: no clock, no I/O.

The same bytes give the same events, however the network cut them: in the middle of a character, between CR and LF, or
many events in one piece.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from exporter.observation import Step, lateness

# No real event comes near; without a bound a server that never ends a line would fill the memory.
LONGEST_EVENT = 64 * 1024 * 1024
LONGEST_STRAY = 65537
LINE_OVERHEAD = 64  # bytes that Python takes for each line beside its own


class FramingError(Exception):
    """The bytes are not what they should be."""


BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event of a stream: its data, and the name of its kind, nearly always empty."""

    data: str
    kind: str = ""


class ServerSentEvents:
    """Splits an event stream (WHATWG HTML, section 9.2) into its events.

    Comments, keep-alive lines and unknown fields are passed over, and so is an event without data or with empty data:
    servers send it to keep a connection open. Each byte is looked at once, however the network cuts the stream.
    """

    def __init__(self) -> None:
        self._beginning: bytes | None = b""  # what may become a byte order mark; None once that is known
        self._line = bytearray()  # a line whose end has not come yet
        self._data: list[bytes] = []
        self._size = 0  # of those lines
        self._kind = b""
        self._cr = False
        self.stray = bytearray()  # lines that are no fields, from one on that looks like the beginning of an object

    def feed(self, piece: bytes) -> list[Event]:
        """Every event that ends in this piece. Raises FramingError."""
        if self._beginning is not None:
            piece = self._beginning + piece
            if len(piece) < len(BOM) and BOM.startswith(piece):
                self._beginning = piece
                return []
            piece, self._beginning = piece.removeprefix(BOM), None
        if self._cr and piece:  # after a CR that has already ended the line, an LF is the rest of it
            piece = piece.removeprefix(b"\n")
            self._cr = False
        if piece:
            self._cr = piece.endswith(b"\r")
        # Only the new piece is searched: what is pending holds no line end.
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
            raise FramingError("an event without end")
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
        elif name == b"error" and value.startswith(b"{"):  # older llama.cpp sends its errors in a field of that name
            self._data.append(value)
            self._kind = b"error"
        elif name and len(self.stray) < LONGEST_STRAY and (self.stray or line.startswith(b"{")):
            self.stray += line[:LONGEST_STRAY] + b"\n"

    def rest(self) -> list[Event]:
        """What stands in an event that the end of the stream cut off: servers forget the last empty line."""
        return self.feed(b"\n\n")


class GrpcMessages:
    """Splits the body of a gRPC answer into messages: five bytes of prefix, then the message."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Every message that ends in this piece. Raises FramingError."""
        pending = self._pending
        pending += piece
        messages = []
        at = 0
        while len(pending) - at >= 5:
            if pending[at]:
                raise FramingError("a compressed message, though we accept none")
            length = int.from_bytes(pending[at + 1 : at + 5], "big")
            if length > LONGEST_EVENT:
                raise FramingError(f"a message of {length} bytes")
            if len(pending) - at - 5 < length:
                break
            messages.append(bytes(pending[at + 5 : at + 5 + length]))
            at += 5 + length
        del pending[:at]
        return messages

    @property
    def complete(self) -> bool:
        """Whether nothing of an unfinished message is left."""
        return not self._pending


def grpc_message(data: bytes) -> bytes:
    return b"\x00" + len(data).to_bytes(4, "big") + data


def steps(sent: float, arrivals: Sequence[tuple[float, int]]) -> tuple[Step, ...]:
    """Arrivals as (instant, tokens so far) to steps. One without a new token is no step; its wait is part of the
    next.

    What was read at once is one step: as late as its first token, and asked for the next one when its last token came.
    """
    found: list[Step] = []
    asked, before = sent, 0
    asked_late = 0.0
    for instant, tokens in arrivals:
        if tokens > before and instant == asked and found:  # came together: nobody waited in between
            found[-1] = replace(found[-1], tokens=found[-1].tokens + tokens - before)
        elif tokens > before:
            found.append(Step(asked, instant, tokens - before, late=lateness(instant), asked_late=asked_late))
        else:
            continue
        asked, before, asked_late = instant, tokens, lateness(instant)
    return tuple(found)
