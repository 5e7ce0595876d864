"""What has changed between two sweeps, and whether that is more than noise. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from exporter.bench.results import Results
from exporter.bench.statistics import Shift, holm, shift
from exporter.bench.summary import steady

STEPS = {
    "prefill_seconds": "Prefill latency",
    "token_seconds": "Decode (token) latency",
    "decode_tokens_per_second": "Decode throughput",
}
# Of what was sent, these must be the same for the numbers to mean the same. The value stands for a file without one.
MUST_MATCH = {"sequence_length": None, "decode_length": None, "prompt_cache": "miss"}


@dataclass(frozen=True, slots=True)
class Difference:
    """`beyond_noise`: the change is significant, all of them judged together, and at least as large as asked for.
    `worse`: slower, or less throughput.
    """

    batch_size: int
    step: str
    change: Shift
    worse: bool
    beyond_noise: bool

    @property
    def regression(self) -> bool:
        return self.worse and self.beyond_noise


def differences(before: Results, after: Results, smallest: float) -> list[Difference]:
    """By batch size and step that are in both. `smallest`: a change of a smaller share does not matter."""
    found = list(_changes(before, after))
    significant = holm([one.chance for _, _, one in found])
    return [
        Difference(
            batch_size=batch_size,
            step=STEPS[key],
            change=one,
            worse=(one.ratio > 1) == key.endswith("_seconds"),
            beyond_noise=real and abs(one.ratio - 1) >= smallest,
        )
        for (batch_size, key, one), real in zip(found, significant, strict=True)
    ]


def _changes(before: Results, after: Results) -> Iterator[tuple[int, str, Shift]]:
    old = {block.batch_size: block for block in before.batch_sizes}
    for block in after.batch_sizes:
        for key in STEPS if block.batch_size in old else ():
            was, now = ([v for run in steady(b) if (v := getattr(run, key))] for b in (old[block.batch_size], block))
            if was and now:
                yield block.batch_size, key, shift(was, now)


def verdict(one: Difference) -> str:
    if not one.beyond_noise:
        return "no change beyond noise"
    return "worse" if one.worse else "better"


def mismatches(before: Results, after: Results) -> list[str]:
    """What makes the two sweeps unlike, in words."""
    pairs = {
        key: (before.parameters.get(key, lack), after.parameters.get(key, lack)) for key, lack in MUST_MATCH.items()
    }
    return [f"{key.replace('_', ' ')} was {was}, now {now}" for key, (was, now) in pairs.items() if was != now]
