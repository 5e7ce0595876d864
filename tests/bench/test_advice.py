"""Which batch size to run: right on curves whose answer is known."""

from collections.abc import Callable

import pytest

from exporter.bench.advice import Advice, Caps, advise, candidates, server_settings
from exporter.bench.command import Answer
from exporter.bench.results import Results
from tests.bench.samples import SIZES, sweep

SWEEPS = 300
NOISE = 0.05


def goals(results: Results, caps: Caps | None = None) -> list[Advice]:
    caps = caps or Caps()
    return list(advise(candidates(results, caps.quantile), caps))


def near(found: int | None, truth: int) -> bool:
    """The right batch size or one next to it."""
    return found is not None and abs(SIZES.index(found) - SIZES.index(truth)) <= 1


def linear(knee: int) -> Callable[[int], float]:
    """10 ms, and 10 ms / knee for each request: throughput over latency is highest where both parts are equal."""
    return lambda size: 0.010 + 0.010 / knee * size


def roofline(knee: int) -> Callable[[int], float]:
    """Flat until the knee, then in proportion: a model bound by memory, then by arithmetic."""
    return lambda size: 0.010 * max(1.0, size / knee)


@pytest.mark.parametrize("shape", [linear, roofline])
@pytest.mark.parametrize("knee", [4, 8, 16])
def test_the_knee_of_noisy_curves_is_found(shape: Callable[[int], Callable[[int], float]], knee: int) -> None:
    found = [goals(sweep(shape(knee), noise=NOISE, seed=seed))[-1].batch_size for seed in range(SWEEPS)]
    assert sum(near(size, knee) for size in found) / SWEEPS >= 0.95


def test_more_users_is_the_smallest_batch_size_with_as_much_throughput() -> None:
    [users, *_] = goals(sweep(roofline(8)))
    assert (users.goal, users.batch_size) == ("More users (throughput)", 8)
    rising = goals(sweep(linear(32)))[0]
    assert rising.batch_size == 64
    assert "try larger batch sizes" in rising.why


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_move_it_further_than_one_step(seed: int) -> None:
    assert near(goals(sweep(roofline(8), noise=NOISE, seed=seed))[0].batch_size, 8)


def test_without_a_limit_the_first_word_and_smooth_text_take_the_largest_that_is_as_fast() -> None:
    _, first, smooth, _ = goals(sweep(roofline(8), prefill=lambda size: 0.02 * size))
    assert (first.batch_size, smooth.batch_size) == (1, 8)


def test_limits_are_kept_surely_and_what_perhaps_keeps_them_is_named() -> None:
    caps = Caps(first_token=0.1, token=0.015)
    _, first, smooth, both = goals(sweep(linear(8)), caps)
    assert [one.batch_size for one in (first, smooth, both)] == [16, 4, 4]  # 20 + 5 ms a request; 10 + 1.25 ms
    noisy = goals(sweep(linear(8), noise=0.3), Caps(token=0.0155))[2]
    assert noisy.batch_size is None or noisy.batch_size <= 4
    assert noisy.others
    nothing = goals(sweep(linear(8)), Caps(first_token=0.001, token=0.001))[-1]
    assert (nothing.batch_size, nothing.why) == (None, "every batch size takes longer")


def test_a_limit_for_the_99th_percentile_is_not_surely_kept_after_ten_runs() -> None:
    found = goals(sweep(linear(8), noise=0.01), Caps(token=0.1, quantile=0.99))[2]
    assert found.batch_size is None
    assert "no batch size surely" in found.why
    assert SIZES[0] in found.others


def test_it_says_when_it_is_not_sure() -> None:
    sure = goals(sweep(roofline(8), noise=0.005))[0]
    assert sure.batch_size is not None
    assert not sure.others
    unsure = goals(sweep(roofline(8), noise=0.4))[0]
    assert unsure.others


def test_without_decode_it_judges_prefill() -> None:
    results = sweep(linear(8), prefill=roofline(8))
    gone = {"token_seconds": None, "decode_seconds": None, "decode_tokens_per_second": None, "step_seconds": ()}
    blocks = [
        block.model_copy(update={"runs": tuple(one.model_copy(update=gone) for one in block.runs)})
        for block in results.batch_sizes
    ]
    found = goals(results.model_copy(update={"batch_sizes": tuple(blocks)}))
    assert [(one.goal, one.batch_size) for one in found] == [
        ("More users (throughput)", 8),
        ("A fast first word (TTFT)", 8),
        ("Well rounded", 8),
    ]


def test_of_nothing_there_is_no_advice_and_that_is_said() -> None:
    assert goals(Results()) == []
    said = Answer(Results(), Caps(), None, 0.05).markdown()
    assert said.endswith(
        "No recommendation: no batch size has a throughput. Values are withheld while this machine is busy."
    )


def test_server_settings_name_the_options_of_tgi_and_vllm() -> None:
    tgi, vllm = server_settings(8, 512, 256)
    assert "--max-batch-size 8 --max-batch-prefill-tokens 4096" in tgi
    assert "6144 tokens of KV cache" in tgi
    assert "--max-num-seqs 8 --max-num-batched-tokens 4096" in vllm
