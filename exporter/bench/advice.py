"""Which batch size to run, for each goal, and how sure that is. Pure. docs/bench.md has the method.

Larger batches are more throughput and more latency. Throughput per latency, Kleinrock's power (1979), is highest at the
knee: before it a larger batch is almost free, behind it latency grows faster than throughput.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exporter.bench.results import Results, Run
from exporter.bench.statistics import Estimate, estimate
from exporter.bench.summary import steady

# A throughput or latency that close to the best one, as a share, is as good.
AS_GOOD = 0.05
NO_ADVICE = "No recommendation: no batch size has a throughput. Values are withheld while this machine is busy."


@dataclass(frozen=True, slots=True)
class Caps:
    """The longest that users accept, in seconds, for that `quantile` of the runs; None: not said."""

    first_token: float | None = None
    token: float | None = None
    quantile: float = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """One batch size. `first` and `token` are latencies at the caps' quantile, `rate` is the median throughput: of
    decode, or of prefill where nothing is decoded. `wait` is the latency of the same phase, at its median.
    """

    batch_size: int
    first: Estimate
    token: Estimate | None
    rate: Estimate
    wait: Estimate


@dataclass(frozen=True, slots=True)
class Advice:
    """`batch_size` None: none meets the goal. `others` could be right as well, as far as the intervals tell."""

    goal: str
    batch_size: int | None
    why: str
    others: tuple[int, ...] = ()


def candidates(results: Results, quantile: float) -> list[Candidate]:
    """One for each batch size that has all values. Of decode, unless nothing was decoded at all."""
    blocks = sorted(results.batch_sizes, key=lambda block: block.batch_size)
    decoded = any(run.step_seconds for block in blocks for run in block.counted)
    phase = (
        ("decode_tokens_per_second", "token_seconds") if decoded else ("prefill_tokens_per_second", "prefill_seconds")
    )
    found = (_candidate(block.batch_size, steady(block), quantile, *phase) for block in blocks)
    return [point for point in found if point is not None]


def _candidate(batch_size: int, runs: Sequence[Run], quantile: float, rate_key: str, wait_key: str) -> Candidate | None:
    def of(key: str, q: float) -> Estimate | None:
        values = [value for run in runs if (value := getattr(run, key)) is not None]
        return estimate(values, q) if values else None

    first, rate, wait = of("prefill_seconds", quantile), of(rate_key, 0.5), of(wait_key, 0.5)
    if first is None or rate is None or wait is None:
        return None
    return Candidate(batch_size, first, of("token_seconds", quantile), rate, wait)


def advise(found: Sequence[Candidate], caps: Caps) -> Iterator[Advice]:
    """For each goal the batch size to choose. Nothing where there is nothing to choose from."""
    if not found:
        return
    yield _most_throughput(found)
    yield _latency("A fast first word (TTFT)", "TTFT", found, [point.first for point in found], caps.first_token)
    tokens = [point.token for point in found if point.token is not None]
    if len(tokens) == len(found):
        yield _latency("Smooth text (token latency)", "token latency", found, tokens, caps.token)
    if caps.first_token is not None and caps.token is not None and len(tokens) == len(found):
        yield _both_caps(found, tokens, caps.first_token, caps.token)
    else:
        yield _knee(found)


def _most_throughput(found: Sequence[Candidate]) -> Advice:
    best = max(found, key=lambda point: point.rate.value)
    enough = best.rate.value * (1 - AS_GOOD)
    chosen = next(point for point in found if point.rate.value >= enough)
    others = tuple(point.batch_size for point in found if point is not chosen and _could_be_first(point, chosen, best))
    why = f"{chosen.rate.value:.0f} tokens/s"
    if chosen is not best:
        why += f"; batch size {best.batch_size} has {best.rate.value / chosen.rate.value - 1:.0%} more"
    if best is found[-1] and chosen is best and len(found) > 1:
        why += "; throughput still rises, so try larger batch sizes"
    return Advice("More users (throughput)", chosen.batch_size, why, others)


def _could_be_first(point: Candidate, chosen: Candidate, best: Candidate) -> bool:
    """Whether this one could be the smallest that is as good as the best."""
    low, high = best.rate.low or best.rate.value, best.rate.high or best.rate.value
    if point.batch_size < chosen.batch_size:
        return (point.rate.high or point.rate.value) >= low * (1 - AS_GOOD)
    return point.batch_size <= best.batch_size and (chosen.rate.low or chosen.rate.value) < high * (1 - AS_GOOD)


def _latency(goal: str, name: str, found: Sequence[Candidate], waits: Sequence[Estimate], cap: float | None) -> Advice:
    """With a cap: the most throughput within it. Without: the largest batch size that is as fast as the fastest."""
    if cap is not None:
        return _within(f"{goal}, at most {duration_text(cap)}", name, found, [wait.below(cap) for wait in waits], waits)
    limit = min(wait.value for wait in waits) * (1 + AS_GOOD)
    chosen = max(n for n, wait in enumerate(waits) if wait.value <= limit)
    others = tuple(
        point.batch_size
        for n, (point, wait) in enumerate(zip(found, waits, strict=True))
        if n != chosen and (wait.below(limit) is None if n > chosen else waits[chosen].below(limit) is None)
    )
    over = waits[chosen].value / min(wait.value for wait in waits) - 1
    why = f"{name} {duration_text(waits[chosen].value)}, {'the lowest' if not over else f'{over:.1%} over the lowest'}"
    return Advice(goal, found[chosen].batch_size, why, others)


def _both_caps(found: Sequence[Candidate], tokens: Sequence[Estimate], first_cap: float, token_cap: float) -> Advice:
    goal = f"Well rounded: TTFT at most {duration_text(first_cap)}, token latency at most {duration_text(token_cap)}"
    verdicts = []
    for point, token in zip(found, tokens, strict=True):
        both = (point.first.below(first_cap), token.below(token_cap))
        verdicts.append(False if False in both else None if None in both else True)
    return _within(goal, "token latency", found, verdicts, tokens)


def _within(
    goal: str, name: str, found: Sequence[Candidate], verdicts: Sequence[bool | None], waits: Sequence[Estimate]
) -> Advice:
    """The most throughput among the batch sizes that surely keep the cap. Those that perhaps keep it are named."""
    kept = [n for n, verdict in enumerate(verdicts) if verdict]
    perhaps = [n for n, verdict in enumerate(verdicts) if verdict is None]
    if not kept:
        hint = "no batch size surely keeps that" if perhaps else "every batch size takes longer"
        return Advice(goal, None, hint, tuple(found[n].batch_size for n in perhaps))
    chosen = max(kept, key=lambda n: found[n].rate.value)
    others = tuple(found[n].batch_size for n in perhaps if found[n].rate.value > found[chosen].rate.value)
    why = f"{found[chosen].rate.value:.0f} tokens/s, {name} {duration_text(waits[chosen].value)}"
    return Advice(goal, found[chosen].batch_size, why, others)


def _knee(found: Sequence[Candidate]) -> Advice:
    chosen = max(found, key=lambda point: point.rate.value / point.wait.value)
    lowest = (chosen.rate.low or chosen.rate.value) / (chosen.wait.high or chosen.wait.value)
    others = tuple(
        point.batch_size
        for point in found
        if point is not chosen and (point.rate.high or point.rate.value) / (point.wait.low or point.wait.value) > lowest
    )
    why = f"the knee: {chosen.rate.value:.0f} tokens/s at {duration_text(chosen.wait.value)}"
    if chosen is found[-1] and len(found) > 1:
        why += "; it may lie further on, so try larger batch sizes"
    return Advice("Well rounded", chosen.batch_size, why, others)


def duration_text(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def server_settings(batch_size: int, sequence_length: int, decode_length: int) -> list[str]:
    """What a chosen batch size means for the servers' own options."""
    prompts, whole = batch_size * sequence_length, batch_size * (sequence_length + decode_length)
    return [
        f"TGI: --max-batch-size {batch_size} --max-batch-prefill-tokens {prompts}; --max-concurrent-requests at least "
        f"{batch_size}, of which those beyond {batch_size} wait in its queue; {whole} tokens of KV cache",
        f"vLLM: --max-num-seqs {batch_size} --max-num-batched-tokens {max(prompts, 2048)}; "
        f"a smaller --max-num-batched-tokens makes text smoother and the first word later",
    ]
