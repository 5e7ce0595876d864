"""How the cost of a daemon grows with the number of its targets."""

import tempfile
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.bare import BareClient
from benchmarks.processes import MIB, Server, Subject, addresses, scrape, socket_address
from benchmarks.report import Part, Ratio, Table, median, milliseconds, quantile
from benchmarks.truth import TAIL_FLOOR

SERVICE_SECONDS = 0.005
# Targets, and the seconds between two probes of one target: few targets more often, so that there are probes to count.
SECONDS_PER_PROBE = {1: 0.5, 4: 1.0, 16: 2.0, 64: 5.0, 256: 15.0}
# The share of the time: with 256 targets long enough for a 99th percentile.
WEIGHTS = {1: 1, 4: 1, 16: 2, 64: 2, 256: 5}
BARE_SECONDS = 0.055
SERIES = 12
# Reaches hold for the most targets: lateness beside a bare thread's, and the time of a scrape per target beside that
# with 16 targets.
REACHED, COMPARED = 256, 16
LATE_LIMIT, SCRAPE_LIMIT = 3.0, 1.5


@dataclass(frozen=True, slots=True)
class DaemonCost:
    """What a daemon with `targets` costs: seconds, MiB; CPU in cores. `late` and `bare_late` are of single starts."""

    targets: int
    probes: int
    first_sample: float
    cpu: float
    cpu_per_probe: float | None
    memory: float
    late: list[float]
    bare_late: list[float]
    first_scrape: float
    scrapes: list[float]
    plain_bytes: int
    packed_bytes: int


def run(seconds: float) -> list[Table]:
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), SERVICE_SECONDS) as server:
        costs = {
            targets: measure(server.address, targets, (seconds - 8) * weight / sum(WEIGHTS.values()))
            for targets, weight in WEIGHTS.items()
        }
    periods = " / ".join(f"{each:g}" for each in SECONDS_PER_PROBE.values())
    notes = (
        "Targets × 6 batch sizes × 2 workloads in one daemon, 8 tokens of 5 ms, one probe per target each "
        f"{periods} s. CPU time is that of the daemon, between scrapes, divided by the probes in it. A scrape is "
        "packed and timed at the client until the page is in; its ratio is the time per target beside that with "
        f"{COMPARED} targets. Bare lateness: of a client in a process of its own that sleeps until due times. Of few "
        "probes the 99th percentile of lateness is the highest: the first one, which waits for its connection.",
    )
    columns = (
        *("targets", "first sample after", "CPU per probe", "CPU of one core", "memory", "memory per target"),
        *("lateness p50", "bare lateness p50", "lateness p99", "bare lateness p99", "ratio of lateness p99"),
        *("first scrape", "scrape p50", "slowest scrape", "ratio of scrapes", "page", "packed", "probes"),
    )
    return [Table("Growth with targets", columns, tuple(row(cost, costs[COMPARED]) for cost in costs.values()), notes)]


def config(address: str, targets: int) -> dict[str, Any]:
    interval = f"{SERIES * SECONDS_PER_PROBE[targets]:g}s"
    workload = {"sequence_length": 128, "decode_length": 8, "interval": interval, "warmups": 0}
    return {
        "targets": [
            {"name": f"target-{number:03}", "address": one} for number, one in enumerate(addresses(address, targets))
        ],
        "workloads": [{"name": "chat"} | workload, {"name": "retrieval"} | workload],
        "slos": [{"name": "fast", "workload": "chat", "ttft": "200ms"}],
        "log_level": "error",
        "web": {"listen_address": "127.0.0.1:0"},
    }


def measure(address: str, targets: int, seconds: float) -> DaemonCost:
    with BareClient(address, BARE_SECONDS) as bare, Subject(config(address, targets)) as subject:
        observations: list[dict[str, Any]] = []
        while not observations:
            time.sleep(0.05)
            observations += subject.observations()
        first = min(observation["ended"] for observation in observations) - subject.started
        bare.calls()
        before, cpu = len(observations), subject.cpu_seconds()
        began = time.perf_counter()
        time.sleep(seconds)
        cpu = subject.cpu_seconds() - cpu
        elapsed = time.perf_counter() - began
        observations += subject.observations()
        probes = len(observations) - before
        bare_late = [call.late for call in bare.calls()]
        cold, packed = scrape(subject.port)
        times = []
        for _ in range(6):
            took, packed = scrape(subject.port)
            times.append(took)
            time.sleep(0.3)
        plain = scrape(subject.port, packed=False)[1]
        return DaemonCost(
            targets=targets,
            probes=probes,
            first_sample=first,
            cpu=cpu / elapsed,
            cpu_per_probe=cpu / probes if probes else None,
            memory=subject.resident_bytes() / MIB,
            late=[observation["started"] - observation["due"] for observation in observations],
            bare_late=bare_late,
            first_scrape=cold,
            scrapes=times,
            plain_bytes=plain,
            packed_bytes=packed,
        )


def row(cost: DaemonCost, compared: DaemonCost) -> tuple[str, ...]:
    late = Ratio(quantile(cost.late, 0.99), quantile(cost.bare_late, 0.99), LATE_LIMIT, TAIL_FLOOR)
    scrapes = Ratio(median(cost.scrapes) / cost.targets, median(compared.scrapes) / compared.targets, SCRAPE_LIMIT)
    reached = cost.targets == REACHED
    return (
        str(cost.targets),
        f"{cost.first_sample:.2f} s",
        milliseconds(cost.cpu_per_probe, 1) if cost.cpu_per_probe else "",
        f"{cost.cpu:.1%}",
        f"{cost.memory:.0f} MiB",
        f"{cost.memory / cost.targets:.2f} MiB",
        milliseconds(median(cost.late)),
        milliseconds(median(cost.bare_late)),
        milliseconds(late.figure),
        milliseconds(late.bare),
        str(late) if reached else "",
        milliseconds(cost.first_scrape, 0),
        milliseconds(median(cost.scrapes), 1),
        milliseconds(max(cost.scrapes), 1),
        str(scrapes) if reached else "",
        f"{cost.plain_bytes / 1e6:.1f} MB",
        f"{cost.packed_bytes / 1e6:.2f} MB",
        str(cost.probes),
    )


PART = Part(
    "scale",
    "Growth with targets",
    run,
    "all series and their lines are made before the first thread starts; the golden ratio spreads the targets' first "
    "due times, so that they do not start at once.",
)
