"""How a stream of bytes falls into events, and events into tokens. Pure: no clock, no I/O.

The same bytes give the same events, however the network cut them: in the middle of a character, between CR and LF, or
many events in one piece.
"""

from collections.abc import Sequence

from exporter.observation import Step

# No real event comes near; without a bound a server that never ends a line would fill the memory.
LONGEST_EVENT = 64 * 1024 * 1024


class FramingError(Exception):
    """The bytes are not what they should be."""


class ServerSentEvents:
    """Splits an event stream (WHATWG HTML, section 9.2) into the data of its events.

    Comments, keep-alive lines and fields other than `data` are passed over; an event without data is none.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[bytes] = []
        self._cr = False

    def feed(self, piece: bytes) -> list[str]:
        """The data of every event that ends in this piece. Raises FramingError."""
        events: list[str] = []
        if self._cr and piece.startswith(b"\n"):  # the rest of a CRLF whose CR has already ended the line
            piece = piece[1:]
            self._cr = False
        if piece:
            self._cr = piece.endswith(b"\r")
        lines = (self._pending + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._pending = lines.pop()
        if len(self._pending) > LONGEST_EVENT:
            raise FramingError("an event without end")
        for line in lines:
            if not line:
                if self._data:
                    events.append(_decoded(b"\n".join(self._data)))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line == b"data":
                self._data.append(b"")
        return events

    def rest(self) -> list[str]:
        """What stands in an event that the end of the stream cut off: servers forget the last empty line."""
        return self.feed(b"\n\n")


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FramingError(f"an event that is not UTF-8: {error.reason}") from None


class GrpcMessages:
    """Splits the body of a gRPC answer into messages: five bytes of prefix, then the message."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Every message that ends in this piece. Raises FramingError."""
        pending = self._pending + piece if self._pending else piece
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
            messages.append(pending[at + 5 : at + 5 + length])
            at += 5 + length
        self._pending = pending[at:]
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
    """
    found: list[Step] = []
    asked, before = sent, 0
    for instant, tokens in arrivals:
        if tokens > before and instant == asked and found:  # came together: nobody waited in between
            found[-1] = Step(found[-1].asked, instant, found[-1].tokens + tokens - before)
            before = tokens
        elif tokens > before:
            found.append(Step(asked, instant, tokens - before))
            asked, before = instant, tokens
    return tuple(found)


def spread_tokens(chunks: Sequence[float], total: int | None) -> list[tuple[float, int]]:
    """The instants of chunks as (instant, tokens so far), where only the sum of their tokens is known.

    A chunk is not a token: speculation, or a server that sends at intervals, puts several into one, and a character
    cut into two tokens makes none. The tokens are spread evenly over the chunks, the first chunk has at least one.
    None: each is one.
    """
    count = len(chunks)
    if total is None or total == count:
        return [(instant, number + 1) for number, instant in enumerate(chunks)]
    return [(instant, max(1, (number + 1) * total // count)) for number, instant in enumerate(chunks)] if total else []
