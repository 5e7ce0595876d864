"""The product's two processes, started as a user starts them, and what can be asked of them."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.processes import TGI_PROBE, Process, Reply, ask, running, wait_until
from tests.simulator.caller import Caller

ANSWERED = ("ok", "disturbed")
Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class SimulatedShard:
    """`tgi-probe simulate` with its admin page."""

    process: Process
    address: str
    admin: str

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = ask(f"{self.admin}/state").json()
        return state

    def batches(self) -> int:
        """How many batches all ranks keep."""
        return sum(len(rank["batches"]) for rank in self.state()["ranks"])

    def calls(self, method: str, what: str = "calls", rank: int = 0) -> int:
        return int(self.state()["ranks"][rank][what].get(method, 0))

    def record(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in ask(f"{self.admin}/record").text.splitlines()]

    def holds_a_call(self) -> bool:
        """Whether the first rank's only thread is taken, for longer than any pass lasts here."""
        caller = Caller(self.address)
        try:
            return caller.send("Health", timeout=1.0).exception() is not None
        finally:
            caller.close()

    def command(self, words: str) -> None:
        """Such as `fault?kind=hang&method=Prefill`."""
        reply = ask(f"{self.admin}/{words}", "POST")
        assert reply.status == 200, reply.text


@contextlib.contextmanager
def simulated_shard(listen: str, *words: str) -> Iterator[SimulatedShard]:
    """A shard in a process of its own; `address` is where its first rank listens."""
    command = (*TGI_PROBE, "simulate", "--listen", listen, "--admin-address", "127.0.0.1:0", *words)
    with running(command) as process:
        [admin] = wait_until(lambda: re.findall(r"admin listens on (\S+)", process.stdout), "the shard is up", process)
        [address] = re.findall(r"rank 0 listens on (\S+)", process.stdout)
        yield SimulatedShard(process, address, admin)


@dataclass(frozen=True, slots=True)
class Daemon:
    """`tgi-probe run`."""

    process: Process
    port: int

    def get(self, path: str, method: str = "GET") -> Reply:
        return ask(f"http://127.0.0.1:{self.port}{path}", method)

    def samples(self) -> dict[Key, float]:
        """Every sample of /metrics, by name and labels."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def sum_of(self, name: str, **labels: str) -> float:
        """The sum over the samples with these labels, whatever their others."""
        return sum(self.by_labels(name, **labels).values())

    def by_labels(self, name: str, **labels: str) -> dict[frozenset[tuple[str, str]], float]:
        """The samples with these labels, of one scrape."""
        return {
            has: value for (at, has), value in self.samples().items() if at == name and has >= frozenset(labels.items())
        }

    def await_sum(self, name: str, least: float = 1, **labels: str) -> None:
        wait_until(lambda: self.sum_of(name, **labels) >= least, f"{name}{labels} ≥ {least}", self.process)

    def await_answers(self, least: float, **labels: str) -> None:
        """So many probes were answered, whether or not this machine was awake enough to measure them."""
        wait_until(
            lambda: sum(self.sum_of("tgi_probe_attempts_total", outcome=end, **labels) for end in ANSWERED) >= least,
            f"{least} answers {labels}",
            self.process,
        )


@contextlib.contextmanager
def daemon_running(config: Path | None, environment: Mapping[str, str] | None = None) -> Iterator[Daemon]:
    """The daemon on a free port, which the configuration must ask for."""
    command = (*TGI_PROBE, "run", *(("--config", str(config)) if config else ()))
    with running(command, environment) as process:
        [port] = wait_until(lambda: re.findall(r"listening on \S*:(\d+)", process.stderr), "the daemon is up", process)
        yield Daemon(process, int(port))


def write_config(file: Path, address: str, target: Mapping[str, Any] | None = None, **workload: Any) -> Path:
    """A configuration with one target `shard` and one workload `chat`, ten times a second."""
    document = {
        "targets": [{"name": "shard", "address": address, **(target or {})}],
        "workloads": [
            {
                "name": "chat",
                "sequence_length": 32,
                "decode_length": 8,
                "batch_sizes": [1],
                "interval": "100ms",  # back to back would keep a processor from other tests
                **workload,
            }
        ],
        "max_duty_cycle": 1,
        "web": {"listen_address": "127.0.0.1:0", "enable_reload": True},
    }
    file.write_text(json.dumps(document))  # JSON is YAML
    return file
