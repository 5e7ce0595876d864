"""Batches that ended a server: neither such a batch nor a larger one is sent again until a person allows it. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Series, legible
from exporter.plan.safety import cache_tokens, excess
from exporter.plan.targets import Facts, Plan

# Seconds for which a server that ends may still answer after a failed call.
END_SECONDS = 1.0
# Bounds of a file: the number of deaths, the characters of their texts.
MOST_DEATHS = 8
NO_LIMITS = "none"
LONGEST_LIMITS = 200
MOST_TOKENS = 1 << 63
LONGEST_KEPT = {"workload": 100, "detail": 400}


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a server during a probe. `tokens`: the KV cache of the batch. `died`: Unix time."""

    workload: str
    batch_size: int
    tokens: int
    died: float
    detail: str

    @classmethod
    def of(cls, series: Series, workload: Workload, facts: Facts, died: float, detail: str) -> "Death":
        tokens = cache_tokens(facts, workload, series.batch_size)
        return cls(series.workload, series.batch_size, tokens, died, detail)

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.died, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return (
            f"the server ended at {when} during a probe of workload {self.workload}, batch size {self.batch_size} "
            f"({self.tokens} tokens of KV cache): {self.detail}"
        )


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The death, if the server with this `connection` has ended at `since` (the caller's clock)."""

    death: Death
    connection: tuple[int, ...]
    since: float


class Quarantine:
    """The smallest batch that ended the server of one target. A change of the target's limits releases it.

    `calibration_ended_server`: the question for the tokens of our words ended it, and is not asked again.
    """

    def __init__(self, target: Target, death: Death | None = None) -> None:
        self.target = target
        self.death = death
        self.calibration_ended_server = False
        self._suspicion: Suspicion | None = None

    @property
    def suspected(self) -> bool:
        return self._suspicion is not None

    @property
    def is_empty(self) -> bool:
        """Whether a new one would be the same."""
        return self.death is None and not self.suspected and not self.calibration_ended_server

    def suspect(self, death: Death, connection: tuple[int, ...], now: float) -> None:
        """A call has failed that the server had received. The next connection shows whether it ended."""
        self._suspicion = Suspicion(death, connection, now)

    def server_is_gone(self) -> bool:
        """The server does not answer any more. True for a new death."""
        suspicion, self._suspicion = self._suspicion, None
        if suspicion is None:
            return False
        if self.death is None or suspicion.death.tokens < self.death.tokens:
            self.death = suspicion.death
        return True

    def server_answers(self, connection: tuple[int, ...], now: float) -> bool:
        """The server answers: it is another one, or lives on. True for a new death."""
        suspicion = self._suspicion
        if suspicion is None:
            return False
        if connection != suspicion.connection:
            return self.server_is_gone()
        if now - suspicion.since >= END_SECONDS:
            self._suspicion = None
        return False

    def server_served(self) -> None:
        """The server has answered a whole probe, so the failed call before it did not end it."""
        self._suspicion = None

    def holds(self, tokens: int) -> bool:
        return self.death is not None and tokens >= self.death.tokens

    def never_sent(self, plan: Plan, facts: Facts) -> frozenset[Series]:
        """The plan's series that are held here or over the target's limits."""
        return frozenset(
            series
            for series, workload in plan.series()
            if excess(plan.target, workload, series.batch_size, facts) is not None
            or self.holds(cache_tokens(facts, workload, series.batch_size))
        )

    def reason(self) -> str:
        """For people: what ended the server, when, and how to release it."""
        return (
            f"{self.death}. No batch that large is sent again until a limit of target {self.target.name} "
            f"({', '.join(Target.LIMITS)}) is changed (now {limits(self.target)}) and the configuration is read again"
        )

    def applies_to(self, target: Target) -> bool:
        """Whether a target as it is configured now is still the one that was quarantined."""
        return target.address == self.target.address and limits(target) == limits(self.target)

    def as_data(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values for a file that holds `kept`; `restore` reads them.

        The keys are the limits at each death, so a prober with other limits leaves it there. The oldest are left out.
        """
        own = limits(self.target)
        others = sorted(_deaths(kept), key=lambda entry: entry[1].died)
        deaths = [(under, death) for under, death in others if under != own]
        if self.death is not None:
            deaths.append((own, self.death))
        return {under: _plain(death) for under, death in deaths[-MOST_DEATHS:]}

    def restore(self, kept: Mapping[str, Any]) -> bool:
        """Take over the death that was written under the same limits. True for a new one."""
        death = dict(_deaths(kept)).get(limits(self.target))
        if death is None or self.holds(death.tokens):
            return False
        self.death = death
        return True


def _plain(death: Death) -> dict[str, Any]:
    data = asdict(death)
    return data | {key: legible(data[key], most) for key, most in LONGEST_KEPT.items()}


def _deaths(kept: Mapping[str, Any]) -> list[tuple[str, Death]]:
    """The deaths of a file, each with its limits."""
    found = ((under, _death(data)) for under, data in kept.items() if _are_limits(under))
    return [(under, death) for under, death in found if death is not None]


def _are_limits(text: str) -> bool:
    return text == NO_LIMITS or (
        text.startswith(Target.LIMITS) and text.isascii() and text.isprintable() and len(text) <= LONGEST_LIMITS
    )


def _death(data: object) -> Death | None:
    """A death of a file; None where it is something else, for others may write there too."""
    types = {"workload": str, "batch_size": int, "tokens": int, "died": float, "detail": str}
    if not isinstance(data, dict) or {key: type(value) for key, value in data.items()} != types:
        return None
    if max(data["batch_size"], data["tokens"]) >= MOST_TOKENS:
        return None
    try:
        datetime.fromtimestamp(data["died"], UTC)
    except (ValueError, OverflowError, OSError):
        return None
    shown = {key: legible(data[key], most) for key, most in LONGEST_KEPT.items()}
    return Death(**data | shown)


def limits(target: Target) -> str:
    shown = [f"{key}: {value}" for key in Target.LIMITS if (value := getattr(target, key))]
    return ", ".join(shown) or NO_LIMITS
