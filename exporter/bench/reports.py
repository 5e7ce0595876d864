"""Who is told how a sweep goes on: lines on standard error, or the live screen."""

import json
import os
import subprocess
import sys
from collections import deque
from importlib.util import find_spec
from typing import Any, Protocol

from exporter.bench.results import BatchSize, Run
from exporter.bench.statistics import estimate
from exporter.bench.summary import steady
from exporter.bench.sweep import SweepListener, SweepPlan
from exporter.config.notation import counted

NO_SCREEN = "for a live screen: pip install 'tgi-probe[screen]'"


class Report(SweepListener, Protocol):
    """`end` is called once, when all is over. `stopped`: why it ended early. `waits`: until the person has seen it, or
    until `close`, which a signal's handler may call.
    """

    def end(self, waits: bool, stopped: str | None) -> None: ...

    def close(self) -> None: ...


class Lines:
    """One line for each finished batch size."""

    def begun(self, batch_size: int) -> None:
        pass

    def ran(self, batch_size: int, run: Run) -> None:
        pass

    def finished(self, block: BatchSize) -> None:
        runs = steady(block)
        parts = [f"batch size {block.batch_size}: {counted(len(block.counted), 'run')}"]
        for name, key, factor, unit in (
            ("prefill", "prefill_seconds", 1e3, "ms"),
            ("decode", "token_seconds", 1e3, "ms per token"),
            ("throughput", "decode_tokens_per_second", 1.0, "tokens/s"),
        ):
            if values := [value for run in runs if (value := getattr(run, key)) is not None]:
                parts.append(f"{name} {estimate(values, 0.5).value * factor:.4g} {unit}")
        self.said(", ".join(parts))

    def said(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def end(self, waits: bool, stopped: str | None) -> None:
        pass

    def close(self) -> None:
        pass


class ScreenProcess:
    """Sends events to the live screen. If that ends early, lines take its place."""

    def __init__(self, plan: SweepPlan) -> None:
        self._lines = Lines()
        events, self._write = os.pipe()
        command = [sys.executable, "-m", "exporter.bench.screen", str(events)]
        # Exported, these would fix the size: a window that is resized has another one.
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        if environment.get("NO_COLOR") == "":  # no wish, by https://no-color.org, but one for the library
            del environment["NO_COLOR"]
        self._process = subprocess.Popen(command, pass_fds=(events,), env=environment)
        os.close(events)
        self._open, self._sending = True, False
        self._unsent: deque[bytes] = deque()
        target, workload = plan.target, plan.workload
        self._send(
            "plan",
            batch_sizes=workload.batch_sizes,
            runs=plan.runs,
            warmups=workload.warmups,
            kind=target.kind,
            title=f"{target.address} – {workload.sequence_length} tokens in, {workload.decode_length} out",
        )

    def begun(self, batch_size: int) -> None:
        self._send("begun", batch_size=batch_size)

    def ran(self, batch_size: int, run: Run) -> None:
        self._send("ran", batch_size=batch_size, run=run.model_dump())

    def finished(self, block: BatchSize) -> None:
        if not self._open:
            self._lines.finished(block)

    def said(self, line: str) -> None:
        if not self._send("said", line=line):
            self._lines.said(line)

    def end(self, waits: bool, stopped: str | None) -> None:
        if stopped is not None:
            self._send("said", line=f"ended early: {stopped}")
        if waits:
            self._send("done")
        else:
            self.close()
        self._process.wait()
        self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._write)

    def _send(self, event: str, **values: Any) -> bool:
        """Whether there is a screen. A signal's handler may send in the middle of a line: its own comes after that."""
        self._unsent.append(json.dumps({"event": event} | values).encode() + b"\n")
        if self._open and not self._sending:
            self._sending = True
            try:
                while self._unsent:
                    data = self._unsent.popleft()
                    while data:
                        data = data[os.write(self._write, data) :]
            except BrokenPipeError:
                self.close()
            finally:
                self._sending = False
        return self._open


def report_for(plan: SweepPlan, quiet: bool) -> Report:
    """The live screen on a terminal where it is installed, else lines."""
    if quiet or not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return Lines()
    if os.environ.get("TERM", "dumb") == "dumb":
        return Lines()
    if find_spec("textual") is None or find_spec("plotext") is None:
        print(NO_SCREEN, file=sys.stderr)
        return Lines()
    return ScreenProcess(plan)
