"""A simulated shard and router in one process, daemons that probe them, and what the kernel says of a process."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.parts import Daemon
from tests.processes import TGI_PROBE, Process, ask, running, wait_until

# A thread of the daemon that failed, or a bug that it caught.
BUGS = ("Traceback", "bug of tgi-probe", "tgi-probe failed", "CRITICAL")


@dataclass(frozen=True, slots=True)
class Servers:
    """`tgi-probe simulate` with a shard and a router."""

    process: Process
    shard: str
    http: str
    grpc: str
    admin: str

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = ask(f"{self.admin}/state").json()
        return state

    def batches(self) -> int:
        """How many batches the shard keeps."""
        return sum(len(rank["batches"]) for rank in self.state()["shard"]["ranks"])

    def calls(self, method: str) -> int:
        """How many such calls the shard has answered."""
        return sum(int(rank["calls"].get(method, 0)) for rank in self.state()["shard"]["ranks"])

    def in_flight(self) -> int:
        """How many requests the router works on."""
        return int(self.state()["router"]["in_flight"])

    def died(self) -> str | None:
        found: str | None = self.state()["shard"]["died"]
        return found

    def command(self, words: str) -> None:
        """Such as `slowdown?factor=2`."""
        reply = ask(f"{self.admin}/{words}", "POST")
        assert reply.status == 200, reply.text

    def targets(self) -> list[dict[str, Any]]:
        """A target of each kind."""
        return [
            {"name": "shard", "address": self.shard},
            {"name": "fmaas", "kind": "fmaas", "address": self.grpc},
            {"name": "http", "kind": "http", "api": "tgi", "address": f"http://{self.http}"},
        ]


@contextlib.contextmanager
def servers(folder: Path, *words: str) -> Iterator[Servers]:
    listen = ("--listen", f"unix://{folder}/shard", "--router-http", "127.0.0.1:0", "--router-grpc", "127.0.0.1:0")
    with running((*TGI_PROBE, "simulate", *listen, "--admin-address", "127.0.0.1:0", *words)) as process:
        [admin] = wait_until(
            lambda: re.findall(r"admin listens on (\S+)", process.stdout), "the servers are up", process
        )
        [shard] = re.findall(r"rank 0 listens on (\S+)", process.stdout)
        [http] = re.findall(r"router http listens on http://(\S+)", process.stdout)
        [grpc] = re.findall(r"router grpc listens on (\S+)", process.stdout)
        yield Servers(process, shard, http, grpc, admin)


def document(targets: list[dict[str, Any]], **workload: Any) -> dict[str, Any]:
    """A configuration with one workload `chat` for all of them."""
    chat = {"name": "chat", "sequence_length": 32, "decode_length": 8, "batch_sizes": [1], "interval": "100ms"}
    return {
        "targets": targets,
        "workloads": [{**chat, **workload}],
        "max_duty_cycle": 1,
        "web": {"listen_address": "127.0.0.1:0", "enable_reload": True},
    }


def write(file: Path, content: Mapping[str, Any]) -> Path:
    """JSON is YAML. The file changes at one instant, as in a ConfigMap."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content))
    os.replace(new, file)
    return file


def bugs(process: Process) -> list[str]:
    """Lines of the log that no fault of the world around may cause."""
    return [line for line in process.stderr.splitlines() if any(word in line for word in BUGS)]


def log_lines(process: Process, words: str) -> list[str]:
    return [line for line in process.stderr.splitlines() if words in line]


def listening(process: Process) -> Daemon:
    """A daemon that was started, once it answers."""
    [port] = wait_until(lambda: re.findall(r"listening on \S*:(\d+)", process.stderr), "the daemon is up", process)
    return Daemon(process, int(port))


def open_files(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def threads(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/task"))


def peak_memory(process: Process) -> int:
    """The most that was ever resident, bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
