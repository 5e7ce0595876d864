"""The router's gRPC door, asked by gRPC's own library; both of its servers."""

from collections.abc import Iterator

import grpc
import pytest

from exporter.pb import fmaas_pb2 as wire
from exporter.simulator import RouterConfig
from exporter.simulator.batcher import AdmissionLimits
from exporter.simulator.faults import Fault
from exporter.simulator.router import Router
from tests.simulator.router.callers import PROMPT, Rpc, await_true, fast, single, slow

Counts = list[tuple[int, int]]


@pytest.fixture(params=["h2", "library"])
def config(request: pytest.FixtureRequest) -> RouterConfig:
    return fast(http=None, grpc_server=request.param)


@pytest.fixture
def router(config: RouterConfig) -> Iterator[Router]:
    with Router(config) as router:
        yield router


@pytest.fixture
def rpc(router: Router) -> Iterator[Rpc]:
    with Rpc(str(router.grpc)) as rpc:
        yield rpc


def counts(messages: list[wire.GenerationResponse]) -> Counts:
    return [(message.input_token_count, message.generated_token_count) for message in messages]


def test_the_early_message_has_the_prompt_length_and_the_counts_add_up(rpc: Rpc) -> None:
    messages = list(rpc.stream(single(3)))
    assert counts(messages) == [(7, 0), (0, 1), (0, 2), (0, 3)]
    assert [message.stop_reason for message in messages] == [0, 0, 0, wire.MAX_TOKENS]
    assert all(message.text for message in messages[1:])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"early_message": False}, [(7, 1), (0, 2), (0, 3), (0, 4), (0, 5)]),
        ({"tokens_per_message": 2}, [(7, 0), (0, 2), (0, 4), (0, 5)]),
        ({"empty_messages": True, "tokens_per_message": 3}, [(7, 0), (0, 3), (0, 3), (0, 5)]),
    ],
)
def test_messages_may_carry_several_tokens_or_none(changes: dict[str, int], expected: Counts) -> None:
    with Router(fast(http=None, **changes)) as router, Rpc(str(router.grpc)) as rpc:
        assert counts(list(rpc.stream(single(5)))) == expected
        assert len(router.record()[-1].token_ns) == 5


def test_no_max_new_tokens_means_twenty(rpc: Rpc) -> None:
    assert list(rpc.stream(single(0)))[-1].generated_token_count == 20


def test_min_new_tokens_keeps_the_model_from_ending_early() -> None:
    with Router(fast(http=None, eos=1.0)) as router, Rpc(str(router.grpc)) as rpc:
        assert [message.stop_reason for message in rpc.stream(single(9))][-1] == wire.EOS_TOKEN
        last = list(rpc.stream(single(9, min_new_tokens=9)))[-1]
        assert (last.generated_token_count, last.stop_reason) == (9, wire.MAX_TOKENS)


def test_a_batch_answers_in_order_when_all_are_finished(rpc: Rpc, router: Router) -> None:
    request = wire.BatchedGenerationRequest(
        requests=[wire.GenerationRequest(text=text) for text in ("a", PROMPT)],
        params=wire.Parameters(stopping=wire.StoppingCriteria(max_new_tokens=4)),
    )
    answer = rpc.call("Generate", request, wire.BatchedGenerationResponse)
    assert counts(list(answer.responses)) == [(2, 4), (7, 4)]
    assert [entry.code for entry in router.record()] == ["OK", "OK"]


def test_tokenize_tells_the_tokens_and_where_they_stand(rpc: Rpc) -> None:
    request = wire.BatchedTokenizeRequest(
        requests=[wire.TokenizeRequest(text=PROMPT)], return_tokens=True, return_offsets=True
    )
    [answer] = rpc.call("Tokenize", request, wire.BatchedTokenizeResponse).responses
    assert (answer.token_count, list(answer.tokens)) == (7, ["<s>", "nort", "h", "rive", "r", "ston", "e"])
    assert [PROMPT[at.start : at.end] for at in answer.offsets] == ["", *answer.tokens[1:]]


def test_model_info_tells_the_limits(rpc: Rpc) -> None:
    info = rpc.call("ModelInfo", wire.ModelInfoRequest(), wire.ModelInfoResponse)
    assert (info.model_kind, info.max_sequence_length, info.max_new_tokens) == (0, 4096, 4095)


def test_a_prompt_is_truncated_on_demand_and_refused_when_too_long(rpc: Rpc) -> None:
    request = single(2, text="word " * 5000)
    assert rpc.failure(request) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the input has 5001 tokens, at most 4095 are allowed",
    )
    request.params.truncate_input_tokens = 100
    assert next(iter(rpc.stream(request))).input_token_count == 100


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (single(2, min_new_tokens=3), "min_new_tokens 3 is more than max_new_tokens 2"),
        (single(5000), "7 input tokens + 5000 new tokens are more than 4096"),
    ],
)
def test_a_mistake_is_invalid_argument(
    rpc: Rpc, router: Router, wrong: wire.SingleGenerationRequest, words: str
) -> None:
    assert rpc.failure(wrong) == (grpc.StatusCode.INVALID_ARGUMENT, words)
    assert [entry.code for entry in router.record()] == ["INVALID_ARGUMENT"]


