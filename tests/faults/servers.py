"""The servers that are broken on purpose: one simulated server in a process of its own for each kind of target."""

import json
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.network import Link, Network, NetworkFault, Trouble
from tests.processes import PATIENCE, TGI_PROBE, Process, ask, wait_until

BATCH_SIZE = 2
# What each moment of a probe is to each kind: the method to name in a fault, and the step or token at which it comes.
SHARD_MOMENTS = {
    "discovery": "ServiceDiscovery",
    "info": "Info",
    "prefill": "Prefill",
    "decode": "Decode",
    "clear": "Decode,ClearCache",  # a batch is cleared only after its probe has failed
}
AT_STEP = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of target: how its server is started, how the target is configured, its calls by moment.

    `samples`: how many times to first token a probe gives.
    """

    name: str
    words: tuple[str, ...]
    target: Mapping[str, Any]
    moments: Mapping[str, str]
    door: str
    samples: int = 1

    @property
    def is_shard(self) -> bool:
        return self.door == "shard"


def shard(name: str, *words: str, **target: Any) -> Kind:
    return Kind(name, words, {"kind": "shard", **target}, SHARD_MOMENTS, "shard")


def router(name: str, door: str, facts: str, stream: str, **target: Any) -> Kind:
    moments = {"info": facts, "prefill": stream, "decode": stream}
    return Kind(name, (), target, moments, door, samples=BATCH_SIZE)


KINDS = {
    kind.name: kind
    for kind in (
        shard("shard"),
        shard("shard-2-ranks", "--ranks", "2", "--rank-timeout", "30"),
        shard("shard-v2", "--protocol", "v2"),
        router("fmaas", "grpc", "ModelInfo", "GenerateStream", kind="fmaas"),
        router("tgi", "http", "/info", "/generate_stream", kind="http", api="tgi"),
        router("openai", "http", "/v1/models", "/v1/chat/completions", kind="http", api="chat"),
    )
}


@dataclass(slots=True)
class Server:
    """A simulated server that keeps its address over its deaths. `listen` is where a shard listens: unix or TCP."""

    kind: Kind
    listen: str
    name: str = ""
    process: Process | None = None
    ending: bool = False  # a fault ends it, perhaps a moment after its last answer
    admin: str = ""
    address: str = ""
    lives: list[Process] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    def start(self) -> None:
        """Begin a life; `await_up` waits for it."""
        door = ("--listen",) if self.kind.is_shard else (f"--router-{self.kind.door}",)
        words = (*door, self.listen, "--admin-address", "127.0.0.1:0", "--speed", "1000", *self.kind.words)
        self.process = Process((*TGI_PROBE, "simulate", *words))
        self.ending = False
        self.lives.append(self.process)

    def await_up(self) -> None:
        process = self.running
        [self.admin] = wait_until(
            lambda: re.findall(r"admin listens on (\S+)", process.stdout), f"{self.kind.name} is up", process
        )
        pattern = {
            "shard": r"rank 0 listens on (\S+)",
            "grpc": r"grpc listens on (\S+)",
            "http": r"http listens on (\S+)",
        }
        [self.address] = re.findall(pattern[self.kind.door], process.stdout)
        if not self.address.startswith("unix:"):  # the next life listens on the same port
            self.listen = self.address.removeprefix("http://")

    @property
    def running(self) -> Process:
        assert self.process is not None
        return self.process

    def fault(self, kind: str, moment: str = "", **more: Any) -> None:
        """Switch a fault on, at a moment or at all of them."""
        query = {"kind": kind, **more}
        self.ending = kind == "crash"
        if moment:
            query["method"] = self.kind.moments[moment]
            if moment in ("decode", "clear") and kind != "endless":
                query["at"] = AT_STEP
        reply = ask(f"{self.admin}/fault?{'&'.join(f'{key}={value}' for key, value in query.items())}", "POST")
        assert reply.status == 200, reply.text

    def mend(self) -> None:
        """Whatever it was: the same process goes on, or another one begins. `await_up` waits for it."""
        if self.ending:
            self.running.wait()
        if self.running.returncode is not None:
            self.start()
            return
        self.running.send(signal.SIGCONT)
        self.fault("none")

    def await_call(self, moment: str) -> None:
        """Return once it holds a call: in a moment of its own that hangs."""
        method = self.kind.moments[moment]

        def received() -> int:
            return int(self.state()["ranks"][0]["received"].get(method, 0)) if self.kind.is_shard else 0

        before = received()
        wait_until(lambda: received() > before or self.left() > 0, f"{self.kind.name} holds {method}", self.running)

    def kill(self) -> None:
        self.running.send(signal.SIGKILL)
        self.running.wait()

    def terminate(self) -> None:
        self.running.terminate()
        self.running.wait()

    def end(self) -> None:
        for life in self.lives:
            if life.returncode is None:
                life.send(signal.SIGCONT)
            life.end()

    def put_behind(self, network: Network, folder: Path) -> None:
        """From now on the daemon reaches it through links, one for each rank."""
        if self.address.startswith("unix:"):
            here = Path(self.address.removeprefix("unix://"))
            for socket in sorted(here.parent.glob(f"{here.name[:-1]}[0-9]")):
                self.links.append(network.link(f"unix://{folder / socket.name}", f"unix://{socket}"))
        else:
            self.links.append(network.link("127.0.0.1:0", self.authority))

    @property
    def authority(self) -> str:
        return self.address.removeprefix("http://")

    def trouble(self, kind: NetworkFault, moment: str = "", rank: int | None = None, elsewhere: str = "") -> None:
        """Trouble the network, at a moment or at once."""
        method = self.kind.moments[moment] if moment else ""
        after = AT_STEP if moment == "decode" and not self.kind.is_shard else 0
        for number, link in enumerate(self.links):
            if rank in (None, number):
                link.trouble(Trouble(kind, method, after), elsewhere)

    def mend_network(self) -> None:
        for link in self.links:
            link.mend()

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = ask(f"{self.admin}/state").json()
        return state

    def left(self) -> int:
        """Batches or requests that it holds now, of all ranks."""
        state = self.state()
        if self.kind.is_shard:
            return sum(len(rank["batches"]) for rank in state["ranks"])
        return int(state["in_flight"])

    def cleared_all(self) -> int:
        """Calls that would have thrown users' batches away too."""
        return sum(rank["clear_all_calls"] for rank in self.state()["ranks"]) if self.kind.is_shard else 0

    def target(self, **more: Any) -> dict[str, Any]:
        address = self.links[0].address if self.links else self.address
        if self.kind.door == "http":
            address = f"http://{address.removeprefix('http://')}"
        return {"name": self.name or self.kind.name, "address": address, **self.kind.target, **more}


