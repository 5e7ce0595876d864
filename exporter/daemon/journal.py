"""What goes to the log: one line per event, to standard error. What repeats is told once, then summed up."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from exporter.config import notation
from exporter.observation import Observation, Outcome, Series
from exporter.web.token_bucket import Bucket

logger = logging.getLogger("tgi_probe")
QUIET_SECONDS = 60.0
NEVER = float("-inf")
# Of one workload: so many lines at once, then one each so many seconds. For one that fails and recovers all the time.
MOST_LINES = 12
LINE_SECONDS = 30.0
# So many kinds of message of one outage are told apart.
MOST_KINDS = 8
OTHERS = "others"
NUMBERED = re.compile(r"\w*\d\w*")
LONGEST_KIND = 300
K = TypeVar("K")


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


@dataclass(slots=True)
class Said:
    """One kind of trouble: when its last line was, and how many like it had none since."""

    at: float = NEVER
    unsaid: int = 0


@dataclass(slots=True)
class Outage:
    """What fails of one workload at one target, since when, and what was said of it by kind of trouble."""

    since: float
    failed: int = 0
    failing: set[Series] = field(default_factory=set)
    recovered: set[Series] = field(default_factory=set)
    kinds: dict[tuple[str, ...], Said] = field(default_factory=dict)


class Journal:
    """Remembers what was said of each workload of each target and of each kind of trouble, so that the same is not said
    each time. What was not said is counted, and told with the next line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._warned: dict[str, Said] = {}
        # By target and workload.
        self._outages: dict[tuple[str, str], Outage] = {}
        self._lines: dict[tuple[str, str], Bucket] = {}

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
        elif observation.outcome is Outcome.QUARANTINED:  # the runner has said why, once
            if (outage := self._outages.get((series.target, series.workload))) is not None:
                outage.failing.discard(series)
            logger.debug("probe not sent: %s: %s", name, observation.detail, extra={"facts": facts})
        elif observation.outcome is Outcome.DISTURBED:  # by us: nothing failed, and nothing is known to work again
            line = f"probe not counted: {name}: {observation.outcome}: {observation.detail}"
            self.warn(f"disturbed {series.target} {series.workload}", line, facts)
        else:
            self._failed(observation, f"probe failed: {name}: {observation.outcome}: {observation.detail}", facts)

    def warn(self, kind: str, line: str, facts: dict[str, object] | None = None) -> None:
        """A warning of which many may come: of each kind, one line a minute."""
        if (said := self._due(self._warned, kind)) is not None:
            facts = (facts or {"kind": kind}) | _repeated(said.unsaid)
            logger.warning("%s%s", line, _more(said.unsaid, ()), extra={"facts": facts})
            said.unsaid = 0

    def _failed(self, observation: Observation, line: str, facts: dict[str, object]) -> None:
        series = observation.series
        outage = self._outages.setdefault((series.target, series.workload), Outage(self._clock()))
        outage.failed += 1
        outage.failing.add(series)
        kind: tuple[str, ...] = (str(observation.outcome), observation.code, alike(observation.detail))
        if kind not in outage.kinds and len(outage.kinds) >= MOST_KINDS:
            kind = (OTHERS,)
        if series in outage.recovered:  # it had succeeded meanwhile, so this is news
            outage.recovered.discard(series)
            outage.kinds.setdefault(kind, Said()).at = NEVER
        said = self._due(outage.kinds, kind)
        if said is None:
            return
        if not self._may_say(series):
            said.at, said.unsaid = NEVER, said.unsaid + 1
            return
        logger.warning("%s%s", line, _more(said.unsaid, kind), extra={"facts": facts | _repeated(said.unsaid)})
        said.unsaid = 0

    def _due(self, kinds: dict[K, Said], kind: K) -> Said | None:
        """What is to be said now; None, and counted, where it was said within the last minute."""
        now = self._clock()
        said = kinds.setdefault(kind, Said())
        if now - said.at < QUIET_SECONDS:
            said.unsaid += 1
            return None
        said.at = now
        return said

    def _may_say(self, series: Series) -> bool:
        """Whether another line is allowed now."""
        lines = self._lines.setdefault((series.target, series.workload), Bucket(LINE_SECONDS, MOST_LINES))
        return lines.allows(self._clock())

    def _recovered(self, series: Series) -> None:
        """Said when the last failing series of a workload succeeds; later, with one of its next successes, where there
        were too many lines before, so that the log never ends with a trouble that is over.
        """
        outage = self._outages.get((series.target, series.workload))
        if outage is None:
            return
        if series in outage.failing:
            outage.failing.discard(series)
            outage.recovered.add(series)
        if not outage.failing and self._may_say(series):
            del self._outages[series.target, series.workload]
            lasted = notation.write_duration(round(max(1.0, self._clock() - outage.since)))
            facts = {"target": series.target, "workload": series.workload, "failed": outage.failed}
            probes = notation.counted(outage.failed, "probe")
            line = "probes of %s %s succeed again: %s failed in %s"
            logger.info(line, series.target, series.workload, probes, lasted, extra={"facts": facts})

    def forget(self, target: str) -> None:
        for known in (self._outages, self._lines):
            for key in [key for key in known if key[0] == target]:
                del known[key]


def alike(detail: str) -> str:
    """The message without what differs from one to the next of its kind: numbers, ids, times, ports."""
    return NUMBERED.sub("#", detail)[:LONGEST_KIND]


def _more(unsaid: int, kind: tuple[str, ...]) -> str:
    like = "of other kinds" if kind == (OTHERS,) else "like it"
    return f" ({unsaid} more {like} since the last such line)" if unsaid else ""


def _repeated(unsaid: int) -> dict[str, object]:
    return {"repeated": unsaid} if unsaid else {}
