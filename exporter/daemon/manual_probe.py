"""Probes that people ask for, at /probe. A target's runner makes them between the others, in its own thread."""

import queue
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from exporter.observation import Observation, Series

STOPPING = "the daemon stops"


@dataclass(frozen=True, slots=True)
class ManualProbe:
    """The answer is what the probe has shown, or why there is none."""

    series: Series
    answer: "Future[Observation | str]"


class ManualProbes:
    """Those of one target. `wake` is set when there is a new one."""

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._waiting: queue.SimpleQueue[ManualProbe] = queue.SimpleQueue()
        self._closed = False

    def request(self, series: Series) -> "Future[Observation | str]":
        """From any thread. If the future is cancelled before the probe begins, the probe is not made."""
        probe = ManualProbe(series, Future())
        self._waiting.put(probe)
        self._wake.set()
        if self._closed:
            self.close()
        return probe.answer

    def take(self) -> ManualProbe | None:
        """The next one that somebody still waits for."""
        while not self._waiting.empty():  # asked before every probe, so without an exception
            with suppress(queue.Empty):
                probe = self._waiting.get_nowait()
                if probe.answer.set_running_or_notify_cancel():
                    return probe
        return None

    def close(self) -> None:
        """From any thread: refuse those that wait, and all that come later."""
        self._closed = True
        while (probe := self.take()) is not None:
            probe.answer.set_result(STOPPING)
