"""What goes to the log: one line per event, to standard error. A failure that repeats is told once, then summed up."""

import logging
import sys
import time
from collections.abc import Callable

from exporter.observation import Observation, Outcome

logger = logging.getLogger("tgi_probe")
QUIET_SECONDS = 60.0


def set_up(level: str) -> None:
    """Lines of `time level message` on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


class Journal:
    """Remembers what was said of each target, so that the same trouble is not said each time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[str, float, int]] = {}

    def attempt(self, observation: Observation) -> None:
        series = observation.series
        name = f"{series.target} {series.workload} batch_size={series.batch_size}"
        if observation.outcome is Outcome.OK:
            self._recovered(series.target)
            logger.debug("probe ok: %s", name)
        else:
            trouble = f"{observation.outcome} {observation.code}"
            self._trouble(series.target, trouble, f"probe failed: {name}: {observation.outcome}: {observation.detail}")

    def _trouble(self, target: str, trouble: str, line: str) -> None:
        now = self._clock()
        before, since, unsaid = self._said.get(target, ("", 0.0, 0))
        if before == trouble and now - since < QUIET_SECONDS:
            self._said[target] = (before, since, unsaid + 1)
            return
        more = f" ({unsaid} more like the last line)" if unsaid else ""
        self._said[target] = (trouble, now, 0)
        logger.warning("%s%s", line, more)

    def _recovered(self, target: str) -> None:
        before = self._said.pop(target, None)
        if before is not None:
            more = f" after {before[2]} more like the last line" if before[2] else ""
            logger.info("probes of %s succeed again%s", target, more)

    def forget(self, target: str) -> None:
        self._said.pop(target, None)