def test_a_full_router_is_resource_exhausted(config: RouterConfig) -> None:
    full = AdmissionLimits(max_concurrent_requests=1)
    with slow(http=None, grpc_server=config.grpc_server, limits=full) as router, Rpc(str(router.grpc)) as rpc:
        running = rpc.stream(single(5))
        next(running)
        assert rpc.failure(single()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Model is overloaded")
        running.cancel()


def test_a_cancelled_stream_leaves_the_router(config: RouterConfig) -> None:
    with slow(http=None, grpc_server=config.grpc_server) as router, Rpc(str(router.grpc)) as rpc:
        running = rpc.stream(single(5))
        next(running)
        assert router.state()["in_flight"] == 1
        running.cancel()
        await_true(lambda: router.state()["in_flight"] == 0)
        assert [entry.code for entry in router.record()] == ["CANCELLED"]


def test_a_time_limit_is_a_stop_reason_and_no_error() -> None:
    with Router(fast(http=None)) as router, Rpc(str(router.grpc)) as rpc:
        router.slow_down(1000.0)
        last = list(rpc.stream(single(4000, time_limit_millis=1)))[-1]
        assert last.stop_reason == wire.TIME_LIMIT
        assert 1 <= last.generated_token_count < 4000


@pytest.mark.parametrize(
    ("kind", "code"), [("unavailable", grpc.StatusCode.UNAVAILABLE), ("internal", grpc.StatusCode.INTERNAL)]
)
def test_a_fault_fails_as_many_calls_as_it_says(router: Router, rpc: Rpc, kind: str, code: grpc.StatusCode) -> None:
    router.fault(Fault(kind, count=1, method="GenerateStream"))  # type: ignore[arg-type]  # one of FAULT_KINDS
    assert rpc.failure(single())[0] is code
    assert len(list(rpc.stream(single(2)))) == 3


def test_a_cut_stream_ends_with_an_error_after_its_first_token(router: Router, rpc: Rpc) -> None:
    router.fault(Fault("cut", count=1))
    call = rpc.stream(single(5))
    assert counts([next(call), next(call)]) == [(7, 0), (0, 1)]
    with pytest.raises(grpc.RpcError):
        next(call)
    assert call.code() is grpc.StatusCode.INTERNAL
    assert len(list(rpc.stream(single(2)))) == 3
    assert [len(entry.token_ns) for entry in router.record()] == [1, 2]


def test_the_record_knows_the_wrongand_when_each_token_left(router: Router, rpc: Rpc) -> None:
    list(rpc.stream(single(4), x_correlation_id="one"))
    [entry] = router.record()
    assert (entry.method, entry.code, entry.correlation, entry.prompt_start) == ("GenerateStream", "OK", "one", PROMPT)
    assert (entry.prompt_tokens, entry.cached_tokens, entry.max_new_tokens) == (7, 0, 4)
    instants = [entry.received_ns, entry.queued_ns, entry.started_ns, *entry.token_ns, entry.finished_ns]
    assert instants == sorted(instants)
    assert len(set(entry.token_ns)) == 4


def test_unknown_methods_are_unimplemented(rpc: Rpc) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        rpc.call("Abolish", wire.ModelInfoRequest(), wire.ModelInfoResponse)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_restarted_router_listens_at_the_same_place(router: Router) -> None:
    before = router.grpc
    with Rpc(str(router.grpc)) as rpc:
        list(rpc.stream(single()))
        router.restart()
    with Rpc(str(router.grpc)) as rpc:
        assert len(list(rpc.stream(single(2)))) == 3
    assert (router.grpc, router.state()["restarts"]) == (before, 1)


def test_many_calls_share_one_connection(router: Router, rpc: Rpc) -> None:
    calls = [rpc.stream(single(20, text=f"prompt {number}")) for number in range(100)]
    assert [list(call)[-1].generated_token_count for call in calls] == [20] * 100
    await_true(lambda: router.state()["in_flight"] == 0)


def test_a_message_larger_than_the_clients_window_arrives_whole(rpc: Rpc) -> None:
    request = single(1, text="word " * 4000)
    request.params.response.input_text = True
    request.params.response.input_tokens = True
    first = next(iter(rpc.stream(request)))
    assert (len(first.text), len(first.input_tokens)) == (20_000, 4001)
    tokens = wire.BatchedTokenizeRequest(requests=[wire.TokenizeRequest(text="word " * 100_000)], return_tokens=True)
    [answer] = rpc.call("Tokenize", tokens, wire.BatchedTokenizeResponse).responses
    assert answer.token_count == 100_001


def test_a_port_another_server_listens_on_is_refused(router: Router, config: RouterConfig) -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1|in use"):
        Router(fast(http=None, grpc=router.grpc, grpc_server=config.grpc_server)).start()
