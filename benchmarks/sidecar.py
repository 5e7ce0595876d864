"""What a sidecar costs: CPU, memory, threads and import time of one target, 6 batch sizes, each once in 15 s."""

import subprocess
import sys
import tempfile
import time

from benchmarks.processes import MIB, Process, Server, free_port, scrape, socket_address
from benchmarks.report import Part, Ratio, Reach, Table, median, milliseconds, spread

SERVICE_SECONDS = 0.005
IMPORTS = "import exporter.cli, exporter.daemon.app, exporter.probes.shard.prober, exporter.config.sources"
# The libraries that the exporter is built on.
REFERENCE_IMPORTS = "import anyio, grpc, prometheus_client, pydantic_settings"
ROUNDS = 7
CPU_PERCENT, MEMORY_MIB, THREADS = 0.5, 62, 12
IMPORT_RATIO = 2.0


def run(seconds: float) -> list[Table]:
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), SERVICE_SECONDS) as server:
        port = free_port()
        environ = {
            "TGI_PROBE_TARGET": server.address,
            "TGI_PROBE_INTERVAL": "15s",
            "TGI_PROBE_BATCH_SIZES": "1,2,4,8,16,32",
            "TGI_PROBE_TTFT_SLO": "200ms",
            "TGI_PROBE_WEB__LISTEN_ADDRESS": f"127.0.0.1:{port}",
            "TGI_PROBE_LOG_LEVEL": "error",
        }
        with Process(["-m", "exporter", "run"], environ) as sidecar:
            time.sleep(8)
            scrapes = [scrape(port)[0]]
            began, cpu = time.perf_counter(), sidecar.cpu_seconds()
            # Whole rounds of all batch sizes, with the scrapes that Prometheus would make.
            for _ in range(max(1, int((seconds - 20) // 15))):
                time.sleep(15)
                scrapes.append(scrape(port)[0])
            share = (sidecar.cpu_seconds() - cpu) / (time.perf_counter() - began)
            memory = sidecar.resident_bytes() / MIB
            threads = sidecar.threads()
            sidecar.stop()
    ours, bare = imports()
    reach = Ratio(median(ours[0]), median(bare[0]), IMPORT_RATIO)
    rows = (
        ("CPU of one core", f"{share:.3%}", str(Reach(share * 100, CPU_PERCENT, " %")), ""),
        ("resident memory", f"{memory:.1f} MiB", str(Reach(memory, MEMORY_MIB, " MiB")), f"{bare[1]:.1f} MiB"),
        ("threads", f"{threads} threads", str(Reach(threads, THREADS)), ""),
        ("import time", spread(ours[0], "s"), str(reach), spread(bare[0], "s")),
        ("memory after imports", f"{ours[1]:.1f} MiB", "", f"{bare[1]:.1f} MiB"),
        ("scrape p50", milliseconds(median(scrapes)), "", ""),
        ("slowest scrape", milliseconds(max(scrapes)), "", ""),
    )
    notes = (
        "`tgi-probe run` configured by environment, 6 batch sizes in 15 s, default lengths, 5 ms of service, one "
        f"scrape each 15 s. Beside it: `{REFERENCE_IMPORTS}` and nothing else, imports in turns ({ROUNDS} each). "
        "The reach of import time is a ratio to those.",
    )
    return [Table("Cost of a sidecar", ("", "tgi-probe", "reach", "the libraries alone"), rows, notes)]


def imports() -> tuple[tuple[list[float], float], tuple[list[float], float]]:
    """Seconds and MiB of importing the sidecar's modules, and of the libraries alone, each in new processes."""
    times: dict[str, list[float]] = {IMPORTS: [], REFERENCE_IMPORTS: []}
    memory: dict[str, float] = {}
    for _ in range(ROUNDS):
        for statement in times:
            command = [sys.executable, "-c", TIMED.format(statement)]
            seconds, pages = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            times[statement].append(float(seconds))
            memory[statement] = int(pages) * 4096 / MIB
    return (times[IMPORTS], memory[IMPORTS]), (times[REFERENCE_IMPORTS], memory[REFERENCE_IMPORTS])


TIMED = """
import time
began = time.perf_counter()
{}
print(time.perf_counter() - began, open("/proc/self/statm").read().split()[1])
"""

PART = Part(
    "sidecar",
    "Cost of a sidecar",
    run,
    "simulators, bench and the protocols of routers are imported where they are used. pydantic-settings is the largest "
    "part that could still go (6 MiB).",
)
