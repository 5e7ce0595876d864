"""Point 2: how true the reported numbers are while 64 targets are probed, and what scrapes and reloads change."""

import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.processes import Process, Server, Subject, addresses, reload, scrape, socket_address
from benchmarks.report import Part, Reach, Table, median, milliseconds, quantile

SERVICE_SECONDS = 0.005
TARGETS = 64
INTERVAL_SECONDS = 30
PHASES = 8
SCRAPES_PER_SECOND = 10


@dataclass(slots=True)
class Errors:
    """Reported minus the server's own record, in seconds, of first tokens, of later ones, and of the bare client."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)


def run(seconds: float) -> list[Table]:
    phase = (seconds - 6) / PHASES
    spans: list[tuple[float, float, bool]] = []
    scrapes: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(socket_address(folder), SERVICE_SECONDS) as server,
        Process(["-m", "benchmarks.bare", server.address, "0.05"]) as bare,
        Subject(config(server.address, TARGETS)) as subject,
    ):
        bare.read()
        time.sleep(5)  # starts and first connections
        for number in range(PHASES):
            began = time.perf_counter()
            disturbed = number % 2 == 1
            if disturbed:
                disturb(subject.port, began + phase, scrapes)
            else:
                time.sleep(phase)
            spans.append((began, time.perf_counter(), disturbed))
        observations = subject.observations()
        calls = json.loads(bare.ask("calls"))
        held = server.batches()
    alone, company = sorted_out(observations, calls, spans)
    return [truth(alone, company, held), changed(alone, company, scrapes)]


def config(address: str, targets: int) -> dict[str, Any]:
    return {
        "targets": [
            {"name": f"target-{number:03}", "address": one} for number, one in enumerate(addresses(address, targets))
        ],
        "workloads": [
            {
                "name": "chat",
                "sequence_length": 128,
                "decode_length": 16,
                "interval": f"{INTERVAL_SECONDS}s",
                "warmups": 0,
            }
        ],
        "slos": [{"name": "fast", "workload": "chat", "ttft": "200ms"}],
        "log_level": "error",
        "web": {"listen_address": "127.0.0.1:0", "enable_reload": True},
    }


def disturb(port: int, until: float, scrapes: list[float]) -> None:
    """Scrapes at a steady rate, compressed as Prometheus asks for them, and one reload in the middle."""
    middle = threading.Timer((until - time.perf_counter()) / 2, reload, (port,))
    middle.start()
    due = time.perf_counter()
    while due < until:
        time.sleep(max(0.0, due - time.perf_counter()))
        scrapes.append(scrape(port)[0])
        due = max(due + 1 / SCRAPES_PER_SECOND, time.perf_counter())
    middle.join()


def sorted_out(
    observations: list[dict[str, Any]], calls: list[tuple[float, float, float]], spans: list[tuple[float, float, bool]]
) -> tuple[Errors, Errors]:
    """By phase: what happened alone, and what under company. What lies across a border belongs to neither."""
    alone, company = Errors(), Errors()

    def of(began: float, ended: float) -> Errors | None:
        for start, end, disturbed in spans:
            if start <= began and ended < end:
                return company if disturbed else alone
        return None

    for observation in observations:
        errors = of(observation["started"], observation["ended"])
        if errors is None or observation["outcome"] != "ok":
            continue
        errors.late.append(observation["started"] - observation["due"])
        first, *later = [arrived - asked - total for asked, arrived, total in observation["steps"]]
        errors.first.append(first)
        errors.later.extend(later)
    for asked, arrived, server in calls:
        if (errors := of(asked, arrived)) is not None:
            errors.bare.append(arrived - asked - server)
    return alone, company


KINDS: tuple[tuple[str, Callable[[Errors], list[float]]], ...] = (
    ("time to first token", lambda errors: errors.first),
    ("inter-token latency", lambda errors: errors.later),
    ("bare client in its own process", lambda errors: errors.bare),
    ("lateness of starts", lambda errors: errors.late),
)


def truth(alone: Errors, company: Errors, held: int) -> Table:
    limit_median, limit_tail = 0.5 + 0.01 * SERVICE_SECONDS * 1e3, 3 + 0.02 * SERVICE_SECONDS * 1e3
    rows = []
    for name, of in KINDS[:3]:
        for condition, errors in (("no scrapes", alone), ("scrapes, reloads", company)):
            values = of(errors)
            middle, tail = median(values), quantile(values, 0.99)
            rows.append(
                (
                    name,
                    condition,
                    str(len(values)),
                    milliseconds(middle),
                    str(Reach(middle * 1e3, limit_median, " ms")),
                    milliseconds(quantile(values, 0.9)),
                    milliseconds(tail),
                    str(Reach(tail * 1e3, limit_tail, " ms")),
                    milliseconds(max(values)),
                )
            )
    notes = (
        f"Reported minus the server's own record, while {TARGETS} targets are probed in one daemon, each every "
        f"{INTERVAL_SECONDS / 6:g} s with one of 6 batch sizes, 16 tokens of {SERVICE_SECONDS * 1e3:g} ms. "
        f"{PHASES // 2} phases without and with {SCRAPES_PER_SECOND} scrapes a second and a reload take turns. The "
        "bare client makes one Decode of one request each 55 ms in a process of its own: what it sees beside us is the "
        f"machine. {held} batches were left in the server while probes were in flight.",
    )
    columns = ("", "while", "values", "error p50", "reach", "p90", "p99", "reach", "highest")
    return Table(f"Truth under company: {TARGETS} targets", columns, tuple(rows), notes)


def changed(alone: Errors, company: Errors, scrapes: list[float]) -> Table:
    rows = []
    for name, of in KINDS:
        shifts = [quantile(of(company), q) - quantile(of(alone), q) for q in (0.5, 0.99)]
        limits = (0.2, 1.0)
        reaches = ["" if "bare" in name else str(Reach(s * 1e3, m, " ms")) for s, m in zip(shifts, limits, strict=True)]
        rows.append((name, milliseconds(shifts[0]), reaches[0], milliseconds(shifts[1]), reaches[1]))
    notes = (
        f"The same run: with scrapes and reloads minus without. {len(scrapes)} scrapes took "
        f"{milliseconds(median(scrapes))} (p50) and {milliseconds(quantile(scrapes, 0.99))} (p99) until the page was "
        "in.",
    )
    columns = ("", "p50 changes by", "reach", "p99 changes by", "reach")
    return Table("What scrapes and reloads change", columns, tuple(rows), notes)


PART = Part(
    "company",
    "Truth under company",
    run,
    "measuring and serving stay in one process: who makes a page pauses, and so leaves the processor and the "
    "interpreter's lock to who measures. The bare client, which shares no interpreter with us, felt scrapes nearly as "
    "much before those pauses: the tail was the processor's, and a process of its own for pages (an interpreter with "
    "cheroot: 22 MiB) would not have taken it away.",
)
