"""Whatever a shard answers: a result, or a Failure in one line; every batch is cleared by its id, and nothing hangs."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.pb import generate_v3_pb2 as pb
from exporter.probes.interface import Result
from exporter.probes.opening import open_prober
from tests.faults.fuzz.examples import ends, fuzz

WORKLOAD = Workload.model_validate({"name": "w", "sequence_length": 4, "decode_length": 3, "timeout": "5s"})
BIG = st.integers(0, 3) | st.sampled_from([2**31, 2**63, 2**64 - 1])
TEXTS = st.text(max_size=6) | st.sampled_from(["a\nb", "\u202e", "x" * 3000])
URLS = TEXTS | st.sampled_from(
    [
        *(
            "",
            "unix://",
            "unix:///",
            "unix:///..",
            "unix:///a\nb",
            "unix:///%00",
            "unix:///\0",
            "h:1",
            ":0",
            "[::1",
            ":",
        ),
        *("dns:///h", "xds:///a", "unix:///" + "x" * 300, "ipv4:127.0.0.1:1", "https://127.0.0.1", "unix-abstract:x"),
    ]
)


@dataclass(frozen=True)
class Recipe:
    """An answer to a Prefill or Decode. `requests`: which of the batch's requests, or another number."""

    requests: Sequence[int]
    tokens: Sequence[int] = (7,)
    texts: Sequence[str] = ()
    done: bool = False
    goes_on: bool = True
    nanoseconds: int = 0

    def written(self, ids: Sequence[int]) -> bytes:
        answer = pb.PrefillResponse(total_ns=self.nanoseconds, forward_ns=self.nanoseconds)  # as a DecodeResponse
        for number in self.requests:
            known = ids[number] if number < len(ids) else number
            generation = answer.generations.add(request_id=known)
            generation.tokens.ids.extend(self.tokens)
            generation.tokens.texts.extend(self.texts)
            generation.prefill_tokens.texts.extend(self.texts)
            if self.done:
                generation.generated_text.text = "".join(self.texts)
        if self.goes_on:
            answer.batch.id = self.nanoseconds
        return answer.SerializeToString()


RECIPES = st.builds(
    Recipe,
    st.just((0, 1)) | st.lists(st.integers(0, 2) | BIG, max_size=4),
    st.just((7,)) | st.lists(st.integers(0, 2**32 - 1), max_size=3),
    st.lists(TEXTS, max_size=3),
    st.booleans(),
    st.booleans(),
    BIG,
)
INFOS = st.builds(
    lambda padding, texts, block: pb.InfoResponse(
        requires_padding=padding, dtype=texts, device_type=texts, speculate=block % 5, block_size=block
    ).SerializeToString(),
    st.booleans(),
    TEXTS,
    st.integers(0, 2**32 - 1),
)
DISCOVERIES = st.lists(URLS, max_size=4).map(lambda urls: pb.ServiceDiscoveryResponse(urls=urls).SerializeToString())
CODES = st.sampled_from([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
NOISE = st.binary(max_size=20) | CODES
# The answers to each RPC, in order. After them the shard answers as it should.
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "ServiceDiscovery": st.lists(DISCOVERIES | NOISE, min_size=1, max_size=2),
        "Info": st.lists(INFOS | NOISE, min_size=1, max_size=2),
        "Prefill": st.lists(RECIPES | NOISE, min_size=1, max_size=2),
        "Decode": st.lists(RECIPES | NOISE, min_size=1, max_size=4),
        "FilterBatch": st.lists(NOISE, min_size=1, max_size=2),
        "ClearCache": st.lists(NOISE, min_size=1, max_size=1),
    },
)
# Bits to flip in the answers as they are sent: the number of the answer, and the bit.
FLIPS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 400)), max_size=2)


class AnyShard(grpc.GenericRpcHandler):
    """Answers each call with the next of `answers`."""

    def __init__(self) -> None:
        self.begin({}, [])

    def begin(self, answers: dict[str, list[Any]], flips: Sequence[tuple[int, int]]) -> None:
        self.answers = {rpc: list(given) for rpc, given in answers.items()}
        self.flips = flips
        self.answered = 0
        self.ids: list[int] = []
        self.kept: set[int] = set()

    def service(self, handler_call_details: Any) -> Any:
        rpc = handler_call_details.method.rsplit("/", 1)[1]
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer(rpc, request, context))

    def answer(self, rpc: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        if rpc == "Prefill":
            batch = pb.PrefillRequest.FromString(request).batch
            self.kept.add(batch.id)
            self.ids = [one.id for one in batch.requests]
        if self.answers.get(rpc):
            answer = self.answers[rpc].pop(0)
        else:
            answer = pb.InfoResponse(requires_padding=True).SerializeToString() if rpc == "Info" else b""
            if rpc in ("Prefill", "Decode"):
                answer = Recipe(range(len(self.ids)))
            if rpc == "ClearCache":
                self.kept.discard(pb.ClearCacheRequest.FromString(request).id)
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "so\nit is")
        data = bytearray(answer.written(self.ids) if isinstance(answer, Recipe) else answer)
        for number, bit in self.flips:
            if number == self.answered and bit // 8 < len(data):
                data[bit // 8] ^= 1 << bit % 8
        self.answered += 1
        return bytes(data)


@pytest.fixture(scope="module")
def shard() -> Iterator[tuple[AnyShard, str]]:
    server = grpc.server(ThreadPoolExecutor(1))
    handler = AnyShard()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"127.0.0.1:{port}"
    server.stop(None).wait()


def probed(address: str) -> Result | Failure:
    prober = open_prober(Target(name="t", address=address, kv_cache="exclusive", max_batch_tokens=100))
    outcome: Result | Failure
    try:
        facts = prober.connect(5.0)
        assert len(facts.model) <= 200
        outcome = prober.probe(WORKLOAD, 2, lambda: False)
    except Failure as failure:
        outcome = failure
    for _ in range(2):  # one of its answers may be wrong
        try:
            prober.connect(5.0)
            prober.settle(5.0)
        except Failure:
            continue
    try:
        prober.close()
    except Failure as failure:
        outcome = failure
    return outcome


@fuzz
@given(answers=ANSWERS, flips=FLIPS)
def test_any_answers(shard: tuple[AnyShard, str], answers: dict[str, list[Any]], flips: list[tuple[int, int]]) -> None:
    handler, address = shard
    handler.begin(answers, flips)
    with ends((answers, flips)):
        outcome = probed(address)
    if isinstance(outcome, Failure):
        assert outcome.detail
        assert outcome.detail.isprintable()
        assert outcome.outcome is not Outcome.OK
    else:
        [stream] = outcome.streams
        assert all(step.tokens >= 0 and step.arrived >= step.asked for step in stream.steps)
