"""The shard is asked once for the tokens of our words, and then gets barely more text than it keeps."""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import generate_v3_pb2 as pb
from exporter.probes.interface import Prober
from exporter.probes.opening import open_prober
from exporter.probes.shard import lock
from exporter.probes.shard.calibration import TRIES
from exporter.probes.shard.prober import ShardProber
from exporter.simulator import Config, Fault, ServedCall, Shard
from tests.processes import wait_until
from tests.simulator.caller import fast

KINDS: dict[str, tuple[Config, dict[str, Any]]] = {
    "padded": (fast(), {}),
    "padded, two ranks": (fast(ranks=2), {}),
    "v2": (fast(protocol="v2"), {}),
    "v2 paged": (fast(protocol="v2", attention="paged"), {"kv_cache": "exclusive"}),
    "paged": (fast(attention="paged"), {"kv_cache": "exclusive"}),
    "paged, reserved block": (fast(attention="paged", ranks=2, speculate=2), {"kv_cache": "reserved_block"}),
    "neuron": (fast(neuron=True), {}),
}


def workload(**keys: Any) -> Workload:
    return Workload.model_validate({"name": "w", "sequence_length": 64, "decode_length": 2, "timeout": "20s"} | keys)


def probe(prober: Prober, batch_size: int = 1, **keys: Any) -> Outcome:
    """As a runner does it."""
    try:
        prober.connect(5.0)
        prober.settle(5.0)
        return prober.probe(workload(**keys), batch_size, lambda: False).outcome
    except Failure as failure:
        return failure.outcome


def prefills(shard: Shard) -> list[ServedCall]:
    return [served for served in shard.record() if served.method == "Prefill" and served.rank == 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_shard_tokenises_barely_more_than_it_keeps(kind: str) -> None:
    config, target = KINDS[kind]
    with Shard(config) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0], **target))
        for length, size in ((64, 1), (128, 5), (512, 3)):
            assert probe(prober, size, sequence_length=length) is Outcome.OK
        asked, *probes = prefills(shard)
        assert (asked.size, asked.tokens <= 64) == (1, True)
        assert [one.tokens for one in probes] == [64, 5 * 128, 3 * 512]
        for one in probes:
            assert one.tokens <= one.text_tokens <= one.tokens * 1.02
        prober.close()
        assert shard.state()["died"] is None
        assert all(rank["batches"] == [] for rank in shard.state()["ranks"])
        if target.get("kv_cache") == "reserved_block":
            assert {block for rank in shard.state()["ranks"] for block in rank["blocks_written"]} == {0}


def test_a_request_that_asks_is_never_larger_than_the_probe_that_follows() -> None:
    with Shard(fast()) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0]))
        for length, requests in ((5, [5]), (20, [20, 20]), (12, [12]), (64, [64]), (4096, [4096])):
            before = len(prefills(shard))
            assert probe(prober, sequence_length=length) is Outcome.OK
            seen = prefills(shard)[before:]
            assert seen[-1].tokens == length
            assert [one.tokens for one in seen[:-1]] == requests[:-1] or length == 64
            assert all(one.tokens <= min(64, length) for one in seen[:-1])
        assert len(prefills(shard)) == 5 + 2, "asked before the first of 20 and the first of 64 tokens only"
        prober.close()


def test_it_is_asked_again_only_when_it_may_be_another_server(tmp_path: Any) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard")) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0]))
        for _ in range(3):
            assert probe(prober) is Outcome.OK
        assert len(prefills(shard)) == 1 + 3
        shard.restart()
        wait_until(lambda: probe(prober) is Outcome.OK, "the server is back")
        assert probe(prober) is Outcome.OK
        shard.fault(Fault("internal", method="Decode", count=1))
        assert probe(prober) is Outcome.REJECTED
        assert probe(prober) is Outcome.OK
        small = [one for one in prefills(shard) if one.text_tokens < 64]
        assert len(small) == 2
        prober.close()


@pytest.mark.parametrize("kind", ["internal", "unavailable"])
def test_where_asking_fails_the_probe_sends_more_text_and_asks_again_before_the_next_one(kind: Any) -> None:
    with Shard(fast()) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0]))
        shard.fault(Fault(kind, method="Prefill", count=1))
        assert probe(prober) is Outcome.OK
        assert probe(prober) is Outcome.OK
        failed, longer, asked, exact = prefills(shard)
        assert failed.code != "OK"
        assert longer.tokens == 64 <= longer.text_tokens
        assert asked.size == 1
        assert exact.text_tokens == 64
        prober.close()


