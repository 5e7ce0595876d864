"""The arithmetic of single parts."""

from itertools import accumulate

import pytest

from benchmarks.added_delay import BLOCKS, blocks
from benchmarks.buckets import histogram_quantile
from benchmarks.disturbances import Deviations, compare
from benchmarks.streams import Added, ReportedRequest


def test_blocks_keep_every_value_in_order() -> None:
    ours, bare = [float(number) for number in range(13)], [float(number) for number in range(7)]
    found = blocks(ours, bare)
    assert len(found) == BLOCKS
    assert [value for block, _ in found for value in block] == ours
    assert [value for _, block in found for value in block] == bare


@pytest.mark.parametrize(
    ("q", "value"),
    [
        pytest.param(0.25, 1.0, id="at an edge"),
        pytest.param(0.5, 1.5, id="linear inside a bucket"),
        pytest.param(0.99, 2.0, id="never beyond the last edge"),
    ],
)
def test_quantiles_are_read_off_buckets_as_prometheus_does(q: float, value: float) -> None:
    assert histogram_quantile(q, (1.0, 2.0), list(accumulate((1, 2, 1)))) == value


@pytest.mark.parametrize(
    ("bare", "over"),
    [
        pytest.param(0.0003, [True], id="a fast machine: 3 ms"),
        pytest.param(0.001, [False], id="a slow machine: 8 times the bare client"),
    ],
)
def test_a_recorded_value_may_be_off_by_as_much_as_the_machine_is_slow(bare: float, over: list[bool]) -> None:
    errors = Deviations(bare)
    errors.add("gap", 0.107, True, 0.1)
    assert [share > 1 for share, _ in errors.recorded["gap"]] == over


def test_tokens_that_came_together_share_their_wait() -> None:
    errors = Deviations(bare=0.0)
    entry = {"received_ns": 0, "token_ns": [1e9, 2e9, 3e9, 4e9]}
    stream = {"ttft": (1.0, True), "gaps": [(1.0, True), (0.5, False)], "tokens": [1, 2, 1]}
    compare(errors, stream, entry, ok=True)
    assert [error for _, error in errors.recorded["ttft"] + errors.recorded["gap"]] == [0.0, 0.0]
    assert [error for _, error in errors.withheld["gap"]] == [0.5]


def test_what_a_client_added_is_held_against_the_record_of_that_request() -> None:
    record = [
        {"correlation": "other", "prompt_start": "", "received_ns": 0, "token_ns": [5e9]},
        {"correlation": "", "prompt_start": "mine", "received_ns": 0, "token_ns": [1e9, 2e9]},
    ]
    added = Added()
    added.add([ReportedRequest("mine", 1.25, (1.5,))], record)
    assert (added.ttft, added.gaps, added.tokens) == ([0.25], [0.5], 2)
