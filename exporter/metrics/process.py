"""What every Prometheus exporter says of its own process, under the names that all client libraries give it.

Linux only: elsewhere the families that are read from /proc stay empty.

prometheus_client has these too, but importing it costs a sidecar 3 MiB, a twentieth of all that it may take.
"""

import gc
import os
import resource
from contextlib import suppress
from pathlib import Path

from exporter.metrics.instruments import Family, Registry, Value

PROC = Path("/proc")
PAGE_BYTES = resource.getpagesize()
TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """Families in `registry` that are read anew for each page."""

    def __init__(self, registry: Registry, proc: Path = PROC) -> None:
        self._proc = proc
        self._virtual = registry.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.")
        self._resident = registry.gauge("process_resident_memory_bytes", "Resident memory size in bytes.")
        self._start = registry.gauge(
            "process_start_time_seconds", "Start time of the process since unix epoch in seconds."
        )
        self._cpu = registry.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
        self._files = registry.gauge("process_open_fds", "Number of open file descriptors.")
        self._most_files = registry.gauge("process_max_fds", "Maximum number of open file descriptors.")
        self._collector = [
            registry.counter(f"python_gc_{name}_total", text, ("generation",))
            for name, text in (
                ("objects_collected", "Objects collected during gc"),
                ("objects_uncollectable", "Uncollectable objects found during GC"),
                ("collections", "Number of times this generation was collected"),
            )
        ]
        self._booted = self._boot_time()
        registry.before_page(self._read)

    def _boot_time(self) -> float | None:
        try:
            lines = (self._proc / "stat").read_text().splitlines()
        except OSError:
            return None
        return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), None)

    def _read(self) -> None:
        if self._booted is not None:
            # In a /proc that another user owns, what cannot be read keeps its last value.
            with suppress(OSError):
                self._read_proc(self._booted)
        for generation, counts in enumerate(gc.get_stats()):
            for family, key in zip(self._collector, ("collected", "uncollectable", "collections"), strict=True):
                family.labels(str(generation)).set(counts[key])

    def _read_proc(self, booted: float) -> None:
        # After the name in brackets, which may hold anything: state, parent, … as `man 5 proc` numbers them from 3 on.
        words = (self._proc / "self/stat").read_text().rsplit(")", 1)[1].split()
        _set(self._virtual, float(words[20]))
        _set(self._resident, float(words[21]) * PAGE_BYTES)
        _set(self._start, booted + float(words[19]) / TICKS)
        _set(self._cpu, (float(words[11]) + float(words[12])) / TICKS)
        _set(self._files, len(os.listdir(self._proc / "self/fd")))
        _set(self._most_files, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _set(family: Family[Value], value: float) -> None:
    family.labels().set(value)
