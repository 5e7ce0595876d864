"""Whether a target is up: it is reachable, and does not reject every probe. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from exporter.observation import Outcome
from exporter.plan.targets import Facts

# Outcomes of a server that answers, but serves nobody. A timeout or an overload is slowness, not absence.
REJECTING = frozenset({Outcome.REJECTED, Outcome.MALFORMED, Outcome.UNREACHABLE})
# How long a success counts: this many intervals of its series, and at least this many seconds.
INTERVALS, LEAST_SECONDS = 2, 60.0


@dataclass(slots=True)
class TargetState:
    """What the newest checks and probes of one target have shown.

    It is up while it is reachable, unless the newest probe of some series was rejected and no other series succeeded
    lately. So one wrong workload does not make a target down while others succeed.
    """

    _facts: Facts | None = None
    _away: bool = True
    _rejected: set[Hashable] = field(default_factory=set)
    # By series: until when its success counts.
    _served: dict[Hashable, float] = field(default_factory=dict)
    _now: float = float("-inf")

    def checked(self, facts: Facts | None) -> None:
        """None: it was not reachable. When it is back, what was seen before no longer counts."""
        if facts is None:
            self._away = True
        elif self._away and facts.page != "silent":
            self._away = False
            self._rejected.clear()
            self._served.clear()
        self._facts = facts

    def probed(self, series: Hashable, outcome: Outcome, code: str, now: float, interval: float) -> None:
        """How a probe of this series ended, which comes every `interval` seconds."""
        if (outcome, code) == (Outcome.MALFORMED, "INTERNAL"):
            return  # a bug of ours
        self._now = max(self._now, now)
        if outcome is Outcome.OK:
            self._served[series] = now + max(LEAST_SECONDS, INTERVALS * interval)
            self._rejected.discard(series)
        elif outcome in REJECTING:
            self._rejected.add(series)
            self._served.pop(series, None)

    @property
    def facts(self) -> Facts | None:
        """What the target says of itself, while it is up."""
        if self._facts is None:
            return None
        served = any(until >= self._now for until in list(self._served.values()))  # loads have threads of their own
        down = bool(self._rejected) or self._facts.page == "silent"
        return self._facts if served or not down else None
