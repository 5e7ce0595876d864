"""What goes to the log: one line per event, to standard error. What repeats is told once, then summed up."""

import json
import logging
import sys
import time
from collections.abc import Callable

from exporter.observation import Observation, Outcome

logger = logging.getLogger("tgi_probe")
QUIET_SECONDS = 60.0


def set_up(level: str, log_format: str = "text") -> None:
    """Lines of `time level message` on standard error, or JSON objects that hold the facts of the event too."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = Json() if log_format == "json" else Text()
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class Text(logging.Formatter):
    """Whatever a server or a client managed to put into a message, it stays one line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class Json(logging.Formatter):
    """Keys: time (UTC, milliseconds), level, message, then what the event knows (target, outcome, trace_id …)."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


class Journal:
    """Remembers what was said of each target and of each kind of trouble, so that the same is not said each time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[str, float, int]] = {}

    def attempt(self, observation: Observation) -> None:
        series = observation.series
        name = f"{series.target} {series.workload} batch_size={series.batch_size}"
        facts = {
            "target": series.target,
            "workload": series.workload,
            "batch_size": series.batch_size,
            "outcome": str(observation.outcome),
            "code": observation.code,
            "trace_id": observation.trace_id,
            "seconds": round(observation.ended - observation.started, 6),
        }
        if observation.outcome is Outcome.OK:
            self._recovered(series.target)
            logger.debug("probe ok: %s", name, extra={"facts": facts})
        else:
            trouble = f"{observation.outcome} {observation.code}"
            line = f"probe failed: {name}: {observation.outcome}: {observation.detail}"
            self._trouble(series.target, trouble, line, facts)

    def warn(self, kind: str, line: str) -> None:
        """A warning of which many may come: of each kind, one line a minute."""
        self._trouble(f"kind {kind}", kind, line, {"kind": kind})

    def _trouble(self, subject: str, trouble: str, line: str, facts: dict[str, object]) -> None:
        now = self._clock()
        before, since, unsaid = self._said.get(subject, ("", 0.0, 0))
        if before == trouble and now - since < QUIET_SECONDS:
            self._said[subject] = (before, since, unsaid + 1)
            return
        more = f" ({unsaid} more like the last line)" if unsaid else ""
        self._said[subject] = (trouble, now, 0)
        logger.warning("%s%s", line, more, extra={"facts": facts | ({"repeated": unsaid} if unsaid else {})})

    def _recovered(self, target: str) -> None:
        before = self._said.pop(target, None)
        if before is not None:
            more = f" after {before[2]} more like the last line" if before[2] else ""
            logger.info("probes of %s succeed again%s", target, more, extra={"facts": {"target": target}})

    def forget(self, target: str) -> None:
        self._said.pop(target, None)
