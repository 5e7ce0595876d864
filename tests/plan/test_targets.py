"""Who stays at a reload, and what may be sent to whom."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.plan.check_warnings import too_frequent, too_short
from exporter.plan.safety import deadlock, excess, refusal
from exporter.plan.targets import Facts, Plan, change

PLANS = st.builds(
    lambda address, interval, share: Plan(
        Target(name="t", address=f"h:{address}"), (Workload.model_validate({"name": "w", "interval": interval}),), share
    ),
    st.integers(1, 3),
    st.sampled_from(["1s", "2s"]),
    st.sampled_from([0.5, 1.0]),
)
CONFIGURATIONS = st.dictionaries(st.sampled_from("abcde"), PLANS, max_size=5)
PAGED = Facts(protocol="generate.v3", ranks=1, requires_padding=False, block_size=16)


@given(CONFIGURATIONS, CONFIGURATIONS)
def test_a_target_stays_only_where_nothing_of_its_plan_changed(old: dict[str, Plan], new: dict[str, Plan]) -> None:
    what = change(old, new)
    stays = {name for name in old if name in new and old[name] == new[name]}
    assert set(what.leaving) == set(old) - stays
    assert set(what.arriving) == set(new) - stays
    assert list(what.arriving) == [name for name in new if name in what.arriving]


@pytest.mark.parametrize(
    ("kv_cache", "facts", "word"),
    [
        (None, replace(PAGED, requires_padding=True), None),
        (
            None,
            PAGED,
            "set kv_cache: reserved_block, which keeps probes in the one block that no router gives to users",
        ),
        (None, replace(PAGED, ranks=2), "set kv_cache: exclusive and max_batch_tokens if no router serves users here"),
        (None, replace(PAGED, block_size=0), "set kv_cache: exclusive and max_batch_tokens"),
        (
            "exclusive",
            PAGED,
            "set max_batch_tokens to the number in TGI's log line 'Setting max batch total tokens to'",
        ),
        ("exclusive", replace(PAGED, requires_padding=True), None),
        ("reserved_block", PAGED, None),
        ("reserved_block", replace(PAGED, block_size=0), "names its block size"),
        ("reserved_block", replace(PAGED, requires_padding=True, block_size=0), None),
    ],
)
def test_a_paged_shard_is_refused_without_consent(kv_cache: str | None, facts: Facts, word: str | None) -> None:
    why = refusal(Target.model_validate({"name": "t", "address": "h:1", "kv_cache": kv_cache}), facts)
    assert (why is None) == (word is None)
    assert word is None or word in str(why)


def test_a_paged_shard_is_probed_with_the_size_of_its_cache() -> None:
    assert refusal(Target(name="t", address="h:1", kv_cache="exclusive", max_batch_tokens=1), PAGED) is None


def test_reserved_block_is_no_way_around_the_danger_of_several_ranks_or_an_unknown_block_size() -> None:
    for facts in (replace(PAGED, ranks=2), replace(PAGED, block_size=0)):
        assert "reserved_block" not in str(refusal(Target(name="t", address="h:1"), facts))


@pytest.mark.parametrize(
    ("kv_cache", "facts", "warned"),
    [
        (None, replace(PAGED, requires_padding=True, ranks=2), True),
        (None, replace(PAGED, requires_padding=True), False),
        ("exclusive", replace(PAGED, requires_padding=True, ranks=2), False),
        ("exclusive", replace(PAGED, ranks=2), False),
        ("reserved_block", replace(PAGED, ranks=2), True),
        (None, replace(PAGED, ranks=2), False),  # refused: not one Prefill is sent
    ],
)
def test_several_ranks_are_warned_of_until_the_operator_says_that_nobody_else_uses_them(
    kv_cache: str | None, facts: Facts, warned: bool
) -> None:
    danger = deadlock(Target.model_validate({"name": "t", "address": "h:1", "kv_cache": kv_cache}), facts)
    assert (danger is not None) == warned
    assert danger is None or danger.startswith("target t computes on 2 ranks: never probe it beside a router.")


LIMIT = st.integers(1, 10_000)


@given(st.integers(1, 64), st.integers(1, 100), st.integers(1, 100), LIMIT, LIMIT, st.integers(1, 300))
def test_a_batch_is_too_large_exactly_over_a_limit(
    size: int, prompt: int, answer: int, batch: int, prefill: int, total: int
) -> None:
    limits = {"max_batch_tokens": batch, "max_prefill_tokens": prefill, "max_total_tokens": total}
    target = Target.model_validate({"name": "t", "address": "h:1"} | limits)
    work = Workload(name="w", sequence_length=prompt, decode_length=answer)
    too_large = size * (prompt + answer) > batch or size * prompt > prefill or prompt + answer > total
    assert (excess(target, work, size) is not None) == too_large
    assert excess(Target(name="t", address="h:1"), work, size) is None


def test_a_short_prompt_in_the_chat_form_has_a_warning_that_says_why() -> None:
    settings = Settings.model_validate(
        {
            "targets": [
                {"name": "chat", "kind": "http", "api": "chat", "address": "http://h"},
                {"name": "tgi", "kind": "http", "address": "http://h"},
            ],
            "workloads": [{"name": "default"}, {"name": "long", "sequence_length": 64}],
        }
    )
    assert too_short(settings) == [
        "target chat, workload default: sequence_length 10 is short for api: chat, where it includes what the chat "
        "template adds, often 20 to 40 tokens; choose 64 or more"
    ]


def configured(**changes: Any) -> Settings:
    target = {"name": "llama", "address": "h:1"} | changes.pop("target", {})
    duty = changes.pop("max_duty_cycle", 0.5)
    workload = {"name": "chat", "sequence_length": 512, "decode_length": 64} | changes
    return Settings.model_validate({"targets": [target], "workloads": [workload], "max_duty_cycle": duty})


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, False),
        ({"decode_length": 128}, True),
        ({"interval": "10s"}, True),
        ({"batch_sizes": [1], "interval": "10s"}, False),
        ({"max_duty_cycle": 0.1}, True),
        ({"interval": "0s", "decode_length": 1000}, False),
        ({"interval": "5s", "target": {"max_total_tokens": 100}}, False),
        ({"interval": "5s", "target": {"max_batch_tokens": 600}}, False),
        ({"decode_length": 1000, "load": {"mode": "open", "rate": "9/s"}, "target": {"kind": "fmaas"}}, False),
    ],
)
def test_a_timetable_without_room_for_a_slowdown_is_warned_of(changes: dict[str, Any], warned: bool) -> None:
    assert bool(too_frequent(configured(**changes))) == warned


def test_the_warning_names_the_seconds_there_are_and_a_mend_that_works() -> None:
    [line] = too_frequent(configured(decode_length=128))
    assert line == (
        "target llama: its intervals, batch sizes and max_duty_cycle leave 2.5 s for a probe on average. A fast server "
        "(8 ms per token) takes about 1.3 s; on one that is 3 times slower some probes will be skipped. Mend: "
        "intervals 1.6 times as long, fewer batch sizes or shorter answers"
    )
    assert not too_frequent(configured(decode_length=128, interval="48s"))


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True),
    st.integers(1, 2000),
    st.integers(1, 200),
    st.floats(0.05, 1),
)
def test_the_mend_of_a_timetable_without_room_always_works(
    sizes: list[int], decode: int, seconds: int, duty: float
) -> None:
    changes: dict[str, Any] = {"batch_sizes": sizes, "decode_length": decode, "max_duty_cycle": duty}
    for line in too_frequent(configured(interval=f"{seconds}s", **changes)):
        times = float(line.split("Mend: intervals ")[1].split()[0])
        assert not too_frequent(configured(interval=f"{math.ceil(seconds * times)}s", **changes))


def test_a_paged_shard_counts_blocks() -> None:
    """Seen: 9,856 tokens of cache in blocks of 64 are 154, and 200 requests of 10 + 8 tokens take one each."""
    target = Target(name="t", address="h:1", kv_cache="exclusive", max_batch_tokens=9856)
    work = Workload(name="w", sequence_length=10, decode_length=8)
    facts = replace(PAGED, block_size=64)
    assert excess(target, work, 200) is None
    assert excess(target, work, 154, facts) is None
    assert excess(target, work, 155, facts) == (
        "it needs 155 blocks of KV cache (1 for each request, of 64 tokens), and max_batch_tokens 9856 is 154 blocks"
    )


@given(
    st.integers(1, 64),
    st.integers(1, 100),
    st.integers(1, 100),
    st.integers(1, 99),
    st.integers(0, 5),
    st.sampled_from([("generate.v3", 1), ("generate.v3", 16), ("generate.v3", 64), ("generate.v2", 0)]),
)
def test_no_batch_within_the_limit_takes_a_block_that_is_not_there(
    size: int, prompt: int, answer: int, there: int, speculate: int, kind: tuple[str, int]
) -> None:
    facts = replace(PAGED, protocol=kind[0], block_size=kind[1], speculate=speculate)
    block = kind[1] or 16
    target = Target(name="t", address="h:1", kv_cache="exclusive", max_batch_tokens=there * block + block - 1)
    work = Workload(name="w", sequence_length=prompt, decode_length=answer)
    if excess(target, work, size, facts) is None:
        assert size * math.ceil((prompt + answer - 1 + speculate) / block) <= there


def test_where_a_shard_does_not_tell_its_blocks_the_largest_in_use_are_counted() -> None:
    unknown = replace(PAGED, block_size=0)
    work = Workload(name="w", sequence_length=10, decode_length=8)
    target = Target(name="t", address="h:1", kv_cache="exclusive", max_batch_tokens=1024)
    assert excess(target, work, 4, unknown) is None
    assert excess(target, work, 5, unknown) is not None


def test_blocks_are_not_counted_where_a_probe_takes_none_of_its_own() -> None:
    work = Workload(name="w", sequence_length=10, decode_length=8)
    reserved = Target(name="t", address="h:1", kv_cache="reserved_block", max_batch_tokens=400)
    assert excess(reserved, work, 20, replace(PAGED, block_size=64)) is None
    padded = Target(name="t", address="h:1", kv_cache="exclusive", max_batch_tokens=400)
    assert excess(padded, work, 20, replace(PAGED, requires_padding=True)) is None
