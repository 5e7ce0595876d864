"""A simulated router in a process of its own, and probers that keep what they ask."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.probes.interface import Result
from exporter.probes.router.fmaas_protocol import FmaasProtocol
from exporter.probes.router.http_protocol import HttpProtocol
from exporter.probes.router.prober import StreamProber
from exporter.probes.router.protocol import RouterProtocol
from exporter.wire.http_codec import HttpRequest
from tests.processes import TGI_PROBE, Process, ask, running, wait_until

# How each way in is configured, beside the address.
DOORS: dict[str, dict[str, Any]] = {
    "fmaas": {"kind": "fmaas"},
    "tgi": {"kind": "http", "api": "tgi"},
    "completions": {"kind": "http", "api": "completions"},
    "chat": {"kind": "http", "api": "chat"},
}


@dataclass(frozen=True, slots=True)
class SimulatedRouter:
    """`tgi-probe simulate` with both doors of a router and its admin page."""

    process: Process
    http: str
    grpc: str
    admin: str

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = ask(f"{self.admin}/state").json()
        return state

    def record(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in ask(f"{self.admin}/record").text.splitlines()]


@contextlib.contextmanager
def simulated_router(*words: str) -> Iterator[SimulatedRouter]:
    doors = ("--router-http", "127.0.0.1:0", "--router-grpc", "127.0.0.1:0", "--admin-address", "127.0.0.1:0")
    with running((*TGI_PROBE, "simulate", *doors, *words)) as process:
        [admin] = wait_until(lambda: re.findall(r"admin listens on (\S+)", process.stdout), "the router is up", process)
        [http] = re.findall(r"router http listens on http://(\S+)", process.stdout)
        [grpc] = re.findall(r"router grpc listens on (\S+)", process.stdout)
        yield SimulatedRouter(process, http, grpc, admin)


def target(door: str, http: str | None, grpc: str | None, **keys: Any) -> Target:
    scheme = "https" if "tls" in keys else "http"
    address = grpc if door == "fmaas" else f"{scheme}://{http}"
    return Target.model_validate({"name": "router", "address": address, **DOORS[door], **keys})


class Keeping:
    """A protocol that keeps the prompts, in the order of the streams."""

    def __init__(self, protocol: RouterProtocol) -> None:
        self._protocol = protocol
        self.prompts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        self.prompts.append(prompt)
        return self._protocol.request(prompt, workload, seed)


def protocol(target: Target) -> RouterProtocol:
    return FmaasProtocol(target) if target.kind == "fmaas" else HttpProtocol(target)


class Probing:
    """A prober with its prompts; for the length of a block."""

    def __init__(self, target: Target) -> None:
        self.protocol = Keeping(protocol(target))
        self.prober = StreamProber(target, self.protocol)

    def __enter__(self) -> "Probing":
        return self

    def __exit__(self, *_: object) -> None:
        self.prober.close()

    def probe(self, workload: Workload, batch_size: int) -> Result:
        """Connect and probe; `prompts` are those of this probe."""
        self.prober.connect(5.0)
        self.protocol.prompts.clear()
        result = self.prober.probe(workload, batch_size, lambda: False)
        assert len(self.protocol.prompts) >= batch_size or not result.streams
        del self.protocol.prompts[:-batch_size]
        return result

    @property
    def prompts(self) -> list[str]:
        return self.protocol.prompts


def workload(**keys: Any) -> Workload:
    return Workload.model_validate({"name": "w", "sequence_length": 32, "decode_length": 8, "timeout": "30s", **keys})
