"""What the simulated server and network know: what really happened, to compare the reports with."""

from dataclasses import dataclass

from exporter.analysis import certainty


@dataclass(frozen=True)
class TrueTimes:
    """Of a probe that truly succeeded: seconds from the first call to the first answer, and to the last."""

    first: float
    whole: float


@dataclass
class Truth:
    """`connected`: how the newest connect went. `passed_connect`: whether this attempt has got past connecting.
    `gave_way`: it was told to. `success`: of the newest probe, if it succeeded, with so many
    `calls`. `clear_tried`: whether it was tried to clear what the newest probe left.
    """

    connected: bool = False
    passed_connect: bool = False
    gave_way: bool = False
    success: TrueTimes | None = None
    calls: int = 1
    clear_tried: bool = True

    def attempt_begins(self) -> None:
        self.passed_connect = self.gave_way = False
        self.success = None

    def tolerance(self, seconds: float) -> float:
        """As for a value that is recorded: it may be wrong by so many seconds."""
        per_call = certainty.TOLERANCE_PER_CALL * self.calls
        return certainty.TOLERANCE_SECONDS + certainty.TOLERANCE_SHARE * seconds + per_call
