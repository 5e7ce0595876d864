"""Several ranks: each is a server of its own, and all must get every call."""

import grpc

from tests.simulator.caller import await_count, decode, fast, prefill_of, served


def test_generations_are_split_over_the_ranks_and_the_batch_is_the_same() -> None:
    with served(fast(ranks=2)) as (_, callers):
        answers = [future.result() for future in [caller.send("Prefill", prefill_of(1, size=5)) for caller in callers]]
        assert [[g.request_id for g in answer.generations] for answer in answers] == [[0, 2, 4], [1, 3]]
        assert answers[0].batch == answers[1].batch
        steps = [future.result() for future in [caller.send("Decode", decode(1)) for caller in callers]]
        assert sorted(g.request_id for step in steps for g in step.generations) == [0, 1, 2, 3, 4]


def test_one_request_leaves_the_second_rank_nothing_to_answer() -> None:
    with served(fast(ranks=2)) as (_, callers):
        answers = [future.result() for future in [caller.send("Prefill", prefill_of(1, size=1)) for caller in callers]]
        assert [len(answer.generations) for answer in answers] == [1, 0]


def test_ranks_agree_on_speculated_tokens() -> None:
    with served(fast(ranks=2, speculate=3)) as (_, callers):
        sent = [caller.send("Prefill", prefill_of(1, size=4, max_new_tokens=30)) for caller in callers]
        answers = [future.result() for future in sent]
        while answers[0].HasField("batch"):
            answers = [future.result() for future in [caller.send("Decode", decode(1)) for caller in callers]]
            assert answers[0].HasField("batch") == answers[1].HasField("batch")
            assert answers[0].batch == answers[1].batch


def test_a_rank_waits_for_the_others_and_blocks_its_own_calls_meanwhile() -> None:
    with served(fast(ranks=2)) as (shard, [first, second]):
        waiting = first.send("Prefill", prefill_of(1))
        await_count(shard, "calls", "Prefill")
        assert first.failure("Health", timeout=0.2)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        second.call("Health")
        assert not waiting.done()
        second.call("Prefill", prefill_of(1))
        assert waiting.result().batch.size == 2
        assert shard.died is None


def test_a_rank_left_alone_too_long_dies_and_takes_the_server_along() -> None:
    with served(fast(ranks=2, rank_timeout=0.05)) as (shard, [first, second]):
        code, details = first.failure("Prefill", prefill_of(1))
        assert code is grpc.StatusCode.INTERNAL
        assert details == "Rank 0 waited 0.05 s in vain for the other ranks"
        assert shard.wait_until_dead(10)
        assert second.failure("Health")[0] is grpc.StatusCode.UNAVAILABLE
