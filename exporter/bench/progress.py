"""How far a sweep is, from the events that `sweep` reports. Pure. The live screen shows it."""

from dataclasses import dataclass, field
from typing import Any

from exporter.bench.results import Results, Run


@dataclass(slots=True)
class Progress:
    """`runs`: of each batch size, None where that is found out. `now` is the batch size being probed."""

    batch_sizes: tuple[int, ...] = ()
    runs: int | None = None
    warmups: int = 0
    title: str = ""
    now: int | None = None
    results: Results = field(default_factory=Results)
    lines: list[str] = field(default_factory=list)
    done: bool = False
    _begun: float = 0.0
    _seconds: dict[int, list[float]] = field(default_factory=dict)

    def apply(self, event: dict[str, Any], at: float) -> None:
        """One event, which was read at that second."""
        match event["event"]:
            case "plan":
                self.batch_sizes, self.runs = tuple(event["batch_sizes"]), event["runs"]
                self.warmups, self.title = event["warmups"], event["title"]
                self.results = Results(target={"kind": event["kind"]})
            case "begun":
                self.now = event["batch_size"]
                self._begun = at
            case "ran":
                self.results = self.results.with_run(event["batch_size"], Run.model_validate(event["run"]))
                self._seconds.setdefault(event["batch_size"], []).append(at - self._begun)
                self._begun = at
            case "said":
                self.lines.append(event["line"])
            case _:  # done
                self.done, self.now = True, None

    def made(self, batch_size: int) -> int:
        """How many probes of it are over, warm-ups included."""
        return len(self._seconds.get(batch_size, ()))

    def share(self) -> float:
        """From 0 to 1, by probes; by batch sizes where the number of runs is not known."""
        if self.done:
            return 1.0
        each = self.warmups + self.runs if self.runs is not None else None
        made = sum(min(1.0, self.made(size) / each) if each else self._over(size) for size in self.batch_sizes)
        return made / len(self.batch_sizes) if self.batch_sizes else 0.0

    def _over(self, batch_size: int) -> float:
        return float(batch_size != self.now and self.made(batch_size) > 0)

    def seconds_left(self) -> float | None:
        """If later batch sizes take as long as this one; None where that is not known."""
        if self.runs is None or self.now is None or not (seen := self._seconds.get(self.now)):
            return None
        left = self.warmups + self.runs - len(seen)
        later = sum(self.made(size) == 0 for size in self.batch_sizes) * (self.warmups + self.runs)
        return (left + later) * sum(seen) / len(seen)

    def status(self) -> str:
        """One line: what is being done."""
        if self.done:
            return "done – q shows the tables and ends"
        if self.now is None:
            return "connecting"
        made = self.made(self.now)
        if made < self.warmups:
            return f"batch size {self.now}: warm-up {made + 1} of {self.warmups}"
        of = f" of {self.runs}" if self.runs is not None else ""
        left = "" if (seconds := self.seconds_left()) is None else f", about {duration(seconds)} left"
        return f"batch size {self.now}: run {made - self.warmups + 1}{of}{left}"


def duration(seconds: float) -> str:
    """Such as 45 s, or 2 min 05 s."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"
