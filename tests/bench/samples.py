"""Made-up sweeps, for the tests of what follows from them."""

import random
from collections.abc import Callable, Sequence

from exporter.bench.results import BatchSize, Results, Run

SIZES = (1, 2, 4, 8, 16, 32, 64)


def run(batch_size: int, prefill: float, token: float, steps: int = 7, warmup: bool = False) -> Run:
    """A run of prompts of 100 tokens, and so many decode steps of the same length."""
    return Run(
        warmup=warmup,
        prefill_seconds=prefill,
        token_seconds=token,
        decode_seconds=token * steps,
        prefill_tokens_per_second=100 * batch_size / prefill,
        decode_tokens_per_second=batch_size / token,
        first_seconds=(prefill,),
        step_seconds=(token,) * steps,
    )


def sweep(
    token: Callable[[int], float],
    prefill: Callable[[int], float] = lambda size: 0.02 + 0.005 * size,
    noise: float = 0.0,
    runs: int = 10,
    seed: int = 1,
    sizes: Sequence[int] = SIZES,
) -> Results:
    """A shard whose latencies are those functions of the batch size, times a lognormal noise."""
    chance = random.Random(seed)

    def noisy(seconds: float) -> float:
        return seconds * chance.lognormvariate(0, noise) if noise else seconds

    blocks = [
        BatchSize(batch_size=size, runs=tuple(run(size, noisy(prefill(size)), noisy(token(size))) for _ in range(runs)))
        for size in sizes
    ]
    return Results(
        tgi_probe="0.1.0",
        started="2026-11-26T12:00:00+00:00",
        parameters={"target": "unix:///x", "kind": "shard", "sequence_length": 100, "decode_length": 8},
        target={"kind": "shard", "model": "a model"},
        batch_sizes=tuple(blocks),
    )
