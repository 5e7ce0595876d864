"""What ended a server is not sent again, and what counts as an end."""

import dataclasses
import json
from typing import Any

import pytest

from exporter.config.target import Target
from exporter.probes.quarantine import END_SECONDS, MOST_DEATHS, Death, Quarantine
from exporter.probes.shard.lock import MOST_BYTES

DEATH = Death("chat", 32, 18432, 1_795_654_800.0, "Prefill at unix:///s-0: Socket closed")


def target(**keys: Any) -> Target:
    return Target.model_validate({"name": "llama", "address": "unix:///s-0", "max_batch_tokens": 20000} | keys)


def quarantined() -> Quarantine:
    quarantine = Quarantine(target())
    quarantine.suspect(DEATH, (1,), 100.0)
    assert quarantine.server_is_gone()
    return quarantine


def test_a_batch_as_large_as_the_one_that_ended_it_is_held_and_a_smaller_one_is_not() -> None:
    quarantine = quarantined()
    assert quarantine.holds(18432)
    assert quarantine.holds(20000)
    assert not quarantine.holds(18431)


def test_nothing_is_held_before_a_death() -> None:
    quarantine = Quarantine(target())
    assert not quarantine.server_is_gone()
    assert not quarantine.holds(10**9)


def test_a_server_that_comes_back_as_another_one_has_ended() -> None:
    quarantine = Quarantine(target())
    quarantine.suspect(DEATH, (1,), 100.0)
    assert quarantine.server_answers((2,), 100.1)
    assert quarantine.death == DEATH


def test_a_server_that_still_answers_after_a_while_has_only_failed() -> None:
    quarantine = Quarantine(target())
    quarantine.suspect(DEATH, (1,), 100.0)
    assert not quarantine.server_answers((1,), 100.1)
    assert quarantine.suspected
    assert not quarantine.server_answers((1,), 100.0 + END_SECONDS)
    assert not quarantine.server_is_gone()
    assert quarantine.death is None


def test_the_smallest_batch_that_ended_it_counts() -> None:
    quarantine = quarantined()
    for size, tokens in ((16, 9216), (64, 36864)):
        quarantine.suspect(Death("chat", size, tokens, 0.0, "gone"), (1,), 100.0)
        assert quarantine.server_is_gone()
    assert quarantine.death is not None
    assert quarantine.death.batch_size == 16


def test_the_reason_says_what_ended_when_of_what_and_how_to_release_it() -> None:
    assert quarantined().reason() == (
        "the server ended at 2026-11-26T01:00:00Z during a probe of workload chat, batch size 32 (18432 tokens of KV "
        "cache): Prefill at unix:///s-0: Socket closed. No batch that large is sent again until a limit of target "
        "llama (max_batch_tokens, max_prefill_tokens, max_total_tokens) is changed (now max_batch_tokens: 20000) and "
        "the configuration is read again"
    )


@pytest.mark.parametrize(
    ("changed", "stays"),
    [
        ({}, True),
        ({"labels": {"zone": "a"}}, True),
        ({"kv_cache": "exclusive"}, True),
        ({"max_batch_tokens": 9000}, False),
        ({"max_batch_tokens": None}, False),
        ({"max_total_tokens": 500}, False),
        ({"max_prefill_tokens": 500}, False),
        ({"address": "unix:///other-0"}, False),
    ],
)
def test_only_a_changed_limit_or_another_server_releases_it(changed: dict[str, Any], stays: bool) -> None:
    assert quarantined().applies_to(target(**changed)) == stays


def restored(data: Any, **keys: Any) -> Death | None:
    quarantine = Quarantine(target(**keys))
    assert quarantine.restore(data) == (quarantine.death is not None)
    return quarantine.death


def test_it_survives_a_file_and_a_changed_limit_releases_it_there_too() -> None:
    data = json.loads(json.dumps(quarantined().as_data({})))
    assert restored(data) == DEATH
    assert restored(data, max_batch_tokens=9000) is None
    assert Quarantine(target()).as_data({}) == {}
    assert restored({}) is None


def test_a_prober_with_other_limits_leaves_it_in_the_file_and_adds_its_own() -> None:
    kept = quarantined().as_data({})
    other = Quarantine(target(max_batch_tokens=9000))
    assert other.as_data(kept) == kept
    other.suspect(dataclasses.replace(DEATH, tokens=100), (1,), 100.0)
    assert other.server_is_gone()
    both = json.loads(json.dumps(other.as_data(kept)))
    assert restored(both) == DEATH
    assert restored(both, max_batch_tokens=9000) == other.death
    assert Quarantine(target(max_batch_tokens=None)).as_data(both) == both


def test_of_too_many_the_oldest_are_left_out_and_never_the_own_one() -> None:
    kept: dict[str, Any] = {}
    for number in range(MOST_DEATHS + 3):
        death = dataclasses.replace(DEATH, died=float(number), detail="\U0001f600" * 1000)
        kept = Quarantine(target(max_batch_tokens=100 + number), death).as_data(kept)
    assert list(kept) == [f"max_batch_tokens: {100 + number}" for number in range(3, MOST_DEATHS + 3)]
    assert len(json.dumps(kept)) < MOST_BYTES - 4096
    old = Quarantine(target(max_batch_tokens=99), dataclasses.replace(DEATH, died=0.0)).as_data(kept)
    assert list(old) == [f"max_batch_tokens: {number}" for number in (*range(104, 100 + MOST_DEATHS + 3), 99)]


@pytest.mark.parametrize(
    "foreign",
    [
        {"limits": "max_batch_tokens: 20000", "death": dataclasses.asdict(DEATH)},
        {"max_batch_tokens: 20000": 7, "none": []},
        {"max_batch_tokens" * 20: dataclasses.asdict(DEATH)},
        {"max_batch_tokens: \x1b": dataclasses.asdict(DEATH)},
        {"none": dataclasses.asdict(DEATH) | {"tokens": 10**4000}},
    ],
)
def test_what_is_no_death_under_limits_is_not_kept(foreign: Any) -> None:
    assert restored(foreign) is None
    assert Quarantine(target()).as_data(foreign) == {}


def test_what_was_restored_before_is_no_news() -> None:
    quarantine = quarantined()
    assert not quarantine.restore(quarantine.as_data({}))


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "a death",
        {},
        {"workload": "chat"},
        {"tokens": True},
        {"tokens": "18432"},
        {"died": 1e300},
        {"died": float("nan")},
        {"more": 1},
    ],
)
def test_what_others_wrote_into_the_file_is_passed_over(wrong: Any) -> None:
    data = quarantined().as_data({})
    [under] = data
    data[under] = data[under] | wrong if isinstance(wrong, dict) and set(wrong) - {"workload"} else wrong
    assert restored(data) is None


def test_text_from_the_file_is_one_line() -> None:
    data = quarantined().as_data({})
    [kept] = data.values()
    kept["detail"] = "two\nlines\x1b"
    death = restored(data)
    assert death is not None
    assert str(death).isprintable()
