"""The log: one line per event, to standard error. A message that repeats is logged once a minute, with how often."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from exporter.config import notation
from exporter.observation import Observation, Outcome, Series
from exporter.web.token_bucket import Bucket

logger = logging.getLogger("tgi_probe")
NEVER = float("-inf")
# A message of one kind is logged once in this time.
QUIET_SECONDS = 60.0
# Logged when a measure has had no value for this time, because all were withheld.
NO_VALUE_SECONDS = 60.0
# Lines about one workload that fails and recovers all the time: at most this many at once, then one per LINE_SECONDS.
MOST_LINES = 12
LINE_SECONDS = 30.0
# How many kinds of message are told apart in one outage; the rest are one kind.
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
    """Each message stays one line, even if a server or a client has put line breaks into it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class Json(logging.Formatter):
    """Keys: time (UTC, milliseconds), level, message, then the facts of the event (target, outcome, trace_id …)."""

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
class Repeats:
    """One kind of message: when it was logged last, and how many were suppressed since."""

    logged: float = NEVER
    suppressed: int = 0


@dataclass(slots=True)
class Outage:
    """What fails of one workload at one target, since when, and its messages by kind."""

    since: float
    failed: int = 0
    failing: set[Series] = field(default_factory=set)
    recovered: set[Series] = field(default_factory=set)
    kinds: dict[tuple[str, ...], Repeats] = field(default_factory=dict)


class Journal:
    """Logs attempts and warnings. A message like one of a short time ago is suppressed, counted, and told with the next
    line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._warned: dict[str, Repeats] = {}
        # By target and workload.
        self._outages: dict[tuple[str, str], Outage] = {}
        self._lines: dict[tuple[str, str], Bucket] = {}
        # Since when each measure has had no value.
        self._no_value_since: dict[Series, dict[str, float]] = {}

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
        elif observation.outcome is Outcome.QUARANTINED:  # the runner has logged why, once
            if (outage := self._outages.get((series.target, series.workload))) is not None:
                outage.failing.discard(series)
            logger.debug("probe not sent: %s: %s", name, observation.detail, extra={"facts": facts})
        elif observation.outcome is Outcome.DISTURBED:  # by us: neither a failure nor a recovery
            line = f"probe neither judged nor measured: {name}: {observation.outcome}: {observation.detail}"
            self.warn(f"disturbed {series.target} {series.workload}", line, facts)
        else:
            self._failed(observation, f"probe failed: {name}: {observation.outcome}: {observation.detail}", facts)

    def withheld(self, series: Series, measures: Sequence[str]) -> None:
        """Of a successful probe: the measures that it left no value of. Logged when that lasts, per target."""
        now = self._clock()
        before = self._no_value_since.get(series, {})
        self._no_value_since[series] = since = {measure: before.get(measure, now) for measure in measures}
        lasting = [measure for measure, begun in since.items() if now - begun >= NO_VALUE_SECONDS]
        if not lasting:
            return
        lasted = notation.write_duration(round(now - min(since[measure] for measure in lasting)))
        line = (
            f"no value of {', '.join(lasting)} recorded for {lasted}: {series.target} {series.workload} "
            f"batch_size={series.batch_size}: all were withheld, because this machine was busy; give tgi-probe more "
            "CPU (see tgi_probe_withheld_values_total in docs/troubleshooting.md)"
        )
        facts = {"target": series.target, "workload": series.workload, "batch_size": series.batch_size}
        self.warn(f"withheld {series.target}", line, facts)

    def warn(self, kind: str, line: str, facts: dict[str, object] | None = None) -> None:
        """A warning that may come often: one line a minute of each kind."""
        if (repeats := self._due(self._warned, kind)) is not None:
            facts = (facts or {"kind": kind}) | _repeated(repeats.suppressed)
            logger.warning("%s%s", line, _more(repeats.suppressed, ()), extra={"facts": facts})
            repeats.suppressed = 0

    def _failed(self, observation: Observation, line: str, facts: dict[str, object]) -> None:
        series = observation.series
        outage = self._outages.setdefault((series.target, series.workload), Outage(self._clock()))
        outage.failed += 1
        outage.failing.add(series)
        kind: tuple[str, ...] = (str(observation.outcome), observation.code, alike(observation.detail))
        if kind not in outage.kinds and len(outage.kinds) >= MOST_KINDS:
            kind = (OTHERS,)
        if series in outage.recovered:  # it had succeeded meanwhile: a new failure
            outage.recovered.discard(series)
            outage.kinds.setdefault(kind, Repeats()).logged = NEVER
        repeats = self._due(outage.kinds, kind)
        if repeats is None:
            return
        if not self._has_line_left(series):
            repeats.logged, repeats.suppressed = NEVER, repeats.suppressed + 1
            return
        logger.warning(
            "%s%s", line, _more(repeats.suppressed, kind), extra={"facts": facts | _repeated(repeats.suppressed)}
        )
        repeats.suppressed = 0

    def _due(self, kinds: dict[K, Repeats], kind: K) -> Repeats | None:
        """Its repeats where this kind may be logged now; None, and it is counted, where it was a short time ago."""
        now = self._clock()
        repeats = kinds.setdefault(kind, Repeats())
        if now - repeats.logged < QUIET_SECONDS:
            repeats.suppressed += 1
            return None
        repeats.logged = now
        return repeats

    def _has_line_left(self, series: Series) -> bool:
        """Whether this workload may have another line now; that uses it up."""
        lines = self._lines.setdefault((series.target, series.workload), Bucket(LINE_SECONDS, MOST_LINES))
        return lines.allows(self._clock())

    def _recovered(self, series: Series) -> None:
        """Logged when the last failing series of a workload succeeds. Where there were too many lines before, it is
        logged with a later success: the log must not end with a failure that is over.
        """
        outage = self._outages.get((series.target, series.workload))
        if outage is None:
            return
        if series in outage.failing:
            outage.failing.discard(series)
            outage.recovered.add(series)
        if not outage.failing and self._has_line_left(series):
            del self._outages[series.target, series.workload]
            lasted = notation.write_duration(round(max(1.0, self._clock() - outage.since)))
            facts = {"target": series.target, "workload": series.workload, "failed": outage.failed}
            probes = notation.counted(outage.failed, "probe")
            line = "probes of %s %s succeed again: %s failed in %s"
            logger.info(line, series.target, series.workload, probes, lasted, extra={"facts": facts})

    def forget(self, target: str) -> None:
        for known in (self._outages, self._lines):
            for key in [key for key in list(known) if key[0] == target]:  # others are added meanwhile
                del known[key]
        for series in [series for series in list(self._no_value_since) if series.target == target]:
            del self._no_value_since[series]


def alike(detail: str) -> str:
    """The message without its numbers, ids, times and ports, which differ from one to the next of its kind."""
    return NUMBERED.sub("#", detail)[:LONGEST_KIND]


def _more(suppressed: int, kind: tuple[str, ...]) -> str:
    like = "of other kinds" if kind == (OTHERS,) else "like it"
    return f" ({suppressed} more {like} since the last such line)" if suppressed else ""


def _repeated(suppressed: int) -> dict[str, object]:
    return {"repeated": suppressed} if suppressed else {}
