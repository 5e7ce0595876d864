"""The buckets of a native histogram: exponential, and only those that hold a value. Pure.

Bucket number i of a schema holds the values above 2^((i-1) / 2^schema), up to 2^(i / 2^schema). So the buckets of
schema 4 are 4.4 % wide at every size, and those of a lower schema each hold two, four, … of them.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator

# A quantile read off a bucket is wrong by its width at most: below 5 %. `python -m benchmarks buckets` compares.
SCHEMA = 4
# Values that near to 0 are in the zero bucket. As Prometheus' own client has it, and not 0: by this figure Prometheus
# knows that an empty histogram is native.
ZERO_THRESHOLD = 2.0**-128
# Those that Prometheus knows.
LOWEST_SCHEMA, HIGHEST_SCHEMA = -4, 8
# 160 of schema 4 reach from 1 ms to 1 s without a gap. More are merged two by two, to the schema below.
MOST_BUCKETS = 160

# The upper edges within a factor of two, from 1/2 on, as `math.frexp` gives the fraction of a number.
_EDGES = {schema: [2.0 ** (i / 2**schema - 1) for i in range(2**schema)] for schema in range(1, HIGHEST_SCHEMA + 1)}


class NativeBuckets:
    """Counts by bucket number. NaN is in no bucket; infinity is in the one above the highest finite number."""

    __slots__ = ("negative", "positive", "schema", "zero")

    def __init__(self) -> None:
        self.schema = SCHEMA
        self.zero = 0
        self.positive: dict[int, int] = {}
        self.negative: dict[int, int] = {}

    def observe(self, value: float) -> None:
        if value > ZERO_THRESHOLD:
            buckets = self.positive
        elif value < -ZERO_THRESHOLD:
            buckets = self.negative
        else:
            self.zero += value == value
            return
        number = bucket_number(abs(value), self.schema)
        buckets[number] = buckets.get(number, 0) + 1
        while len(self.positive) + len(self.negative) > MOST_BUCKETS and self.schema > LOWEST_SCHEMA:
            self._merge()

    def _merge(self) -> None:
        """Two buckets become one: the same counts in the schema below."""
        self.schema -= 1
        self.positive, self.negative = _merged(self.positive), _merged(self.negative)


def _merged(buckets: dict[int, int]) -> dict[int, int]:
    merged: dict[int, int] = {}
    for number, count in buckets.items():
        above = (number + 1) >> 1
        merged[above] = merged.get(above, 0) + count
    return merged


def bucket_number(value: float, schema: int) -> int:
    """The bucket of a number above 0. An edge belongs to the bucket below it."""
    if math.isinf(value):
        return bucket_number(math.nextafter(math.inf, 0), schema) + 1
    fraction, exponent = math.frexp(value)
    if schema > 0:
        edges = _EDGES[schema]
        return bisect_left(edges, fraction) + (exponent - 1) * len(edges)
    # The bucket of schema 0, then the one of the lower schema that holds it.
    number = exponent - 1 if fraction == 0.5 else exponent
    return -(-number >> -schema)


def spans(buckets: dict[int, int]) -> Iterator[tuple[int, list[int]]]:
    """Buckets that follow one another: how many are left out before the first one, and their counts in order.

    Before the very first bucket are all from number 0 on, so that its figure may be negative.
    """
    begin = after = 0
    counts: list[int] = []
    for number in sorted(buckets):
        if counts and number != after:
            yield begin, counts
            begin, counts = number - after, []
        elif not counts:
            begin = number
        counts.append(buckets[number])
        after = number + 1
    if counts:
        yield begin, counts
