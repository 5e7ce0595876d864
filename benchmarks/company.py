"""How true the reported numbers are while 64 targets are probed, and what scrapes and reloads change."""

import tempfile
import threading
import time
from typing import Any

from benchmarks import truth
from benchmarks.bare import BareClient
from benchmarks.processes import Server, Subject, addresses, reload, scrape, socket_address
from benchmarks.report import Part, Ratio, Table, median, milliseconds, quantile

SERVICE_SECONDS = 0.005
TARGETS = 64
INTERVAL_SECONDS = 30
PHASES = 8
SCRAPES_PER_SECOND = 10
BARE_SECONDS = 0.055
ALONE, SCRAPED = "no scrapes", "scrapes, reloads"
# How much more than the bare client's, a median and a 99th percentile of ours may grow by scrapes and reloads.
GROWTH_LIMITS = (1.25, 2.0)


def run(seconds: float) -> list[Table]:
    span = (seconds - 6) / PHASES
    phases: list[truth.Phase] = []
    scrapes: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(socket_address(folder), SERVICE_SECONDS) as server,
        BareClient(server.address, BARE_SECONDS) as bare,
        Subject(config(server.address, TARGETS)) as subject,
    ):
        time.sleep(5)  # starts and first connections
        for number in range(PHASES):
            name = (ALONE, SCRAPED)[number % 2]
            began = time.perf_counter()
            if name == SCRAPED:
                disturb(subject.port, began + span, scrapes)
            else:
                time.sleep(span)
            phases.append(truth.Phase(name, began, time.perf_counter()))
        observations = subject.observations()
        calls = bare.calls()
        held = server.batches()
    errors = truth.by_phase(observations, calls, phases)
    return [table(errors, held), growth(errors[ALONE], errors[SCRAPED], scrapes)]


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


def table(errors: dict[str, truth.Errors], held: int) -> Table:
    notes = (
        f"Reported minus the server's own record, while {TARGETS} targets are probed in one daemon, each every "
        f"{INTERVAL_SECONDS / 6:g} s with one of 6 batch sizes, 16 tokens of {SERVICE_SECONDS * 1e3:g} ms. "
        f"{PHASES // 2} phases without and with {SCRAPES_PER_SECOND} scrapes a second and a reload take turns. Bare: a "
        f"client in a process of its own that makes one Decode of one request each {BARE_SECONDS * 1e3:g} ms, and its "
        f"lateness. {held} batches were left in the server while probes were in flight.",
    )
    return Table(f"Truth under company: {TARGETS} targets", truth.COLUMNS, truth.rows(errors), notes)


def growth(alone: truth.Errors, scraped: truth.Errors, scrapes: list[float]) -> Table:
    """Each quantile with scrapes divided by the one without, ours beside the bare client's."""
    rows = []
    for measure in truth.MEASURES:
        cells: list[str] = []
        for q, limit in zip((0.5, 0.99), GROWTH_LIMITS, strict=True):
            ours, bare = (quantile(of(scraped), q) / quantile(of(alone), q) for of in (measure.ours, measure.bare))
            cells += [f"{ours:.2f} times", f"{bare:.2f} times", str(Ratio(ours, bare, limit))]
        rows.append((measure.name, *cells))
    notes = (
        f"The same run: with scrapes and reloads divided by without. {len(scrapes)} scrapes took "
        f"{milliseconds(median(scrapes))} (p50) and {milliseconds(quantile(scrapes, 0.99))} (p99) until the page was "
        "in.",
    )
    columns = ("", "p50 grows", "bare p50 grows", "ratio p50", "p99 grows", "bare p99 grows", "ratio p99")
    return Table("What scrapes and reloads change", columns, tuple(rows), notes)


PART = Part(
    "company",
    "Truth under company",
    run,
    "probes and pages stay in one process. The thread that writes a page pauses, and so leaves the processor and the "
    "interpreter's lock to the threads that measure. Before those pauses the bare client, which shares no interpreter "
    "with us, was slowed by scrapes nearly as much: the processor was the cause, and a process of its own for pages "
    "(22 MiB) would not have helped.",
)