def start_all(servers: list[Server]) -> None:
    """At once: each start takes a second of CPU, and waits for none of the others."""
    for server in servers:
        server.start()
    for server in servers:
        server.await_up()


def listen_at(folder: Path, name: str) -> str:
    """Shards of protocol v3 on unix sockets, all others on TCP."""
    return f"unix://{folder}/{name}" if name.startswith("shard") and name != "shard-v2" else "127.0.0.1:0"


def await_nothing_left(server: Server, patience: float = PATIENCE) -> int:
    """What stays in the server: 0 as soon as it holds nothing, else what it holds at the end."""
    deadline = time.monotonic() + patience
    left = server.left()
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = server.left()
    return left


def config(servers: list[Server], healthy: list[Server], limits: Mapping[str, int], **workload: Any) -> str:
    """JSON, which is YAML. `limits`: max_batch_tokens by target, by which a quarantine is released."""
    targets = []
    for server in [*servers, *healthy]:
        more: dict[str, Any] = {"max_batch_tokens": limits[server.kind.name]} if server.kind.is_shard else {}
        if server.kind.name == "shard-2-ranks":
            more["kv_cache"] = "exclusive"
        targets.append(server.target(**more))
    chat = {
        "name": "chat",
        "sequence_length": 16,
        "decode_length": 6,
        "batch_sizes": [BATCH_SIZE],
        "interval": "1s",
        "timeout": "4s",
        **workload,
    }
    web = {"listen_address": "127.0.0.1:0", "enable_reload": True}
    return json.dumps({"targets": targets, "workloads": [chat], "max_duty_cycle": 1, "web": web})
