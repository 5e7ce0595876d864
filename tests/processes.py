"""Programs run as processes of their own, and the waiting for what they do: by condition, up to a deadline.

Start with `running`, look with `wait_until`, and nothing outlives the block.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Seen = TypeVar("Seen")
PATIENCE = 90.0  # seconds: what a test waits for comes far sooner; this only ends a test that would wait for ever
_FIRST_LOOK, _LOOK_EVERY = 0.01, 0.25

TGI_PROBE = (sys.executable, "-m", "exporter")


class Process:
    """A running program. Its lines are collected as they come, so that it never blocks on a full pipe."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.command = tuple(command)
        self._popen = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**_environment(), **(environment or {})},
            start_new_session=True,  # a Ctrl-C at the tests' terminal is ours to pass on
        )
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name, getattr(self._popen, name)), daemon=True)
            for name in self._lines
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, pipe: Any) -> None:
        with pipe:
            for line in pipe:
                self._lines[name].append(line)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdout(self) -> str:
        return "".join(self._lines["stdout"])

    @property
    def stderr(self) -> str:
        return "".join(self._lines["stderr"])

    @property
    def output(self) -> str:
        """All that it said so far, for the message of a failing test."""
        return f"{' '.join(self.command)}\n--- stdout\n{self.stdout}--- stderr\n{self.stderr}"

    @property
    def returncode(self) -> int | None:
        return self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code, once it has ended and all of its output is in."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s: {self.output}") from None
        for reader in self._readers:
            reader.join(timeout)
        return code

    def end(self) -> None:
        """Make sure that it is gone: politely, then not."""
        if self._popen.poll() is None:
            self.terminate()
            try:
                self._popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self.wait()


def _environment() -> dict[str, str]:
    """This process's, less what would configure the daemon."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TGI_PROBE_")}


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """A program for the length of a block; at its end it is gone, whatever happened."""
    process = Process(command, environment)
    try:
        yield process
    finally:
        process.end()


def wait_until(
    condition: Callable[[], Seen],
    what: str,
    *processes: Process,
    timeout: float = PATIENCE,
    every: float | None = None,
    may_end: bool = False,
) -> Seen:
    """Ask until the condition holds, and return its (true) value. A process that ends meanwhile ends the waiting.

    `every`: seconds between two looks; without it the pauses grow from 10 ms to 250 ms.

    The condition may raise OSError or AssertionError: not there yet. With `may_end` the processes may end.
    """
    deadline = time.monotonic() + timeout
    trouble: Exception | None = None
    pause = _FIRST_LOOK if every is None else every
    while True:
        ended = [process for process in processes if not may_end and process.returncode is not None]
        try:
            if seen := condition():
                return seen
        except (OSError, AssertionError) as caught:
            trouble = caught
        if ended or time.monotonic() > deadline:
            why = f"ended with {ended[0].returncode}" if ended else f"not within {timeout:g} s"
            said = "\n".join(process.output for process in processes)
            raise AssertionError(f"{what}: {why} (last trouble: {trouble!r})\n{said}")
        time.sleep(pause)
        if every is None:
            pause = min(1.5 * pause, _LOOK_EVERY)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody used a moment ago; for programs that cannot say which port 0 became."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    text: str
    content_type: str

    def json(self) -> Any:
        return json.loads(self.text)


def ask(url: str, method: str = "GET", headers: Mapping[str, str] | None = None, timeout: float = 20.0) -> Reply:
    """One HTTP request; an error status is a reply like any other. OSError when nobody answers."""
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return Reply(reply.status, reply.read().decode(), reply.headers.get("Content-Type", ""))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read().decode(), error.headers.get("Content-Type", ""))
