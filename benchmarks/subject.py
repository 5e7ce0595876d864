"""The daemon as `tgi-probe run` starts it, in a process that also returns its observations.

`python -m benchmarks.subject CONFIG` prints its port, then answers each line on standard input with the observations
since the last one, as JSON. Its instants are of the machine's one monotonic clock, so other processes can compare them.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from exporter.analysis import certainty
from exporter.analysis.timeline import counted_from
from exporter.config.sources import load
from exporter.daemon import app, journal
from exporter.observation import Observation, Stream


class RecordingDaemon(app.Daemon):
    """Keeps every observation."""

    def __init__(self, config: Path) -> None:
        super().__init__(lambda: load(config), on_ready=lambda port: print(port, flush=True))
        self.heard: list[Observation] = []
        record = self.recorder.record

        def hear(observation: Observation) -> None:
            record(observation)
            self.heard.append(observation)

        self.recorder.record = hear  # type: ignore[method-assign]


def facts(observation: Observation) -> dict[str, Any]:
    return {
        "batch_size": observation.series.batch_size,
        "due": observation.due,
        "started": observation.started,
        "ended": observation.ended,
        "outcome": observation.outcome,
        "steps": [
            (step.asked, step.arrived, step.server.total if step.server else None)
            for stream in observation.streams
            for step in stream.steps
        ],
        "workload": observation.series.workload,
        "detail": observation.detail,
        "streams": [stream_facts(stream) for stream in observation.streams],
    }


def stream_facts(stream: Stream) -> dict[str, Any]:
    """Each value with whether it is certain; the gaps with their steps' tokens, those of the first step before them."""
    first = certainty.time_to_first_token(stream)
    return {
        "sent": stream.sent,
        "ttft": None if first is None else (first.seconds - (stream.sent - counted_from(stream)), first.certain),
        "gaps": [(value.seconds, value.certain) for value in certainty.inter_token_latencies(stream)],
        "tokens": [step.tokens for step in stream.steps if step.tokens],
    }


def answer(daemon: RecordingDaemon) -> None:
    """Until standard input ends, and then the daemon."""
    for _ in sys.stdin:
        heard, daemon.heard = daemon.heard, []
        print(json.dumps([facts(observation) for observation in heard]), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    journal.set_up("error")
    app.tune_interpreter()
    daemon = RecordingDaemon(Path(sys.argv[1]))
    threading.Thread(target=answer, args=(daemon,), daemon=True).start()
    return daemon.run()


if __name__ == "__main__":
    sys.exit(main())
