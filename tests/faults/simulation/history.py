"""What happened last in a simulated world, and how a broken property is reported."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.simulation.virtual_clock import VirtualClock

KEPT = 20


class Broken(BaseException):
    """A property does not hold. The text has all that is needed to replay it.

    Not an Exception: the code under test handles those.
    """


@dataclass
class History:
    seed: int
    clock: VirtualClock
    hours: float
    show: Callable[[str], None] | None = None
    events: int = 0
    _newest: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))

    def note(self, what: str, *values: object) -> None:
        self.events += 1
        line = f"{self.clock.now:14.6f}  {what} {' '.join(map(str, values))}"
        self._newest.append(line)
        if self.show is not None:
            self.show(line)

    def broken(self, name: str, what: str) -> Broken:
        return Broken(
            "\n".join(
                (
                    f"seed {self.seed}, virtual instant {self.clock.now:.6f} s: {name}: {what}",
                    f"the last {len(self._newest)} events:",
                    *self._newest,
                    f'replay: make faults ARGS="--seed {self.seed}"',
                    "with every event: python -m tests.faults.simulation --events "
                    f"--seed {self.seed} --hours {self.hours:g}",
                )
            )
        )

    def newest(self) -> list[str]:
        return list(self._newest)
