"""Reads a file that others write: at most so many bytes, and never waiting long for more of them.

To open a named pipe waits until somebody writes to it, and a reload that waits for ever keeps out all that follow.
"""

import errno
import os
import select
from pathlib import Path

# Enough for `--config <(a command)`.
PATIENCE_SECONDS = 10.0


def read_bounded(path: Path, most: int) -> bytes:
    """The file's bytes, or `most` + 1 of them where it has more. Errors: OSError, also when nothing comes in time."""
    found = bytearray()
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        readable = select.poll()
        readable.register(file, select.POLLIN)
        while len(found) <= most:
            if not readable.poll(PATIENCE_SECONDS * 1000):
                what = f"nothing came for {PATIENCE_SECONDS:g} s, as from a pipe that nobody writes to"
                raise TimeoutError(errno.ETIMEDOUT, what)
            part = os.read(file, min(1 << 20, most + 1 - len(found)))
            if not part:
                break
            found += part
    finally:
        os.close(file)
    return bytes(found)
