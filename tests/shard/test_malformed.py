"""A shard whose answers make no sense: each is `malformed` with its reason, and its batch is cleared by its id."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import generate_v3_pb2 as pb
from exporter.probes.opening import open_prober

Answer = pb.PrefillResponse | pb.DecodeResponse


def generations(answer: Answer, ids: list[int], tokens: int = 1, done: bool = False) -> Answer:
    for request_id in ids:
        generation = answer.generations.add(request_id=request_id)
        generation.tokens.ids.extend([7] * tokens)
        if done:
            generation.generated_text.text = "so"
    return answer


def alive(answer: Answer) -> Answer:
    answer.batch.id = 1
    return answer


class Liar(grpc.GenericRpcHandler):
    """One padded rank; `prefill` and `decode` make the answers from the ids of the requests of the newest Prefill."""

    def __init__(self) -> None:
        self.prefill: Callable[[list[int]], Answer | bytes] = lambda ids: alive(generations(pb.PrefillResponse(), ids))
        self.decode: Callable[[list[int]], Answer | bytes] = lambda ids: alive(generations(pb.DecodeResponse(), ids))
        self.ids: list[int] = []
        self.sent: list[int] = []
        self.cleared: list[int] = []

    def service(self, handler_call_details: Any) -> Any:
        rpc = handler_call_details.method.rsplit("/", 1)[1]
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer(rpc, request))

    def answer(self, rpc: str, request: bytes) -> bytes:
        answer: Any = b""
        if rpc == "Info":
            answer = pb.InfoResponse(requires_padding=True)
        elif rpc == "Prefill":
            batch = pb.PrefillRequest.FromString(request).batch
            self.sent.append(batch.id)
            self.ids = [request.id for request in batch.requests]
            answer = self.prefill(self.ids)
        elif rpc == "Decode":
            answer = self.decode(self.ids)
        elif rpc == "ClearCache":
            self.cleared.append(pb.ClearCacheRequest.FromString(request).id)
        return answer if isinstance(answer, bytes) else answer.SerializeToString()


@pytest.fixture
def liar() -> Iterator[tuple[Liar, str]]:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = Liar()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(None).wait()


PREFILLS: dict[str, tuple[Callable[[list[int]], Answer | bytes], str]] = {
    "too few": (lambda ids: alive(generations(pb.PrefillResponse(), ids[1:])), "1 generation for 2 requests"),
    "too many": (
        lambda ids: alive(generations(pb.PrefillResponse(), [*ids, ids[0]])),
        "3 generations for 2 requests",
    ),
    "strangers": (
        lambda ids: alive(generations(pb.PrefillResponse(), [1, 2])),
        "2 generations for requests that are not in the batch",
    ),
    "no token": (
        lambda ids: alive(generations(pb.PrefillResponse(), ids, tokens=0)),
        "a request without a first token",
    ),
    "no batch": (
        lambda ids: generations(pb.PrefillResponse(), ids),
        "2 requests unfinished, but the batch has ended",
    ),
    "no end": (
        lambda ids: alive(generations(pb.PrefillResponse(), ids, done=True)),
        "0 requests unfinished, but the batch goes on",
    ),
    "noise": (lambda ids: b"\xff\xff\xff", "an answer that is no PrefillResponse"),
}


@pytest.mark.parametrize("lie", PREFILLS)
def test_a_prefill_that_makes_no_sense_is_malformed_and_its_batch_cleared(liar: tuple[Liar, str], lie: str) -> None:
    handler, address = liar
    handler.prefill, reason = PREFILLS[lie]
    assert reason in malformed(address)
    assert handler.cleared == handler.sent


def test_a_decode_that_never_ends_is_given_up(liar: tuple[Liar, str]) -> None:
    handler, address = liar
    assert "no end after" in malformed(address)
    assert handler.cleared == handler.sent


def test_a_decode_for_a_finished_request_is_malformed(liar: tuple[Liar, str]) -> None:
    handler, address = liar
    handler.prefill = lambda ids: alive(generations(generations(pb.PrefillResponse(), ids[:1], done=True), ids[1:]))
    assert "1 generation for requests that are not in the batch" in malformed(address)
    assert handler.cleared == handler.sent


def malformed(address: str) -> str:
    """What the failure says of a probe of two requests."""
    prober = open_prober(Target(name="t", address=address))
    try:
        prober.connect(5.0)
        with pytest.raises(Failure) as caught:
            prober.probe(Workload(name="w", sequence_length=4, decode_length=4), 2, lambda: False)
        prober.settle(5.0)
    finally:
        prober.close()
    assert caught.value.outcome is Outcome.MALFORMED
    return caught.value.detail
