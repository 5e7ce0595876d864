"""A process of the demo's own, and a port for it."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO

STOP_SECONDS = 10.0
Child = subprocess.Popen[str]


@contextlib.contextmanager
def child(command: Sequence[str], stdout: int | IO[str], stderr: int | None = None) -> Iterator[Child]:
    """A program for the length of the block."""
    # In a session of its own: Ctrl-C reaches only the daemon, which clears its batches before the servers end.
    with subprocess.Popen(command, start_new_session=True, stdout=stdout, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port(wanted: int, whose: str) -> int:
    """A port of 127.0.0.1 where nobody listens now: `wanted`, or another one and a line that says so."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: they need not wait for old clients
        try:
            trial.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError):
            trial.bind(("127.0.0.1", 0))
            print(f"port {wanted} is taken: {whose} gets port {trial.getsockname()[1]}", flush=True)
        return int(trial.getsockname()[1])
