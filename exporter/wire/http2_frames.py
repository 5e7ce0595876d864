"""Cuts bytes into HTTP/2 frames and reads GOAWAY, before the h2 parser. Pure.

h2 refuses every frame after a GOAWAY. RFC 9113 (section 6.8) lets the server finish the streams up to the one that it
names. So h2 never gets a GOAWAY. Frames that we do not use (priorities, alternative services, unknown types) are
dropped, as the RFC asks.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import h2.errors
import h2.exceptions

# The default of SETTINGS_MAX_FRAME_SIZE, which we do not change.
LARGEST_FRAME = 16384
HEADER_BYTES = 9
GOAWAY = 7
# DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, WINDOW_UPDATE, CONTINUATION
PARSED = frozenset({0, 1, 3, 4, 5, 6, 8, 9})
# DATA, HEADERS, CONTINUATION: parts of an answer.
ANSWER = frozenset({0, 1, 9})
# Of the others between two requests. A server could keep us busy with them for ever, and each PING and SETTINGS has an
# answer of ours, which takes memory until the server reads it.
MOST_CONTROL_FRAMES = 100_000
_GOAWAY_BODY = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class GoAway:
    """The server ends the connection. It has begun no stream above `last_stream`, and finishes the others if it can."""

    last_stream: int
    error_code: int
    debug: bytes = b""

    def __str__(self) -> str:
        text = self.debug.decode("utf-8", "replace")
        return f"GOAWAY {error_name(self.error_code)}{f': {text}' if text else ''}"


class Frames:
    """Cuts bytes into frames."""

    def __init__(self) -> None:
        self._rest = b""  # shorter than a frame
        self._control_frames = 0

    def begin_request(self) -> None:
        self._control_frames = 0

    def feed(self, data: bytes) -> Iterator[bytes | GoAway]:
        """The frames that are complete now: as bytes for the parser, and GOAWAY. Raises h2's ProtocolError."""
        data, at = self._rest + data, 0
        while len(data) - at >= HEADER_BYTES:
            length, kind = int.from_bytes(data[at : at + 3]), data[at + 3]
            if length > LARGEST_FRAME:
                raise h2.exceptions.ProtocolError(f"a frame of {length} bytes, over the agreed {LARGEST_FRAME}")
            if kind not in ANSWER:
                self._control_frames += 1
                if self._control_frames > MOST_CONTROL_FRAMES:
                    raise h2.exceptions.ProtocolError(f"over {MOST_CONTROL_FRAMES} frames that belong to no answer")
            end = at + HEADER_BYTES + length
            if len(data) < end:
                break
            if kind in PARSED:
                yield data[at:end]
            elif kind == GOAWAY:
                if length < _GOAWAY_BODY.size:
                    raise h2.exceptions.ProtocolError(f"a GOAWAY frame of {length} bytes, which is too short")
                last_stream, error_code = _GOAWAY_BODY.unpack_from(data, at + HEADER_BYTES)
                yield GoAway(last_stream & 0x7FFFFFFF, error_code, data[at + HEADER_BYTES + _GOAWAY_BODY.size : end])
            at = end
        self._rest = data[at:]


def error_name(code: int) -> str:
    """Such as ENHANCE_YOUR_CALM; the number where it has no name."""
    try:
        return h2.errors.ErrorCodes(code).name
    except ValueError:
        return f"error {code}"
