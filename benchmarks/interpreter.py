"""Where the tail comes from, and what was done about it: the interpreter's lock and its garbage collector.

One thread measures as probes do, another renders pages without a pause, which is worse than any scrape: what the thread
that measures then waits for is the lock. `sys.setswitchinterval` says how long the other may keep it.
"""

import gc
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.bare import Bare
from benchmarks.pages import filled
from benchmarks.processes import Server, socket_address
from benchmarks.report import Part, Table, median, milliseconds, quantile
from exporter import rendering
from exporter.app import SWITCH_SECONDS
from exporter.instruments import Registry

SERVICE_SECONDS = 0.002
ALONE = 0.0
INTERVALS = (ALONE, 0.005, 0.0005, 0.0001, 0.00002)
ROUNDS = 8
TARGETS = 16


class Renderer:
    """A thread that writes a page over and over while it may."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._busy = threading.Event()
        self.pages = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self._busy.wait():
            for _ in rendering.page(self._registry, rendering.PLAIN_0_0_4):
                pass
            self.pages += 1

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()


def run(seconds: float) -> list[Table]:
    return [switches(seconds * 0.8), collections()]


def switches(seconds: float) -> Table:
    renderer = Renderer(filled(TARGETS, random.Random(1))[0].registry)
    added: dict[float, list[float]] = {interval: [] for interval in INTERVALS}
    pages: dict[float, list[float]] = {interval: [] for interval in INTERVALS}
    before = sys.getswitchinterval()
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), SERVICE_SECONDS) as server:
        bare = Bare(server.address)
        bare.prefill()
        for _ in range(ROUNDS):
            for interval in INTERVALS:
                sys.setswitchinterval(interval or before)
                if interval == ALONE:
                    _measure(bare, added[interval], seconds / ROUNDS / len(INTERVALS))
                    continue
                with renderer.busy():
                    began, made = time.perf_counter(), renderer.pages
                    _measure(bare, added[interval], seconds / ROUNDS / len(INTERVALS))
                    pages[interval].append((renderer.pages - made) / (time.perf_counter() - began))
        bare.close()
    sys.setswitchinterval(before)
    rows = tuple(
        (
            "no other thread" if interval == ALONE else f"{interval * 1e3:g} ms",
            *(milliseconds(quantile(added[interval], q)) for q in (0.5, 0.9, 0.99)),
            f"{median(pages[interval]):.1f}" if pages[interval] else "",
            {SWITCH_SECONDS: "chosen", 0.005: "Python's default"}.get(interval, ""),
        )
        for interval in INTERVALS
    )
    notes = (
        f"Added delay of the bare client's Decode while another thread renders pages of {TARGETS} targets without a "
        f"pause, by the interpreter's switch interval; in turns, {ROUNDS} rounds.",
    )
    columns = ("switch interval", "added p50", "p90", "p99", "pages a second", "")
    return Table("A measuring thread beside one that renders", columns, rows, notes)


def _measure(bare: Bare, added: list[float], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        added.append(bare.decode().added)


def collections() -> Table:
    """How long one full garbage collection holds every thread up."""
    rows = []
    for targets in (1, 16, 64, 256):
        metrics, _ = filled(targets, random.Random(1))
        plain = _collection()
        gc.freeze()
        frozen = _collection()
        gc.unfreeze()
        rows.append((str(targets), milliseconds(plain, 1), milliseconds(frozen, 1)))
        del metrics
    notes = (
        "One full collection with the instruments of so many targets, and after `gc.freeze`, as the daemon does it.",
    )
    return Table("A garbage collection", ("targets", "as it is", "after the freeze"), tuple(rows), notes)


def _collection() -> float:
    gc.collect()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        gc.collect()
        times.append(time.perf_counter() - began)
    return median(times)


PART = Part(
    "interpreter",
    "The interpreter's part in the tail",
    run,
    "a switch interval of 0.1 ms; `gc.freeze` after start and reload, and no circles of references in the instruments, "
    "so that what leaves is freed without the collector.",
)
