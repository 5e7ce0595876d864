"""The token bucket, in virtual time."""

from hypothesis import given
from hypothesis import strategies as st

from exporter.web.token_bucket import Bucket

arrivals = st.lists(st.floats(0, 0.3), max_size=60)


@given(arrivals)
def test_never_more_than_the_burst_and_one_an_interval(gaps: list[float]) -> None:
    bucket, now, let_in = Bucket(0.1, 5), 100.0, []
    for gap in gaps:
        now += gap
        if bucket.allows(now):
            let_in.append(now)
    for number, first in enumerate(let_in):
        for count, last in enumerate(let_in[number:], 1):
            assert count <= 5 + (last - first) / 0.1 + 1e-6


@given(arrivals)
def test_whoever_waits_as_told_is_as_late_as_the_pace_makes_him_and_no_later(gaps: list[float]) -> None:
    bucket, now, starts = Bucket(0.1, 5), 100.0, []
    for gap in gaps:
        now += gap
        wait = bucket.reserve(now)
        assert wait >= 0
        now += wait
        starts.append(now)
    for number in range(5, len(starts)):
        assert starts[number] - starts[number - 5] >= 0.1 - 1e-6


def test_a_burst_after_a_rest_does_not_wait() -> None:
    bucket = Bucket(0.1, 3)
    assert [round(bucket.reserve(1.0), 6) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    assert bucket.reserve(9.0) == 0
