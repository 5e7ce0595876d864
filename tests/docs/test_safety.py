"""docs/safety.md, sentence by sentence, against the simulated shard, which dies as real ones do."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from docs import generate
from exporter import cli
from exporter.bench.precision import Precision
from exporter.bench.reports import Lines
from exporter.bench.sweep import Sweep, SweepPlan
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.daemon.runner import Runner
from exporter.daemon.timing import Clock
from exporter.observation import Failure, Observation, Outcome, Series, SkipReason
from exporter.plan.targets import Facts, Plan
from exporter.probes.opening import open_prober
from exporter.probes.quarantine import Quarantine
from exporter.simulator import Config, Fault, Shard
from tests.processes import wait_until
from tests.simulator.caller import Caller, decode, fast, prefill_of
from tests.simulator.supervised import supervised

PAGE = (Path(generate.__file__).parent / "safety.md").read_text("utf-8")
SENTENCES = [
    " ".join(sentence.split())
    for paragraph in re.split(r"\n\n|\n\|", PAGE)
    for sentence in re.split(r"(?<=[a-z)`]\.) (?=[A-Z*`(])", " ".join(paragraph.split()))
]
QUOTED: list[str] = []
Test = TypeVar("Test", bound=Callable[..., None])

# Sentences of the sections on shards that say what to do, what was found on real servers, or what another test holds.
HELD_ELSEWHERE = (
    "A shard does not say how much fits",  # a fact about TGI
    "TGI logs it at its start",  # a fact about TGI
    "Give that number",
    "So 200 requests",  # tests/plan/test_targets.py
    "For a shard that does not say",  # tests/plan/test_targets.py
    "Before the first probe of a connection",  # tests/shard/test_calibration.py
    "It has at most 64 tokens",  # tests/shard/test_calibration.py
    "It asks how the shard's tokeniser",
    "The same rules hold for it",
    "After it has failed",  # tests/shard/test_calibration.py
    "A shard that ended after it",  # tests/shard/test_calibration.py
    "Prompts are then longer",  # tests/shard/test_calibration.py
    "*Measured*",
    "With `exclusive` they changed",
    "Latencies were 0.99 to 1.05",
    "a GPU's memory is laid out",  # a fact about TGI
    "A skipped probe is not sent later",  # tests/daemon/test_runner.py
    "Set it |",
    "Padding does not help",  # tests/plan/test_targets.py: the warning
    "Never share a shard",
    "*Not measured*",
    "*Searched for* in a model",  # tests/faults/live_traffic
    "No block of a user was written",  # tests/faults/live_traffic
    "`make faults` repeats",
    "You have to ask for it",  # tests/docs/test_references.py: the key has no default
    "Users wait behind",
    "A router warms",
    "The outcome is `not_ready`",
    "In the first round",  # tests/daemon/test_quarantine.py
    "A graceful stop",  # tests/shard/test_shard.py
    "One line in the log says",  # tests/end_to_end/test_small_cache.py
    "The quarantine survives a restart",  # tests/end_to_end/test_small_cache.py
    "Or delete that file",  # tests/end_to_end/test_small_cache.py
    "A `bench` or another daemon",  # tests/end_to_end/test_small_cache.py
    "Attempts then have",  # tests/end_to_end/test_small_cache.py
)
ROOM = 9 * 16  # tokens of KV cache: 9 blocks; a request of 32 + 8 takes 3 of them


def says(*quotes: str) -> Callable[[Test], Test]:
    """What of the page this test holds to be true."""
    QUOTED.extend(quotes)
    return lambda test: test


@dataclass
class Books:
    observations: list[Observation] = field(default_factory=list)
    skips: list[tuple[Series, SkipReason]] = field(default_factory=list)

    def record(self, observation: Observation) -> None:
        self.observations.append(observation)

    def skipped(self, series: Series, reason: SkipReason) -> None:
        self.skips.append((series, reason))

    def unsafe(self) -> set[int]:
        """The batch sizes that were never sent, for being too large. On a busy machine others are skipped as busy."""
        return {series.batch_size for series, reason in list(self.skips) if reason is SkipReason.UNSAFE}

    def late(self, target: str, seconds: float) -> None: ...
    def inflight(self, target: str, probes: int) -> None: ...
    def up(self, target: str, facts: Facts | None) -> None: ...

    def sizes(self, outcome: Outcome) -> set[int]:
        return {made.series.batch_size for made in list(self.observations) if made.outcome is outcome}

    def await_outcome(self, outcome: Outcome, size: int, times: int = 1) -> None:
        def often() -> bool:
            found = [made for made in list(self.observations) if made.series.batch_size == size]
            return sum(made.outcome is outcome for made in found) >= times

        wait_until(often, f"{times} {outcome} of batch size {size}")


def work(**keys: Any) -> Workload:
    lengths = {"sequence_length": 32, "decode_length": 8, "batch_sizes": [1, 2, 4], "warmups": 0}
    return Workload.model_validate({"name": "chat", "interval": "1s", "timeout": "20s"} | lengths | keys)


@contextmanager
def watched(address: str, workload: Workload, **target: Any) -> Iterator[Books]:
    """A runner on it, whose time passes a hundred times as fast while it waits."""
    watching = Target.model_validate({"name": "t", "address": address} | target)
    skew = [0.0]

    def wait(stop: threading.Event, seconds: float) -> bool:
        skew[0] += seconds
        return stop.wait(seconds / 100)

    books = Books()
    clock = Clock(lambda: time.perf_counter() + skew[0], wait)
    runner = Runner(Plan(watching, (workload,), 1.0), open_prober(watching), books, clock=clock)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield books
    finally:
        runner.stop()
        thread.join(30)
        assert not thread.is_alive()


def paged(tmp_path: Path, **keys: Any) -> Config:
    return fast(
        attention="paged", block_size=16, listen=f"unix://{tmp_path}/shard", **{"max_batch_tokens": ROOM} | keys
    )


def prefills(shard: Shard) -> int:
    return sum(rank["received"].get("Prefill", 0) for rank in shard.state()["ranks"])


# --- what may be pointed at what


@says("a shard that pads, any number of ranks")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_padded_shard_of_its_own_is_probed_as_exclusive(ranks: int) -> None:
    with Shard(fast(ranks=ranks)) as shard, watched(shard.addresses[0], work(), kv_cache="exclusive") as books:
        books.await_outcome(Outcome.OK, 4, times=3)
        assert shard.died is None


@says(
    "a shard with a paged KV cache, any number of ranks",
    "a paged KV cache has ends the shard in the middle of the call",
    "Then it counts blocks, skips what does not fit (`unsafe`) and names it in the log",
)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("protocol", ["v3", "v2"])
def test_an_exclusive_paged_shard_is_probed_with_what_fits_into_its_cache(
    tmp_path: Path, protocol: str, ranks: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = paged(tmp_path, protocol=protocol, ranks=ranks)
    keys = {"kv_cache": "exclusive", "max_batch_tokens": ROOM}
    sizes = work(batch_sizes=[1, 3, 4], sequence_length=28)  # 4 x 36 tokens are 144, but 12 blocks
    with Shard(config) as shard, watched(shard.addresses[0], sizes, **keys) as books:
        books.await_outcome(Outcome.OK, 3, times=10)
        assert shard.died is None
        assert books.unsafe() == {4}
        assert books.sizes(Outcome.OK) == {1, 3}
    assert "batch size 4 is never sent" in caplog.text
    with Shard(config) as shard:  # and it is right not to be sent
        too_many = keys | {"max_batch_tokens": 10 * ROOM}
        with watched(shard.addresses[0], sizes.model_copy(update={"batch_sizes": (4,)}), **too_many):
            assert shard.wait_until_dead(20)


@says("a shard with a paged KV cache, one rank", "sends nothing to a paged shard before you set")
def test_a_paged_shard_without_consent_gets_not_one_prefill(tmp_path: Path) -> None:
    for consent in ({}, {"max_batch_tokens": ROOM}, {"kv_cache": "exclusive"}):
        with Shard(paged(tmp_path)) as shard, watched(shard.addresses[0], work(), **consent) as books:
            books.await_outcome(Outcome.REFUSED, 2, times=3)
            assert prefills(shard) == 0


@says(
    "the same, with `kv_cache: reserved_block`",
    "every block of a probe is block 0",
    "It needs no `max_batch_tokens`, since no other block is used",
)
def test_the_reserved_block_is_all_that_a_probe_writes_whatever_its_size(tmp_path: Path) -> None:
    large = work(batch_sizes=[1, 32], sequence_length=512)
    config = paged(tmp_path)
    with Shard(config) as shard, watched(shard.addresses[0], large, kv_cache="reserved_block") as books:
        books.await_outcome(Outcome.OK, 32, times=3)
        assert shard.state()["ranks"][0]["blocks_written"] == [0]
        assert shard.died is None


@says(
    "A shard of several ranks must not be shared this way either",
    "a shard that does not name its block size is refused",
)
def test_the_reserved_block_needs_a_block_size_and_is_not_proposed_for_several_ranks(tmp_path: Path) -> None:
    config = paged(tmp_path, protocol="v2")
    with Shard(config) as shard, watched(shard.addresses[0], work(), kv_cache="reserved_block") as books:
        books.await_outcome(Outcome.REFUSED, 1)
        assert prefills(shard) == 0
    with Shard(paged(tmp_path, ranks=2)) as shard, watched(shard.addresses[0], work()) as books:
        books.await_outcome(Outcome.REFUSED, 1)
        assert "reserved_block" not in books.observations[0].detail


@says("a shard that pads (no paged cache), one rank", "works without consent")
def test_a_padded_shard_is_probed_without_consent() -> None:
    with Shard(fast()) as shard, watched(shard.addresses[0], work()) as books:
        books.await_outcome(Outcome.OK, 4)


@says(
    "a shard of two or more ranks, padded or paged",
    "**deadlock** of several ranks",
    "then the ranks compute for different batches, and abort within seconds",
)
def test_two_clients_on_a_shard_of_two_ranks_end_it_when_their_calls_come_in_different_order() -> None:
    with Shard(fast(ranks=2)) as shard:
        callers = [Caller(address) for address in shard.addresses]
        first_come = [(callers[0], 1), (callers[1], 2)]
        calls = [caller.send("Prefill", prefill_of(batch_id)) for caller, batch_id in first_come]
        assert shard.wait_until_dead(20)
        assert all(call.exception() for call in calls)
        for caller in callers:
            caller.close()


# --- what a careless probe does


@says("a paged shard writes a request without blocks into blocks 0, 1, 2 …")
def test_an_exclusive_probe_writes_where_the_blocks_of_users_would_be(tmp_path: Path) -> None:
    keys = {"kv_cache": "exclusive", "max_batch_tokens": ROOM}
    with Shard(paged(tmp_path)) as shard, watched(shard.addresses[0], work(batch_sizes=[3]), **keys) as books:
        books.await_outcome(Outcome.OK, 3)
        assert shard.state()["ranks"][0]["blocks_written"] == list(range(9))


@says("random ids from the upper half of the range", "a Prefill with an id in use replaces that batch")
def test_ids_are_ours() -> None:
    with Shard(fast()) as shard:
        caller = Caller(shard.addresses[0])
        caller.call("Prefill", prefill_of(0, size=3, max_new_tokens=50))
        with watched(shard.addresses[0], work()) as books:
            books.await_outcome(Outcome.OK, 4, times=5)
        assert len(caller.call("Decode", decode(0)).generations) == 3
        ids = {served.batch_id for served in shard.record() if served.method == "Prefill"} - {0}
        assert ids
        assert all(batch_id is not None and batch_id >= 2**63 for batch_id in ids)
        caller.call("Prefill", prefill_of(0, size=1))
        assert len(caller.call("Decode", decode(0)).generations) == 1
        caller.close()


@says("`ClearCache` without an id empties the shard", "every batch is decoded to its end or cleared")
def test_nothing_of_ours_stays_and_nothing_of_others_is_cleared() -> None:
    with Shard(fast()) as shard:
        caller = Caller(shard.addresses[0])
        caller.call("Prefill", prefill_of(0))
        with watched(shard.addresses[0], work(batch_sizes=[2])) as books:
            for method in ("Decode", "Prefill"):
                shard.fault(Fault("internal", count=1, method=method))
                books.await_outcome(Outcome.REJECTED, 2, times=1 + (method == "Prefill"))
                books.await_outcome(Outcome.OK, 2, times=len(books.observations) + 1 - len(books.sizes(Outcome.OK)))
        [rank] = shard.state()["ranks"]
        assert [batch["id"] for batch in rank["batches"]] == [0]
        assert rank["clear_all_calls"] == 0
        caller.call("ClearCache")
        assert shard.state()["ranks"][0]["batches"] == []
        caller.close()


@says("a padded shard allocates each batch anew", "a batch that runs out of memory ends the shard")
def test_a_padded_shard_ends_out_of_memory_and_a_limit_prevents_it() -> None:
    with Shard(fast(max_batch_tokens=100)) as shard:
        with watched(shard.addresses[0], work(), max_batch_tokens=100) as books:
            books.await_outcome(Outcome.OK, 2, times=10)
            assert books.unsafe() == {4}
            assert shard.died is None
        with watched(shard.addresses[0], work(batch_sizes=[4])):
            assert shard.wait_until_dead(20)


@says("a sequence beyond the model's positions is an error on a CPU")
def test_a_sequence_beyond_the_positions_is_an_error_and_a_limit_prevents_it() -> None:
    config = fast()
    short = replace(config.roofline, model=replace(config.roofline.model, max_positions=36))
    with Shard(replace(config, roofline=short)) as shard:
        with watched(shard.addresses[0], work()) as books:
            books.await_outcome(Outcome.REJECTED, 1)
            assert "set max_total_tokens of the target" in books.observations[0].detail
        with watched(shard.addresses[0], work(), max_total_tokens=36) as books:
            wait_until(lambda: len(books.skips) > 3, "skips")
            assert not books.observations
        assert shard.died is None


@says("`max_prefill_tokens` limits `batch_size` × `sequence_length`")
def test_a_larger_prefill_than_the_limit_is_never_sent() -> None:
    with Shard(fast()) as shard, watched(shard.addresses[0], work(), max_prefill_tokens=64) as books:
        wait_until(lambda: books.unsafe() == {4}, "batch size 4 is skipped")
        books.await_outcome(Outcome.OK, 2, times=3)
        assert books.sizes(Outcome.OK) == {1, 2}


@says("values over 256 are refused for shards, in the configuration and by `bench`")
@pytest.mark.parametrize("key", ["top_k", "top_n_tokens"])
def test_more_likely_tokens_than_a_vocabulary_has_are_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    text = "targets: [{name: t, address: 'h:1'}]\nworkloads: [{name: w, parameters: {%s: %d}}]\n"
    mend = f"{key}: is 257, and a shard ends when it is over the model's vocabulary; must be ≤ 256"
    for value, code in ((256, 0), (257, 2)):
        file.write_text(text % (key, value))
        assert cli.main(["check", "--config", str(file)]) == code
    assert f"workloads.0.parameters.{mend} for target t" in capsys.readouterr().err
    assert cli.main(["bench", "--target", "h:1", f"--{key.replace('_', '-')}", "257"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"--{mend.replace('_', '-', key.count('_'))}"]
    router = "targets: [{name: t, kind: http, address: 'http://h:1'}]\n"
    file.write_text(router + text.splitlines()[1] % (key, 257))
    assert cli.main(["check", "--config", str(file)]) == 0


@says("`top_k` (paged) or `top_n_tokens` (padded) above the number of tokens that the model knows")
@pytest.mark.parametrize(("attention", "key"), [("paged", "top_k"), ("padded", "top_n_tokens")])
def test_the_largest_values_allowed_are_survived_by_the_smallest_vocabulary(attention: Any, key: str) -> None:
    config = fast(attention=attention, vocabulary=256)
    asked = work(parameters={key: 256})
    with Shard(config) as shard, watched(shard.addresses[0], asked, kv_cache="reserved_block") as books:
        books.await_outcome(Outcome.OK, 4)
        assert shard.died is None
    config = replace(config, vocabulary=255)
    with Shard(config) as shard, watched(shard.addresses[0], asked, kv_cache="reserved_block"):
        assert shard.wait_until_dead(20)


@says("well-formed requests only")
@pytest.mark.parametrize("protocol", ["v3", "v2"])
@pytest.mark.parametrize("attention", ["padded", "paged"])
def test_requests_are_well_formed(protocol: Any, attention: Any) -> None:
    config = fast(protocol=protocol, attention=attention, speculate=2)
    keys = {"kv_cache": "exclusive", "max_batch_tokens": 100_000}
    with Shard(config) as shard, watched(shard.addresses[0], work(batch_sizes=[1, 5]), **keys) as books:
        books.await_outcome(Outcome.OK, 5, times=5)
        assert {made.outcome for made in books.observations} == {Outcome.OK}
        assert shard.died is None


@says("one probe at a time")
def test_one_probe_at_a_time() -> None:
    with Shard(fast(ranks=1)) as shard, watched(shard.addresses[0], work(interval="0s")) as books:
        books.await_outcome(Outcome.OK, 4, times=5)
        calls = [served.batch_id for served in shard.record() if served.method in ("Prefill", "Decode")]
        in_turn = [batch_id for batch_id, _ in groupby(calls)]
        assert len(in_turn) == len(set(in_turn)) > 5


@says("backs off for up to 30 s, longer with each failure")
def test_a_server_that_struggles_is_left_alone() -> None:
    with Shard(fast()) as shard:
        shard.fault(Fault("internal", method="Prefill"))
        with watched(shard.addresses[0], work(batch_sizes=[1], interval="0s")) as books:
            books.await_outcome(Outcome.REJECTED, 1, times=7)
        made = books.observations
        pauses = [later.started - earlier.ended for earlier, later in pairwise(made)]
        assert 0.4 < pauses[0] < 5
        assert 14 < pauses[5] < 35


# --- the Warmup, and what ended a server


@says(
    "Until then a paged shard has no KV cache and fails each Prefill",
    "tgi-probe never calls Warmup itself",
)
def test_a_shard_before_its_warmup_is_not_ready_and_never_warmed_up_by_us(tmp_path: Path) -> None:
    keys = {"kv_cache": "exclusive", "max_batch_tokens": ROOM}
    config = paged(tmp_path, warmed_up=False)
    with Shard(config) as shard, watched(shard.addresses[0], work(batch_sizes=[1]), **keys) as books:
        books.await_outcome(Outcome.NOT_READY, 1, times=3)
        assert "Warmup" not in shard.state()["ranks"][0]["received"]
        assert not Outcome.NOT_READY.judged
        caller = Caller(shard.addresses[0])
        caller.call("Warmup")
        caller.close()
        books.await_outcome(Outcome.OK, 1, times=3)


@says(
    "a probe that ended the shard is due again when it is back",
    "a probe's call fails, and that the shard then does not answer any more or is a new one",
    "Then the shard has ended",
    "That batch, and every batch of any workload that takes as much of the cache, is not sent to this target again",
    "Smaller batches are still sent",
)
@pytest.mark.parametrize("protocol", ["v3", "v2"])
@pytest.mark.parametrize("attention", ["padded", "paged"])
def test_a_server_whose_limit_is_told_wrong_ends_once(
    tmp_path: Path, attention: Any, protocol: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(paged(tmp_path, protocol=protocol), attention=attention)
    keys = {"kv_cache": "exclusive", "max_batch_tokens": 100 * ROOM}
    with supervised(config) as lives:
        with watched(f"{config.listen}-0", work(batch_sizes=[16, 2, 8, 1, 4]), **keys) as books:
            for size in (4, 8, 16):
                books.await_outcome(Outcome.QUARANTINED, size, times=3)
            books.await_outcome(Outcome.OK, 2, times=10)
            assert len(lives) == 2
        assert books.sizes(Outcome.QUARANTINED) == {4, 8, 16}
        assert books.sizes(Outcome.OK) == {1, 2}
    assert caplog.text.count("the server ended at") == 1


@says("**You release it** by changing `max_batch_tokens`, `max_prefill_tokens` or `max_total_tokens` of the target")
def test_a_changed_limit_releases_it_and_nothing_else_does() -> None:
    before = Target(name="t", address="h:1", max_batch_tokens=100)
    quarantine = Quarantine(before)
    for key, value in (("max_batch_tokens", 99), ("max_prefill_tokens", 99), ("max_total_tokens", 99)):
        assert not quarantine.applies_to(before.model_copy(update={key: value}))
    assert quarantine.applies_to(before.model_copy(update={"labels": {"a": "b"}, "kv_cache": "exclusive"}))


@says("`bench` stops at the first such end and names it")
def test_bench_stops_at_the_first_end_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--kv-cache", "exclusive", "--runs", "2", "--format", "csv", "--sequence-length", "32"]
    with supervised(paged(tmp_path)) as lives:
        command = ["bench", "--target", lives[0].addresses[0], *flags, "--max-batch-tokens"]
        assert cli.main([*command, "100000"]) == 1
        said = capsys.readouterr()
        assert "ended early: batch size 4: unreachable (UNAVAILABLE): the server ended during this probe" in said.err
        assert {line.split(",")[3] for line in said.out.splitlines()[1:]} == {"1", "2"}
        wait_until(lambda: len(lives) == 2 and lives[1].addresses, "it is back")
        assert cli.main([*command, str(ROOM)]) == 1
        said = capsys.readouterr()
        assert "ended early: batch size 4: refused (REFUSED): " in said.err
        assert "--max-batch-tokens 144" in said.err
        assert len(lives) == 2


def swept(target: Target, batch_size: int) -> str | None:
    """Why a sweep of this batch size ended early."""
    workload = work().model_copy(update={"batch_sizes": (batch_size,)})
    sweep = Sweep(SweepPlan(target, workload, 1, Precision()), lambda: False, Lines())
    sweep.run()
    sweep.close()
    return sweep.results.stopped


@says("A paged shard has N ÷ block size blocks, and a request takes whole ones", "in blocks is named in the log")
@pytest.mark.parametrize("speculate", [0, 3])
@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_what_fits_by_our_count_fits_and_one_more_does_not(tmp_path: Path, block_size: int, speculate: int) -> None:
    each = -(-(32 + 8 - 1 + speculate) // block_size)
    config = paged(tmp_path, speculate=speculate, max_batch_tokens=(5 * each + each - 1) * block_size)
    config = replace(config, block_size=block_size)
    target = Target(name="t", address=f"{config.listen}-0", kv_cache="exclusive", max_batch_tokens=config.kv_tokens)
    with Shard(config) as shard:
        assert swept(target, 5) is None
        assert "refused (REFUSED)" in str(swept(target, 6))
        assert shard.died is None
        careless = open_prober(target)
        careless.connect(5.0)
        with pytest.raises(Failure):
            careless.probe(work(), 6, lambda: False)
        assert shard.wait_until_dead(20)
        with pytest.raises(Failure):
            careless.close()


# --- the page itself


@pytest.mark.parametrize("quote", QUOTED)
def test_every_quote_is_on_the_page(quote: str) -> None:
    assert quote in " ".join(PAGE.split())


def test_every_sentence_about_shards_is_held_by_a_test() -> None:
    # What follows has test files of its own: tests/shard/test_lock.py and tests/end_to_end/test_two_probers.py.
    start, end = PAGE.index("| a shard that pads, any"), PAGE.index("## Several probers at one shard")
    about_shards = " ".join(PAGE[start:end].split())
    sentences = [sentence for sentence in SENTENCES if sentence in about_shards and not sentence.startswith("#")]
    open_ones = [
        sentence
        for sentence in sentences
        if not any(quote in sentence for quote in QUOTED)
        and not any(words in sentence for words in HELD_ELSEWHERE)
        and not re.match(r"Which one is it|Nearly every|A replica|\| hazard|hazard|---|-\|", sentence)
    ]
    assert open_ones == []
