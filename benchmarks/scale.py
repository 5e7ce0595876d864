"""Point 3, the daemon: how cost grows with the number of targets."""

import tempfile
import time
from typing import Any

from benchmarks.processes import MIB, Server, Subject, addresses, scrape, socket_address
from benchmarks.report import Part, Reach, Table, median, milliseconds, quantile

SERVICE_SECONDS = 0.005
SIZES = (1, 4, 16, 64, 256)
# The most targets as the reach wants it; fewer ones more often, so that there are probes to count.
SECONDS_PER_PROBE = {1: 0.5, 4: 1, 16: 2, 64: 5, 256: 15}
SERIES = 12
LIMITS = {16: 60.0, 256: 1000.0}


def run(seconds: float) -> list[Table]:
    # The larger, the longer: so that there are probes enough to speak of a 99th percentile at 256.
    weights = (1, 1, 2, 2, 5)
    rows = []
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), SERVICE_SECONDS) as server:
        for targets, weight in zip(SIZES, weights, strict=True):
            window = (seconds - 8) * weight / sum(weights)
            rows.append(measure(server.address, targets, window))
    periods = " / ".join(f"{each:g}" for each in SECONDS_PER_PROBE.values())
    notes = (
        "Targets × 6 batch sizes × 2 workloads in one daemon, 8 tokens of 5 ms, one probe per target each "
        f"{periods} s. CPU time is that of the daemon, between scrapes, divided by the probes in it. A scrape is "
        "packed and timed at the client until the page is in. Of few probes the 99th percentile of lateness is the "
        "highest: the first probe after a start, which waits for its connection.",
    )
    columns = (
        *("targets", "probes", "first sample after", "CPU per probe", "CPU of one core", "memory", "per target"),
        *("lateness p50", "p99", "reach", "first scrape", "scrape p50", "highest", "reach", "page"),
    )
    return [Table("Growth with targets", columns, tuple(rows), notes)]


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


def measure(address: str, targets: int, seconds: float) -> tuple[str, ...]:
    with Subject(config(address, targets)) as subject:
        observations: list[dict[str, Any]] = []
        while not observations:
            time.sleep(0.05)
            observations += subject.observations()
        first = min(observation["ended"] for observation in observations) - subject.started
        before, cpu = len(observations), subject.cpu_seconds()
        began = time.perf_counter()
        time.sleep(seconds)
        cpu = subject.cpu_seconds() - cpu
        elapsed = time.perf_counter() - began
        observations += subject.observations()
        probes = len(observations) - before
        cold, size = scrape(subject.port)
        times = []
        for _ in range(6):
            took, size = scrape(subject.port)
            times.append(took)
            time.sleep(0.3)
        plain = scrape(subject.port, packed=False)[1]
        memory = subject.resident_bytes() / MIB
    late = [observation["started"] - observation["due"] for observation in observations]
    return (
        str(targets),
        str(probes),
        f"{first:.2f} s",
        milliseconds(cpu / probes, 1) if probes else "",
        f"{cpu / elapsed:.1%}",
        f"{memory:.0f} MiB",
        f"{memory / targets:.2f} MiB",
        milliseconds(median(late)),
        milliseconds(quantile(late, 0.99)),
        str(Reach(quantile(late, 0.99) * 1e3, 20, " ms")) if targets == 256 else "",
        milliseconds(cold, 0),
        milliseconds(median(times), 1),
        milliseconds(max(times), 1),
        str(Reach(max(times) * 1e3, LIMITS[targets], " ms")) if targets in LIMITS else "",
        f"{plain / 1e6:.1f} MB, packed {size / 1e6:.2f} MB",
    )


PART = Part(
    "scale",
    "Growth with targets",
    run,
    "all series and their lines are made before the first thread starts, and the targets' slots are spread by the "
    "golden ratio: nothing starts at once.",
)
