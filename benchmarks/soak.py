"""Point 5: a million calls, back to back, against a server that answers at once: what grows?"""

import tempfile
import time
from typing import Any

from benchmarks.processes import MIB, Server, Subject, scrape, socket_address
from benchmarks.report import Part, Table, median

TARGETS = 4
DECODE_LENGTH = 64
SAMPLES = 40
LONGEST_SECONDS = 3600.0


def run(seconds: float, calls: int = 20_000) -> list[Table]:
    """Until `calls` were made, `seconds` at the longest."""
    samples: list[tuple[float, int, float, int, int, int]] = []
    outcomes: dict[str, int] = {}
    done = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(socket_address(folder), 0.0) as server,
        Subject(config(server.address)) as subject,
    ):
        began = time.perf_counter()
        due = 0
        while done < calls and time.perf_counter() - began < seconds:
            time.sleep(0.5)
            for observation in subject.observations():
                done += len(observation["steps"])
                outcomes[observation["outcome"]] = outcomes.get(observation["outcome"], 0) + 1
            if done >= due:
                due += calls // SAMPLES
                lines = scrape(subject.port, packed=False)[1]
                samples.append(
                    (
                        time.perf_counter() - began,
                        done,
                        subject.resident_bytes() / MIB,
                        subject.open_files(),
                        lines,
                        server.batches(),
                    )
                )
        elapsed = time.perf_counter() - began
    return [table(samples, outcomes, done, elapsed)]


def config(address: str) -> dict[str, Any]:
    return {
        "targets": [{"name": f"target-{number}", "address": address} for number in range(TARGETS)],
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
        "web": {"listen_address": "127.0.0.1:0"},
    }


def table(
    samples: list[tuple[float, int, float, int, int, int]], outcomes: dict[str, int], done: int, elapsed: float
) -> Table:
    # The first fifth fills caches and pools; what grows after it would grow for ever.
    settled = samples[len(samples) // 5 :]
    thirds = settled[: max(1, len(settled) // 3)], settled[-max(1, len(settled) // 3) :]
    slope = (median([s[2] for s in thirds[1]]) - median([s[2] for s in thirds[0]])) / max(
        1, median([s[1] for s in thirds[1]]) - median([s[1] for s in thirds[0]])
    )
    rows = tuple(
        (name, *(f"{row[at]:{form}}" for row in (settled[0], settled[len(settled) // 2], settled[-1])))
        for name, at, form in (
            ("calls", 1, ",d"),
            ("resident memory, MiB", 2, ".1f"),
            ("open file descriptors", 3, "d"),
            ("page, bytes", 4, ",d"),
            ("batches in the server (one per target is in flight)", 5, "d"),
        )
    )
    ends = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
    notes = (
        f"{done:,} calls in {elapsed:.0f} s ({done / elapsed:.0f} a second): {TARGETS} targets back to back against a "
        f"server without service time. Attempts by outcome: {ends}. Memory "
        f"grew by {slope * 1e6 * 1024:.0f} KiB per million calls from the second fifth on.",
    )
    return Table("Soak", ("", "after a fifth", "in the middle", "at the end"), rows, notes)


PART = Part("soak", "Soak", run)
