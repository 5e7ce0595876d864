"""Bugs to put into a copy of the exporter, to prove that the simulation finds them."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Bug:
    """In `file`, `right` is replaced by `wrong`; `right` must be there exactly once."""

    name: str
    file: str
    right: str
    wrong: str

    def put_into(self, copy: Path) -> None:
        """`copy` is a copy of the folder `exporter`."""
        file = copy / self.file
        text = file.read_text("utf-8")
        if text.count(self.right) != 1:
            times = text.count(self.right)
            raise ValueError(f"bug {self.name!r}: its text is {times} times in exporter/{self.file}, not once; mend it")
        file.write_text(text.replace(self.right, self.wrong), "utf-8")


BUGS = (
    Bug(
        "the duty cycle is not kept after a probe",
        "plan/schedule.py",
        "return seconds_busy * (1 / max_duty_cycle - 1)",
        "return 0.5 * seconds_busy * (1 / max_duty_cycle - 1)",
    ),
    Bug(
        "a failed attempt leaves its batch in the server",
        "daemon/attempt.py",
        "            with suppress(Failure):  # what is left in the server now is freed before the next probe\n"
        "                self._prober.settle(SETTLE_TIMEOUT)\n",
        "",
    ),
    Bug(
        "an attempt is reported as in flight after its end",
        "daemon/runner.py",
        "        finally:\n            self._ledger.inflight(self.name, 0)\n\n    def _skip_too_large",
        "        finally:\n            pass\n\n    def _skip_too_large",
    ),
)
