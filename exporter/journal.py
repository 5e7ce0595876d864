"""What goes to the log: one line per event, to standard error. What repeats is told once, then summed up."""

import json
import logging
import sys
import time
from collections.abc import Callable

from exporter.observation import Observation, Outcome, Series

logger = logging.getLogger("tgi_probe")
QUIET_SECONDS = 60.0
RECOVERED = "recovered"


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
        # By subject and trouble: when it was said, and how often it was not since.
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        self._failing: dict[str, set[Series]] = {}

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
            self._recovered(series)
            logger.debug("probe ok: %s", name, extra={"facts": facts})
        else:
            trouble = f"{observation.outcome} {observation.code}"
            line = f"probe failed: {name}: {observation.outcome}: {observation.detail}"
            self._failing.setdefault(series.target, set()).add(series)
            self._trouble(series.target, trouble, line, facts)

    def warn(self, kind: str, line: str) -> None:
        """A warning of which many may come: of each kind, one line a minute."""
        self._trouble(f"kind {kind}", kind, line, {"kind": kind})

    def _trouble(self, subject: str, trouble: str, line: str, facts: dict[str, object]) -> None:
        since, unsaid = self._said.get((subject, trouble), (float("-inf"), 0))
        if self._clock() - since < QUIET_SECONDS:
            self._said[subject, trouble] = (since, unsaid + 1)
            return
        more = f" ({unsaid} more like it since the last such line)" if unsaid else ""
        self._said[subject, trouble] = (self._clock(), 0)
        logger.warning("%s%s", line, more, extra={"facts": facts | ({"repeated": unsaid} if unsaid else {})})

    def _recovered(self, series: Series) -> None:
        """Said when the last failing series of a target succeeds, and no more often than a trouble: later, then, with
        one of its next successes, so that the log never ends with a trouble that is over.
        """
        failing = self._failing.get(series.target)
        if failing is None:
            return
        failing.discard(series)
        since, _ = self._said.get((series.target, RECOVERED), (float("-inf"), 0))
        if not failing and self._clock() - since >= QUIET_SECONDS:
            del self._failing[series.target]
            self._said[series.target, RECOVERED] = (self._clock(), 0)
            logger.info("probes of %s succeed again", series.target, extra={"facts": {"target": series.target}})

    def forget(self, target: str) -> None:
        self._failing.pop(target, None)
        for subject, trouble in list(self._said):
            if subject == target:
                del self._said[subject, trouble]
