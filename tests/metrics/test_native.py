"""The buckets of native histograms, against their definition."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.metrics import native
from exporter.metrics.native import (
    HIGHEST_SCHEMA,
    LOWEST_SCHEMA,
    MOST_BUCKETS,
    SCHEMA,
    NativeBuckets,
    bucket_number,
    spans,
)

POSITIVE = st.floats(native.ZERO_THRESHOLD, exclude_min=True, allow_infinity=False)
SCHEMAS = st.integers(LOWEST_SCHEMA, HIGHEST_SCHEMA)


def is_above_edge(value: float, number: int, schema: int) -> bool:
    """Whether value > 2^(number / 2^schema), exactly."""
    if schema <= 0:
        return bool(Fraction(value) > Fraction(2) ** (number << -schema))
    return bool(Fraction(value) ** 2**schema > Fraction(2) ** number)


@given(POSITIVE, SCHEMAS)
def test_a_value_is_in_the_bucket_whose_edges_are_around_it(value: float, schema: int) -> None:
    number = bucket_number(value, schema)
    near = math.isclose(math.log2(value) * 2**schema, round(math.log2(value) * 2**schema), rel_tol=1e-9, abs_tol=1e-9)
    if schema > 0 and near:
        return  # an edge that no float can be: the next test has them
    assert is_above_edge(value, number - 1, schema)
    assert not is_above_edge(value, number, schema)


@given(st.integers(-100, 1000), SCHEMAS)
def test_an_edge_belongs_to_the_bucket_below_it_and_what_is_just_above_to_the_next(number: int, schema: int) -> None:
    if schema <= 0 and not -1000 < number << -schema < 1000:
        return
    whole, part = divmod(number, 2**schema) if schema > 0 else (number << -schema, 0)
    edge = math.ldexp(2.0 ** (part / 2 ** max(schema, 0) - 1), whole + 1)
    assert bucket_number(edge, schema) == number
    assert bucket_number(math.nextafter(edge, math.inf), schema) == number + 1


@pytest.mark.parametrize("schema", range(LOWEST_SCHEMA, HIGHEST_SCHEMA + 1))
def test_infinity_is_in_the_bucket_above_all_numbers(schema: int) -> None:
    assert bucket_number(math.inf, schema) == bucket_number(math.nextafter(math.inf, 0), schema) + 1


def test_what_is_near_zero_is_counted_apart_and_what_is_no_number_not_at_all() -> None:
    buckets = NativeBuckets()
    for value in (math.nan, 0.0, -0.0, 2.0**-128, -(2.0**-129)):
        buckets.observe(value)
    assert (buckets.zero, buckets.positive, buckets.negative) == (4, {}, {})


@given(st.lists(st.floats(1e-9, 1e9) | st.floats(-1e9, -1e-9), max_size=500))
def test_the_number_of_buckets_is_bounded_and_no_value_is_lost(values: list[float]) -> None:
    buckets = NativeBuckets()
    for value in values:
        buckets.observe(value)
    assert len(buckets.positive) + len(buckets.negative) <= MOST_BUCKETS
    for kept, sign in ((buckets.positive, 1), (buckets.negative, -1)):
        expected: dict[int, int] = {}
        for value in values:
            if value * sign > 0:
                number = bucket_number(abs(value), buckets.schema)
                expected[number] = expected.get(number, 0) + 1
        assert kept == expected  # as if all had been counted in this schema from the start


def test_buckets_are_merged_when_there_are_too_many_and_only_then() -> None:
    buckets = NativeBuckets()
    for number in range(1, MOST_BUCKETS + 1):
        buckets.observe(2 ** ((number - 0.5) / 2**SCHEMA))
    assert (buckets.schema, len(buckets.positive)) == (SCHEMA, MOST_BUCKETS)
    buckets.observe(1e6)
    assert (buckets.schema, len(buckets.positive)) == (SCHEMA - 1, MOST_BUCKETS // 2 + 1)


@given(st.dictionaries(st.integers(-300, 300), st.integers(1, 5)))
def test_spans_hold_every_bucket_at_its_number(buckets: dict[int, int]) -> None:
    found: dict[int, int] = {}
    number = 0
    for offset, counts in spans(buckets):
        assert counts
        number += offset
        for count in counts:
            found[number] = count
            number += 1
    assert found == buckets
    offsets = [offset for offset, _ in spans(buckets)]
    assert all(offset > 0 for offset in offsets[1:])  # neighbours are in one span
