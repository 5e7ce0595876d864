"""The processes of a part, and what the kernel says of them. Linux only."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024


class Process:
    """A Python module as a process that talks in lines and ends when its input does."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | dict(environ or {}),
        )
        self.pid = self._process.pid

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return line.rstrip("\n")

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        """SIGTERM, then wait until it has drained."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=40)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    # --- what the kernel says

    def cpu_seconds(self) -> float:
        """User and system time of all its threads since its start, by its CPU clock (see clock_getcpuclockid(3))."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))


class Server(Process):
    """A shard of `benchmarks.server` with a fixed service time."""

    def __init__(self, address: str, service_seconds: float, ranks: int = 1) -> None:
        """One rank of a model that has `ranks`."""
        super().__init__(["-m", "benchmarks.server", address, str(service_seconds), str(ranks)])
        self.address = self.read().split()[1]

    def batches(self) -> int:
        """How many batches it still holds."""
        return int(self.ask("batches"))


class Subject(Process):
    """The whole daemon, which also returns its observations: `benchmarks.subject`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        folder = tempfile.mkdtemp(prefix="tgi-probe-bench-")
        self.config = Path(folder) / "config.yaml"
        self.config.write_text(json.dumps(config))  # JSON is YAML
        super().__init__(["-m", "benchmarks.subject", str(self.config)])
        self.port = int(self.read())

    def observations(self) -> list[dict[str, Any]]:
        """Those since the last call."""
        found: list[dict[str, Any]] = json.loads(self.ask("observations"))
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.config.unlink()
        self.config.parent.rmdir()


def socket_address(folder: str) -> str:
    return f"unix://{folder}/shard-0"


def addresses(address: str, count: int) -> list[str]:
    """`count` names of a server's one socket: the configuration refuses two targets at one address."""
    path = address.removeprefix("unix://")
    names = [f"{path}.{number}" for number in range(count)]
    for name in names:
        if not os.path.exists(name):
            os.link(path, name)
    return [f"unix://{name}" for name in names]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def scrape(port: int, packed: bool = True) -> tuple[float, int]:
    """Seconds until the whole page was in, and its size as it came."""
    headers = {"Accept": "application/openmetrics-text;version=1.0.0"} | ({"Accept-Encoding": "gzip"} if packed else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:
        size = 0
        while part := response.read(1 << 20):
            size += len(part)
    return time.perf_counter() - began, size


def page(port: int) -> str:
    """The whole page, plain."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as response:
        return str(response.read().decode())


def await_page(port: int, seconds: float = 30.0) -> None:
    """Wait until the daemon answers. Raises OSError when it does not."""
    end = time.perf_counter() + seconds
    while True:
        try:
            scrape(port)
        except OSError:
            if time.perf_counter() > end:
                raise
            time.sleep(0.1)
        else:
            return


def reload(port: int) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/-/reload", method="POST", data=b"")
    urllib.request.urlopen(request, timeout=60).close()
