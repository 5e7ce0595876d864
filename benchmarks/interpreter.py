"""What the interpreter's lock, its garbage collector and gRPC's threads add to a call, by setting.

One thread measures as probes do. Another writes pages over and over, every line anew, which is worse than any scrape.
`sys.setswitchinterval` says how long the second may keep the lock; when it pauses (`exporter.metrics.pauses`), the
first finds a processor free.
"""

import gc
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from benchmarks.bare import Bare, BareClient
from benchmarks.pages import filled
from benchmarks.processes import Server, socket_address
from benchmarks.report import Part, Table, median, milliseconds, quantile
from exporter.daemon.app import SWITCH_SECONDS
from exporter.metrics import pages
from exporter.metrics.collector import Registry
from exporter.metrics.formats import PLAIN_0_0_4
from exporter.metrics.pauses import Pauses
from exporter.wire.grpc_env import ENV_DEFAULTS

SERVICE_SECONDS = 0.002
ROUNDS = 8
TARGETS = 16
POLLING_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Condition:
    """Beside a call runs nothing (`interval` None), or a thread that writes pages; `interval` is in seconds."""

    name: str
    interval: float | None = None
    pauses: bool = False
    remark: str = ""


CONDITIONS = (
    Condition("no other thread"),
    Condition("5 ms", 0.005, remark="Python's default"),
    Condition("0.5 ms", 0.0005),
    Condition("0.1 ms", 0.0001),
    Condition("0.02 ms", 0.00002),
    Condition("0.1 ms, with pauses", SWITCH_SECONDS, pauses=True, remark="chosen"),
)


class TurnOver(Exception):
    """The turn ended while a page was being written."""


class Renderer:
    """A thread that, while `busy`, writes a page over and over, every line anew."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._busy = threading.Event()
        self._idle = threading.Event()
        self._pause: pages.Pause = pages.no_pause
        self.groups = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._idle.set()
            self._busy.wait()
            self._idle.clear()
            with suppress(TurnOver):
                while True:
                    for _ in pages.gzip_page(self._registry, PLAIN_0_0_4, self._between_groups):
                        pass

    def _between_groups(self) -> None:
        if not self._busy.is_set():
            raise TurnOver
        self.groups += 1
        self._pause()

    @contextmanager
    def busy(self, pauses: bool) -> Iterator[None]:
        """Returns when the thread has stopped, so that the next turn is not measured beside it."""
        self._pause = Pauses() if pauses else pages.no_pause
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()
            self._idle.wait()


def run(seconds: float) -> list[Table]:
    return [beside(seconds * 0.6), collections(), polling(seconds * 0.2)]


def beside(seconds: float) -> Table:
    renderer = Renderer(filled(TARGETS, random.Random(1))[0].registry)
    added: dict[Condition, list[float]] = {condition: [] for condition in CONDITIONS}
    rates: dict[Condition, list[float]] = {condition: [] for condition in CONDITIONS}
    before = sys.getswitchinterval()
    turn = seconds / ROUNDS / len(CONDITIONS)
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), SERVICE_SECONDS) as server:
        bare = Bare(server.address)
        bare.prefill()
        for _ in range(ROUNDS):
            for condition in CONDITIONS:
                if condition.interval is None:
                    _measure(bare, added[condition], turn)
                    continue
                sys.setswitchinterval(condition.interval)
                with renderer.busy(condition.pauses):
                    began, made = time.perf_counter(), renderer.groups
                    _measure(bare, added[condition], turn)
                    rates[condition].append((renderer.groups - made) / (time.perf_counter() - began))
                sys.setswitchinterval(before)
        bare.close()
    rows = tuple(
        (
            condition.name,
            *(milliseconds(quantile(added[condition], q)) for q in (0.5, 0.9, 0.99)),
            f"{median(rates[condition]):,.0f}" if rates[condition] else "",
            condition.remark,
        )
        for condition in CONDITIONS
    )
    notes = (
        f"Added delay of the bare client's Decode while another thread writes pages of {TARGETS} targets, every line "
        f"anew, by the interpreter's switch interval; in turns, {ROUNDS} rounds.",
    )
    columns = ("switch interval", "added p50", "p90", "p99", "histograms a second", "")
    return Table("A measuring thread beside one that renders", columns, rows, notes)


def polling(seconds: float) -> Table:
    """Bare clients in turns: one with gRPC's defaults, one with our settings."""
    settings = (("a pool of threads", ""), ("the calling thread", ENV_DEFAULTS["GRPC_EXPERIMENTS"]))
    added: dict[str, list[float]] = {words: [] for _, words in settings}
    cpu = dict.fromkeys(added, 0.0)
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), SERVICE_SECONDS) as server:
        for _ in range(POLLING_ROUNDS):
            for _, words in settings:
                with BareClient(server.address, 0, {"GRPC_EXPERIMENTS": words}) as bare:
                    time.sleep(0.5)  # first connections
                    bare.calls()
                    before = bare.cpu_seconds()
                    time.sleep(seconds / POLLING_ROUNDS / len(settings))
                    cpu[words] += bare.cpu_seconds() - before
                    added[words] += [call.added for call in bare.calls()]
    rows = tuple(
        (
            name,
            f"`{words}`" if words else "",
            *(milliseconds(quantile(added[words], q)) for q in (0.5, 0.9, 0.99)),
            milliseconds(cpu[words] / len(added[words])),
        )
        for name, words in settings
    )
    notes = (
        f"The bare client in a process of its own, one Decode after the other, {POLLING_ROUNDS} turns for each "
        "setting; CPU time is the process's.",
    )
    columns = ("who polls", "GRPC_EXPERIMENTS", "added p50", "p90", "p99", "CPU per call")
    return Table("Who waits for gRPC's answer", columns, rows, notes)


def _measure(bare: Bare, added: list[float], seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        added.append(bare.decode().added)


def collections() -> Table:
    """How long one full garbage collection stops every thread."""
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
        "One full collection with the instruments of that many targets, before and after the daemon's `gc.freeze`.",
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
    "a switch interval of 0.1 ms, and pauses of 0.1 ms whenever a page has taken 0.3 ms: without them a call that "
    "wakes up while all processors are busy waits for the end of a slice of the kernel's scheduler; `gc.freeze` after "
    "start and reload, and no reference cycles in the instruments, so that those of a removed target are freed without "
    "the collector; gRPC polls in the thread that calls.",
)