def test_a_shard_that_hangs_when_it_is_asked_is_a_timeout_and_nothing_stays() -> None:
    with Shard(fast()) as shard:
        prober = open_prober(Target(name="t", address=shard.addresses[0]))
        shard.fault(Fault("hang", method="Prefill"))
        assert probe(prober, timeout="200ms") is Outcome.TIMEOUT
        assert len([one for one in prefills(shard) if one.code != "NOT_RUN"]) <= 1
        shard.fault(None)
        assert probe(prober) is Outcome.OK
        prober.close()
        assert shard.state()["ranks"][0]["batches"] == []


# --- shards that do not tell

Answer = Callable[[Any], Any]


class Shy(grpc.GenericRpcHandler):
    """One padded rank; `asked` answers the request that asks for tokens. All others end with their Prefill."""

    def __init__(self) -> None:
        self.asked: Answer = lambda request: ended(request.id)
        self.texts: list[str] = []
        self.asks = 0
        self.cleared: list[int] = []
        self.owed: list[int] = []
        self.gone = False
        self.events: list[str] = []
        self.on: Callable[[list[str]], grpc.StatusCode | None] = lambda events: None

    def service(self, handler_call_details: Any) -> Any:
        rpc = handler_call_details.method.rsplit("/", 1)[1]
        return grpc.unary_unary_rpc_method_handler(partial(self.answer, rpc))

    def answer(self, rpc: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        answer: Any = b""
        self.events.append(rpc)
        if rpc == "ServiceDiscovery":
            self.gone = False  # back again
        elif rpc == "Info":
            answer = pb.InfoResponse(requires_padding=True)
        elif rpc == "Prefill":
            batch = pb.PrefillRequest.FromString(data).batch
            [request] = batch.requests
            if request.prefill_logprobs:
                self.asks += 1
                self.events[-1] = "ask"
                self.owed.append(batch.id)
                answer = self.asked(request)
            else:
                self.texts.append(request.inputs)
                answer = ended(request.id)
        elif rpc == "ClearCache" and not self.gone:
            self.cleared.append(pb.ClearCacheRequest.FromString(data).id)
        if code := self.on(self.events):
            context.abort(code, "CUDA out of memory")
        if answer is None or self.gone:
            self.gone = True
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


def ended(request_id: int) -> Any:
    answer = pb.PrefillResponse()
    generation = answer.generations.add(request_id=request_id)
    generation.tokens.ids.append(7)
    generation.generated_text.text = "so"
    return answer


def going_on(request: Any) -> Any:
    answer = pb.PrefillResponse()
    answer.generations.add(request_id=request.id).tokens.ids.append(7)
    answer.batch.id = 1
    return answer


def another_text(request: Any) -> Any:
    answer = ended(request.id)
    answer.generations[0].prefill_tokens.texts.extend(["<unk>"] * 48)
    return answer


@pytest.fixture
def shy() -> Iterator[tuple[Shy, Prober]]:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = Shy()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    prober = open_prober(Target(name="t", address=f"127.0.0.1:{port}"))
    yield handler, prober
    prober.close()
    server.stop(None).wait()


@pytest.mark.parametrize(
    "asked",
    [lambda request: ended(request.id), another_text, lambda request: b"\xff\xff\xff", going_on],
    ids=["no tokens", "tokens of another text", "noise", "a batch that goes on"],
)
def test_a_shard_that_does_not_tell_is_asked_no_more_and_probed_as_before(
    shy: tuple[Shy, Prober], asked: Answer
) -> None:
    handler, prober = shy
    handler.asked = asked
    for _ in range(TRIES + 2):
        assert probe(prober, decode_length=1) is Outcome.OK
    assert handler.asks == TRIES
    assert [len(text.split()) for text in handler.texts] == [64] * (TRIES + 2)
    if asked is going_on or isinstance(asked(pb.Request()), bytes):
        assert handler.cleared == handler.owed
    else:
        assert handler.cleared == []


def test_a_shard_that_is_gone_after_it_was_asked_is_never_asked_again(shy: tuple[Shy, Prober]) -> None:
    handler, prober = shy
    handler.asked = lambda request: None
    assert probe(prober, decode_length=1) is Outcome.UNREACHABLE
    assert handler.texts == []
    assert probe(prober, decode_length=1) is Outcome.OK
    assert probe(prober, decode_length=1) is Outcome.OK
    assert handler.asks == 1


# --- shards that end of it

INTERNAL, UNAVAILABLE = grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE
Answers = Callable[[list[str], Callable[[], None]], grpc.StatusCode | None]


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[tuple[Shy, Target]]:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = Shy()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{tmp_path}/shard-0")
    server.start()
    yield handler, Target(name="t", address=f"unix://{tmp_path}/shard-0")
    server.stop(None).wait()


def gone_at_once(events: list[str], exchange: Callable[[], None]) -> grpc.StatusCode | None:
    """It answers that it failed, and then not even the call that clears the batch."""
    if events[-1] == "ask":
        return INTERNAL
    return UNAVAILABLE if events[-2:] == ["ask", "ClearCache"] else None


def another_at_once(events: list[str], exchange: Callable[[], None]) -> grpc.StatusCode | None:
    if events[-2:] == ["ask", "ClearCache"]:
        exchange()
    return INTERNAL if events[-1] == "ask" else None


def another_a_moment_later(events: list[str], exchange: Callable[[], None]) -> grpc.StatusCode | None:
    since = events[events.index("ask") :] if "ask" in events else []
    if since.count("Info") == 2 and events[-1] == "Info":
        exchange()
    return INTERNAL if events[-1] == "ask" else None


def gone_a_moment_later(events: list[str], exchange: Callable[[], None]) -> grpc.StatusCode | None:
    since = events[events.index("ask") :] if "ask" in events else []
    if events[-1] == "Info" and since.count("Info") in (2, 3):  # a connection that was lost is asked once more
        return UNAVAILABLE
    return INTERNAL if events[-1] == "ask" else None


def stuck_and_then_another(events: list[str], exchange: Callable[[], None]) -> grpc.StatusCode | None:
    """What is owed cannot be cleared in time, and at the next connection it is another one."""
    if events[-2:] == ["ask", "ClearCache"]:
        exchange()
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return INTERNAL if events[-1] == "ask" else None


@pytest.mark.parametrize(
    "answers", [gone_at_once, another_at_once, another_a_moment_later, gone_a_moment_later, stuck_and_then_another]
)
def test_a_shard_that_ends_after_it_was_asked_is_asked_by_no_prober_again_and_no_batch_is_blamed(
    socket: tuple[Shy, Target], answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    handler, target = socket
    path = target.address.removeprefix("unix://")
    handler.on = lambda events: answers(events, lambda: os.utime(path, ns=(1, 1)))
    prober = ShardProber(target)
    prober.connect(5.0)
    with caplog.at_level(logging.WARNING), pytest.raises(Failure) as caught:
        prober.probe(workload(decode_length=1), 1, lambda: False)
    assert not caught.value.may_have_ended_server
    assert handler.texts == []
    handler.on = lambda events: None
    for _ in range(2):
        assert probe(prober, decode_length=1) is Outcome.OK
    assert caplog.text.count("the server ended after it was asked") == 1
    prober.close()
    for limit in (None, 9999):  # a daemon that was started again, and a bench with other limits
        other = ShardProber(target.model_copy(update={"max_batch_tokens": limit}))
        assert probe(other, decode_length=1) is Outcome.OK
        assert other.quarantine.death is None
        other.close()
    assert handler.events.count("ask") == 1
    assert len(handler.texts) == 4
    os.unlink(lock.lock_path(target.address))
    last = ShardProber(target)
    assert probe(last, decode_length=1) is Outcome.OK
    last.close()
    assert handler.events.count("ask") == 2


@pytest.mark.parametrize("code", [INTERNAL, UNAVAILABLE])
def test_a_shard_that_only_fails_when_it_is_asked_has_not_ended(
    socket: tuple[Shy, Target], code: grpc.StatusCode
) -> None:
    handler, target = socket
    handler.on = lambda events: code if events[-1] == "ask" else None
    prober = ShardProber(target)
    assert probe(prober, decode_length=1) is Outcome.OK
    assert not prober.quarantine.calibration_ended_server
    prober.close()
    assert not os.path.exists(lock.lock_path(target.address))


def test_a_shard_that_stops_as_it_was_told_to_when_it_is_asked_has_not_ended_of_it(
    socket: tuple[Shy, Target],
) -> None:
    handler, target = socket
    handler.on = lambda events: grpc.StatusCode.CANCELLED if events[-1] == "ask" else None
    prober = ShardProber(target)
    assert probe(prober, decode_length=1) is Outcome.UNREACHABLE
    assert handler.texts == []
    handler.on = lambda events: None
    assert probe(prober, decode_length=1) is Outcome.OK
    assert handler.events.count("ask") == 2
    prober.close()
