"""What grows in millions of calls, made back to back against a server that answers at once."""

import json
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import MIB, Process, Server, addresses, await_page, free_port, page, scrape, socket_address
from benchmarks.report import Part, Table, median

TARGETS = 4
DECODE_LENGTH = 64
LOOKS = 200
LONGEST_SECONDS = 3600.0
# What the daemon itself says of the calls that the server has answered.
CALLS = re.compile(r'^tgi_probe_server_duration_seconds_count\{.*phase="total".*\} (\S+)$', re.MULTILINE)
ATTEMPTS = re.compile(r'^tgi_probe_attempts_total\{.*outcome="([a-z]+)".*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Look:
    """The daemon at one instant. `series` are the lines of its page, `batches` those that the server holds."""

    calls: int
    memory: float
    files: int
    series: int
    threads: int
    batches: int


def run(seconds: float, calls: int = 20_000) -> list[Table]:
    """Until `calls` were made, `seconds` at the longest. The daemon is the command itself, with no harness in it."""
    looks: list[Look] = []
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), 0.0) as server:
        port = free_port()
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config(server.address, port)))  # JSON is YAML
        with Process(["-m", "exporter", "run", "--config", str(file)]) as daemon:
            await_page(port)
            began = time.perf_counter()
            text = ""
            while (not looks or looks[-1].calls < calls) and time.perf_counter() - began < seconds:
                time.sleep(1)
                scrape(port)
                text = page(port)
                done = int(sum(float(count) for count in CALLS.findall(text)))
                if done >= len(looks) * calls / LOOKS:
                    series = sum(not line.startswith("#") for line in text.splitlines())
                    memory, batches = daemon.resident_bytes() / MIB, server.batches()
                    looks.append(Look(done, memory, daemon.open_files(), series, daemon.threads(), batches))
            elapsed = time.perf_counter() - began
            daemon.stop()
        left = server.batches()
    return [table(looks, text, elapsed, left)]


def config(address: str, port: int) -> dict[str, Any]:
    return {
        "targets": [
            {"name": f"target-{number}", "address": one} for number, one in enumerate(addresses(address, TARGETS))
        ],
        "workloads": [
            {
                "name": "soak",
                "sequence_length": 16,
                "decode_length": DECODE_LENGTH,
                "batch_sizes": [1, 2, 4],
                "interval": "0s",
            }
        ],
        "max_duty_cycle": 1,
        "log_level": "error",
        "web": {"listen_address": f"127.0.0.1:{port}"},
    }


def table(looks: list[Look], text: str, elapsed: float, left: int) -> Table:
    fifths = [looks[len(looks) * part // 5 : len(looks) * (part + 1) // 5] or looks for part in range(5)]
    rows = tuple(
        (name, *(f"{median([getattr(look, key) for look in fifth]):{form}}" for fifth in fifths))
        for name, key, form in (
            ("calls", "calls", ",.0f"),
            ("resident memory, MiB", "memory", ".2f"),
            ("open file descriptors", "files", ".0f"),
            ("threads", "threads", ".0f"),
            ("series", "series", ",.0f"),
            ("batches in the server (one per target is in flight)", "batches", ".0f"),
        )
    )
    outcomes: dict[str, int] = {}
    for outcome, count in ATTEMPTS.findall(text):
        if float(count):
            outcomes[outcome] = outcomes.get(outcome, 0) + int(float(count))
    ends = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
    done = looks[-1].calls
    slopes = [growth(looks[len(looks) * at // 5 :]) for at in (1, 3)]
    notes = (
        f"{done:,} calls in {elapsed:.0f} s ({done / elapsed:.0f} a second): {TARGETS} targets back to back against a "
        f"server without service time, a packed and a plain scrape each second. Attempts by outcome: {ends}. "
        f"Each column is the median of a fifth of {len(looks)} looks. Memory grew by {slopes[0]:+.0f} KiB per million "
        f"calls from the second fifth on, by {slopes[1]:+.0f} in the last two (least squares). After the stop the "
        f"server held {left} batches.",
    )
    return Table("Soak", ("", *(f"fifth {number}" for number in range(1, 6))), rows, notes)


def growth(looks: list[Look]) -> float:
    """KiB of resident memory per million calls."""
    if len({look.calls for look in looks}) < 2:
        return 0.0
    fit = statistics.linear_regression([look.calls for look in looks], [look.memory for look in looks])
    return fit.slope * 1e6 * 1024


PART = Part("soak", "Soak", run)
