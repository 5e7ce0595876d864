"""The shard prober against the simulated shard, over real gRPC: what it sees, and that it leaves nothing behind."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from exporter.analysis import timeline
from exporter.analysis.timeline import generated_tokens
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Observation, Outcome, Series
from exporter.probes.interface import Abandoned, Prober, Result
from exporter.probes.opening import open_prober
from exporter.simulator import Config, Fault, Shard
from tests.processes import wait_until
from tests.simulator.caller import await_count, fast

RANKS = (1, 2, 3)


def workload(**keys: Any) -> Workload:
    return Workload.model_validate({"name": "chat", "sequence_length": 32, "decode_length": 8, "timeout": "20s"} | keys)


@contextmanager
def probing(config: Config, **target: Any) -> Iterator[tuple[Shard, Prober]]:
    """A running shard and a prober of it. Afterwards the shard is alive and empty, and was never cleared as a whole."""
    with Shard(config) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0], **target))
        try:
            yield shard, prober
        finally:
            prober.close()
        state = shard.state()
        assert state["died"] is None
        assert batches(shard) == 0
        assert all(rank["clear_all_calls"] == 0 for rank in state["ranks"])


def batches(shard: Shard) -> int:
    return sum(len(rank["batches"]) for rank in shard.state()["ranks"])


def probe(prober: Prober, batch_size: int = 2, **keys: Any) -> Result:
    prober.connect(5.0)
    prober.settle(5.0)
    return prober.probe(workload(**keys), batch_size, lambda: False)


def failure(prober: Prober, batch_size: int = 2, **keys: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        probe(prober, batch_size, **keys)
    return caught.value


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("protocol", ["v3", "v2"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_batch_is_decoded_to_its_end_on_every_rank(protocol: Any, ranks: int, batch_size: int) -> None:
    with probing(fast(protocol=protocol, ranks=ranks)) as (shard, prober):
        facts = prober.connect(5.0)
        assert (facts.protocol, facts.ranks, facts.dtype, facts.device, facts.attention) == (
            f"generate.{protocol}",
            ranks,
            "torch.float16",
            "cuda",
            "padded",
        )
        [stream] = probe(prober, batch_size).streams
        assert [step.tokens for step in stream.steps] == [batch_size] * 8
        assert (stream.requests, stream.prompt_tokens) == (batch_size, batch_size * 32)
        assert batches(shard) == 0
        for rank in shard.state()["ranks"]:
            assert (rank["calls"]["Prefill"], rank["calls"]["Decode"]) == (
                2,
                7,
            )  # the first one asks for tokens of words
        tokens = [served.tokens for served in shard.record() if served.method == "Prefill"]
        assert sorted(tokens) == sorted([32, batch_size * 32] * ranks)


@pytest.mark.parametrize("ranks", RANKS)
def test_decode_length_1_needs_no_decode(ranks: int) -> None:
    with probing(fast(ranks=ranks)) as (shard, prober):
        [stream] = probe(prober, 3, decode_length=1).streams
        assert [step.tokens for step in stream.steps] == [3]
        assert "Decode" not in shard.state()["ranks"][0]["calls"]


@pytest.mark.parametrize("protocol", ["v3", "v2"])
@pytest.mark.parametrize("attention", ["padded", "paged"])
def test_speculation_counts_tokens_not_steps_and_takes_finished_requests_out(protocol: Any, attention: Any) -> None:
    config = fast(protocol=protocol, attention=attention, speculate=3, seed=5, ranks=2)
    with probing(config, kv_cache="exclusive") as (shard, prober):
        [stream] = probe(prober, 6, decode_length=12).streams
        assert generated_tokens(stream) == 6 * 12
        assert len(stream.steps) < 12
        assert shard.state()["ranks"][0]["calls"]["FilterBatch"] >= 1


def test_instants_are_in_order_and_bracket_the_servers_own_time() -> None:
    with probing(fast(ranks=2)) as (_, prober):
        [stream] = probe(prober).streams
        instants = [stream.sent]
        for step in stream.steps:
            instants += [step.asked, step.arrived]
            assert step.server is not None
            assert step.server.total is not None
            assert 0 < step.server.total <= step.arrived - step.asked
        assert instants == sorted(instants)
        assert stream.ended == instants[-1]


@pytest.mark.parametrize("speculate", [0, 2])
def test_durations_of_a_shard_are_the_sums_of_its_calls(speculate: int) -> None:
    with probing(fast(speculate=speculate, seed=5)) as (_, prober):
        [stream] = probe(prober, 6, decode_length=12).streams
        observation = Observation(Series("t", "w", 6), 0.0, 0.0, 0.0, Outcome.OK, "OK", streams=(stream,))
        prefill, *decodes = [step.arrived - step.asked for step in stream.steps]
        assert timeline.between_calls(stream) > 0
        assert timeline.request_duration(stream) == pytest.approx(prefill + sum(decodes), abs=1e-7)
        assert timeline.decode_duration(observation) == pytest.approx(sum(decodes), abs=1e-7)
        assert timeline.time_per_output_token(stream) == pytest.approx(sum(decodes) / 11, abs=1e-7)
        assert timeline.decode_throughput(observation) == pytest.approx(6 * 11 / sum(decodes), rel=1e-4)


def test_the_slowest_ranks_timings_count() -> None:
    with probing(fast(ranks=3)) as (shard, prober):
        [stream] = probe(prober).streams
        prefills = [served for served in shard.record() if served.method == "Prefill" and served.size == 2]
        slowest = max(served.total_ns for served in prefills)
        assert stream.steps[0].server is not None
        assert stream.steps[0].server.total == pytest.approx(slowest / 1e9)


def test_a_neuron_shard_reports_no_time_and_that_is_not_zero() -> None:
    with probing(fast(neuron=True)) as (_, prober):
        assert {step.server for step in probe(prober).streams[0].steps} == {None}


def test_ids_are_in_the_upper_half_and_differ_from_probe_to_probe() -> None:
    with probing(fast()) as (shard, prober):
        for _ in range(3):
            probe(prober)
        ids = {served.batch_id for served in shard.record() if served.method == "Prefill"}
        assert len(ids) == 4  # the first request asks for the tokens of words
        assert all(batch_id is not None and 2**63 <= batch_id < 2**64 for batch_id in ids)


def test_an_answer_over_4_mib_arrives() -> None:
    with probing(fast()) as (_, prober):
        [stream] = probe(prober, 128, decode_length=2, parameters={"top_n_tokens": 1000}, sequence_length=4).streams
        assert [step.tokens for step in stream.steps] == [128, 128]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("method", ["Prefill", "Decode"])
@pytest.mark.parametrize(
    ("kind", "outcome", "code"),
    [
        ("unavailable", Outcome.UNREACHABLE, "UNAVAILABLE"),
        ("internal", Outcome.REJECTED, "INTERNAL"),
        ("hang", Outcome.TIMEOUT, "DEADLINE_EXCEEDED"),
    ],
)
def test_each_fault_has_its_outcome_and_leaves_no_batch(
    kind: Any, outcome: Outcome, code: str, method: str, ranks: int
) -> None:
    with probing(fast(ranks=ranks)) as (shard, prober):
        prober.connect(5.0)
        shard.fault(Fault(kind, method=method))
        found = failure(prober, timeout="200ms")
        assert (found.outcome, found.code) == (outcome, code)
        assert method in found.detail
        assert "\n" not in found.detail
        if kind == "hang":
            # The first Prefill asks for tokens, and has a timeout of its own.
            over = "no answer within" if method == "Prefill" else "workload chat: timeout 200ms is over: no token for "
            assert f": {over}" in found.detail
            assert method == "Prefill" or found.detail.endswith("s after 1 of 8 tokens; the server hangs")
        shard.fault(None)
        prober.connect(5.0)
        prober.settle(5.0)
        assert batches(shard) == 0
        assert probe(prober).outcome is Outcome.OK


def test_a_failing_filter_leaves_no_batch() -> None:
    with probing(fast(speculate=3, seed=5)) as (shard, prober):
        prober.connect(5.0)
        shard.fault(Fault("internal", method="FilterBatch"))
        # So many that they never all end in the same step, which would need no filter.
        assert failure(prober, 32, decode_length=12).outcome is Outcome.REJECTED
        shard.fault(None)
        prober.settle(5.0)
        assert batches(shard) == 0


def test_a_probe_abandoned_half_way_is_cleared_when_the_prober_closes() -> None:
    with probing(fast(ranks=2)) as (shard, prober):
        prober.connect(5.0)
        with pytest.raises(Abandoned):
            prober.probe(workload(), 2, lambda: True)
        assert batches(shard) == 2
        prober.close()
        assert batches(shard) == 0


def test_what_is_owed_stays_owed_until_the_server_takes_it() -> None:
    with probing(fast()) as (shard, prober):
        prober.connect(5.0)
        with pytest.raises(Abandoned):
            prober.probe(workload(), 2, lambda: True)
        shard.fault(Fault("unavailable", method="ClearCache"))
        with pytest.raises(Failure):
            prober.settle(5.0)
        assert batches(shard) == 1
        shard.fault(None)
        prober.settle(5.0)
        assert batches(shard) == 0


def test_closing_from_another_thread_ends_a_call_that_hangs() -> None:
    with probing(fast()) as (shard, prober):
        prober.connect(5.0)
        shard.fault(Fault("hang", method="Prefill"))
        ended = threading.Event()

        def attempt() -> None:
            try:
                prober.probe(workload(timeout="1h"), 1, lambda: False)
            except Exception:
                ended.set()

        thread = threading.Thread(target=attempt)
        thread.start()
        await_count(shard, "received", "Prefill")
        closing = threading.Thread(target=prober.close)
        closing.start()
        assert ended.wait(20)
        shard.fault(None)
        closing.join(20)
        thread.join(20)


def test_a_server_that_is_not_there_is_unreachable() -> None:
    prober = open_prober(Target(name="t", address="127.0.0.1:1"))
    with pytest.raises(Failure) as caught:
        prober.connect(2.0)
    assert (caught.value.outcome, caught.value.code) == (Outcome.UNREACHABLE, "UNAVAILABLE")
    prober.close()


def ranks_of(prober: Prober) -> int:
    try:
        return prober.connect(5.0).ranks
    except Failure:
        return 0


def test_a_shard_that_comes_back_with_more_ranks_gets_every_call_on_all_of_them(tmp_path: Any) -> None:
    listen = f"unix://{tmp_path}/shard"
    with Shard(fast(listen=listen)) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0]))
        assert prober.connect(5.0).ranks == 1
    with Shard(fast(listen=listen, ranks=2)) as shard:
        assert wait_until(partial(ranks_of, prober), "the server is back") == 2
        assert prober.probe(workload(), 2, lambda: False).outcome is Outcome.OK
        prober.close()
        assert batches(shard) == 0


def test_random_faults_never_leave_a_batch_once_settled() -> None:
    draw = random.Random(7)
    with probing(fast(ranks=2, speculate=1)) as (shard, prober):
        outcomes = set()
        for _ in range(60):
            kind: Any = draw.choice(["unavailable", "internal", "hang", "restart", None, None])
            if kind == "restart":
                shard.restart()
            elif kind is not None:
                method = draw.choice([None, "Prefill", "Decode", "FilterBatch", "ClearCache", "Info"])
                shard.fault(Fault(kind, count=draw.choice([1, 2, 5]), method=method))
            try:
                prober.connect(0.3)
                prober.settle(0.3)
                outcomes.add(prober.probe(workload(timeout="100ms"), draw.randint(1, 4), lambda: False).outcome)
            except Failure as found:
                outcomes.add(found.outcome)
            shard.fault(None)
        assert outcomes >= {Outcome.OK, Outcome.UNREACHABLE, Outcome.REJECTED, Outcome.TIMEOUT}


def test_a_paged_shard_before_its_warmup_is_not_ready_and_not_suspected() -> None:
    with probing(fast(attention="paged", warmed_up=False), kv_cache="reserved_block") as (_, prober):
        found = failure(prober)
        assert (found.outcome, found.code, found.may_have_ended_server) == (Outcome.NOT_READY, "INTERNAL", False)
        assert found.detail.endswith("has not been warmed up yet; its router does that at its start")


def test_the_same_words_of_a_server_that_has_served_us_are_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with probing(fast(attention="paged"), kv_cache="reserved_block") as (shard, prober):
        assert probe(prober).outcome is Outcome.OK

        def broken(*_: object) -> None:
            raise IndexError("list index out of range")

        monkeypatch.setattr("exporter.simulator.batch_cache.BatchCache.admit", broken)
        assert failure(prober).outcome is Outcome.REJECTED
        assert shard.died is None


def test_a_sequence_beyond_the_models_positions_is_told_with_the_mend() -> None:
    config = fast()
    short = replace(config.roofline, model=replace(config.roofline.model, max_positions=40))
    with probing(replace(config, roofline=short)) as (_, prober):
        for lengths in ({"sequence_length": 41}, {"sequence_length": 32, "decode_length": 12}):
            found = failure(prober, **lengths)
            assert found.outcome is Outcome.REJECTED
            assert "set max_total_tokens of the target to what the model can take" in found.detail


@pytest.mark.parametrize(("kind", "suspected"), [("unavailable", False), ("internal", True), ("hang", False)])
def test_a_call_that_the_server_failed_makes_its_batch_suspect_and_one_that_it_declined_or_holds_does_not(
    kind: Any, suspected: bool
) -> None:
    with probing(fast(ranks=2)) as (shard, prober):
        prober.connect(5.0)
        shard.fault(Fault(kind, method="Prefill"))
        assert failure_of_probe(prober, timeout="300ms").may_have_ended_server == suspected
        shard.fault(None)


@pytest.mark.parametrize("before", [0, 1], ids=["of the request for tokens", "of the batch"])
def test_a_graceful_stop_in_the_middle_makes_no_batch_suspect(before: int) -> None:
    with probing(fast(ranks=2)) as (shard, prober):
        for _ in range(before):
            probe(prober)
        prober.connect(5.0)
        answered = 2 * before  # Prefills: the request for tokens, and the batch
        shard.fault(Fault("hang", method="Prefill"))

        def stop() -> None:
            for rank in (0, 1):  # a rank that has not got its call yet would get it when it is back, alone
                await_count(shard, "calls", "Prefill", answered + 1, rank)
            shard.restart()

        stopping = threading.Thread(target=stop)
        stopping.start()
        found = failure_of_probe(prober)
        stopping.join(20)
        assert found.outcome is Outcome.UNREACHABLE
        assert not found.may_have_ended_server, found.detail


def test_a_server_that_was_gone_before_anything_was_sent_makes_no_batch_suspect() -> None:
    with Shard(fast()) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0]))
        prober.connect(5.0)
    assert not failure_of_probe(prober).may_have_ended_server
    with pytest.raises(Failure):
        prober.close()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix"])
def test_a_server_that_ended_is_another_one_when_it_is_back(listen: str, tmp_path: Any) -> None:
    config = fast(attention="paged", max_batch_tokens=64)
    config = replace(config, listen=f"unix://{tmp_path}/shard" if listen == "unix" else listen)
    with Shard(config) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0], kv_cache="exclusive", max_batch_tokens=9999))
        before = prober.connect(5.0)
        assert failure_of_probe(prober).may_have_ended_server
        assert shard.wait_until_dead(10)
    with Shard(replace(config, listen=config.listen if listen == "unix" else shard.addresses[0])):
        assert prober.connect(5.0).connection != before.connection
        prober.settle(5.0)
        prober.close()


def failure_of_probe(prober: Prober, **keys: Any) -> Failure:
    """Of the probe itself: the connection was there before."""
    with pytest.raises(Failure) as caught:
        prober.probe(workload(**keys), 2, lambda: False)
    return caught.value
