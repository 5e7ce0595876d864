from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.simulator.roofline import GPUS, MODELS, Gpu, Jitter, Roofline

rooflines = st.builds(
    Roofline,
    gpu=st.sampled_from(list(GPUS.values())),
    model=st.sampled_from(list(MODELS.values())),
    ranks=st.integers(1, 8),
)
batches = st.integers(1, 4096)
tokens = st.integers(1, 100_000)


@given(rooflines, batches, batches, tokens)
def test_a_larger_batch_never_prefills_or_decodes_faster(roofline: Roofline, one: int, other: int, length: int) -> None:
    small, large = sorted((one, other))
    assert roofline.prefill_seconds(small, length) <= roofline.prefill_seconds(large, length)
    assert roofline.decode_seconds(small, length) <= roofline.decode_seconds(large, length)


@given(rooflines, batches, tokens, tokens)
def test_a_longer_sequence_never_prefills_or_decodes_faster(
    roofline: Roofline, batch: int, one: int, other: int
) -> None:
    short, long = sorted((one, other))
    assert roofline.prefill_seconds(batch, short) <= roofline.prefill_seconds(batch, long)
    assert roofline.decode_seconds(batch, short) <= roofline.decode_seconds(batch, long)


@given(rooflines, batches, tokens, st.floats(0.1, 100))
def test_slowdown_and_speed_scale_every_pass(roofline: Roofline, batch: int, length: int, factor: float) -> None:
    normal = roofline.prefill_seconds(batch, length)
    assert roofline.slowed(factor).prefill_seconds(batch, length) == pytest.approx(normal * factor)
    assert replace(roofline, speed=factor).prefill_seconds(batch, length) == pytest.approx(normal / factor)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_decode_is_flat_up_to_the_knee_and_rises_after_it(gpu: Gpu) -> None:
    roofline = replace(Roofline(), gpu=gpu, overhead_seconds=0.0)
    knee = int(roofline.knee)
    alone = roofline.decode_seconds(1, 0)
    assert roofline.decode_seconds(knee, 0) == pytest.approx(alone)
    assert roofline.decode_seconds(4 * knee, 0) == pytest.approx(4 * alone, rel=0.02)


def test_prefill_is_linear_once_bound_by_arithmetic() -> None:
    roofline = replace(Roofline(), overhead_seconds=0.0)
    base = roofline.prefill_seconds(4, 512)
    assert roofline.prefill_seconds(32, 512) == pytest.approx(8 * base)
    assert roofline.prefill_seconds(4, 1024) == pytest.approx(2 * base, rel=0.02)


def test_a_short_prefill_costs_as_much_as_reading_the_weights() -> None:
    roofline = Roofline()
    assert roofline.prefill_seconds(1, 1) == pytest.approx(roofline.decode_seconds(1, 1))


def test_llama_3_8b_on_one_h100_decodes_a_token_in_about_eight_milliseconds() -> None:
    assert 0.006 < Roofline().decode_seconds(1, 512) < 0.010


def test_a_model_that_does_not_fit_has_no_kv_capacity_on_one_gpu_and_some_on_four() -> None:
    big = Roofline(model=MODELS["llama-3-70b"])
    assert big.kv_capacity < 0 < replace(big, ranks=4).kv_capacity


def test_jitter_repeats_for_the_same_seed_and_averages_one() -> None:
    one, same = Jitter(7, 0.1), Jitter(7, 0.1)
    drawn = [one.factor() for _ in range(2000)]
    assert drawn == [same.factor() for _ in range(2000)]
    assert sum(drawn) / len(drawn) == pytest.approx(1, abs=0.01)


def test_no_sigma_is_no_jitter() -> None:
    assert Jitter(1, 0.0).factor() == 1
