"""vLLM and SGLang over their own gRPC services, against servers with the generated code of others."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.probes.identify import identify
from exporter.probes.interface import Abandoned
from exporter.probes.opening import open_background
from exporter.probes.router.engine_protocol import EngineProtocol
from exporter.probes.router.engine_services import token_ids
from exporter.probes.router.prober import StreamProber
from exporter.probes.router.protocol import RouterProtocol
from tests.processes import Process, running, wait_until
from tests.real_parts import lacking
from tests.router import engine_peer
from tests.router.engine_peer import CACHED, CONTEXT, HANGS, MODEL, VOCABULARY
from tests.router.parts import workload

SERVICE_NAMES = {
    "vllm": "vllm.grpc.engine.VllmEngine",
    "sglang": "sglang.grpc.scheduler.SglangScheduler",
    "inference": "vllm.Inference",
    "generate": "vllm.Generate",
}
FLAVORS = tuple(SERVICE_NAMES)
LENGTH = 20


@dataclass(frozen=True, slots=True)
class Peer:
    flavor: str
    address: str
    file: Path
    process: Process

    def target(self, **keys: Any) -> Target:
        kind = "sglang" if self.flavor == "sglang" else "vllm"
        return Target.model_validate({"name": "engine", "kind": kind, "address": self.address, **keys})

    def prober(self, **keys: Any) -> "contextlib.closing[StreamProber]":
        target = self.target(**keys)
        return contextlib.closing(StreamProber(target, EngineProtocol(target)))

    def understood(self, what: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        return [line[what] for line in lines if what in line]

    def endless(self) -> list[str]:
        """The requests that it does not end by itself."""
        bounds = ("stopping", "sampling_params")
        wanted = [(one["request_id"], one.get(bounds[0]) or one[bounds[1]]) for one in self.understood("generate")]
        return [name for name, bound in wanted if 9 in bound.values()]

    def all_aborted(self) -> bool:
        """A request that the server refused, or has not seen yet, may be aborted as well."""
        return bool(self.aborted()) and set(self.endless()) <= set(self.aborted())

    def aborted(self) -> list[str]:
        found = self.understood("abort")
        return [one for abort in found for one in abort.get("request_ids", [abort.get("request_id")])]


@contextlib.contextmanager
def serving(flavor: str, folder: Path) -> Iterator[Peer]:
    if not (engine_peer.PEERS / "smg_grpc_proto").exists():
        lacking(f"smg-grpc-proto is not in {engine_peer.PEERS}; `make venv` puts it there")
    file = folder / f"{flavor}.jsonl"
    with running((sys.executable, "-m", "tests.router.engine_peer", flavor, str(file))) as process:
        wait_until(lambda: process.stdout.strip(), "the peer is up", process)
        yield Peer(flavor, f"127.0.0.1:{process.stdout.strip()}", file, process)


@pytest.fixture(params=FLAVORS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    with serving(request.param, tmp_path) as peer:
        yield peer


def sent(**keys: Any) -> Workload:
    return workload(sequence_length=LENGTH, decode_length=9, **keys)


def test_the_server_says_which_service_it_has(peer: Peer) -> None:
    with peer.prober() as prober:
        facts = prober.connect(5.0)
        assert prober.probe(sent(), 1, lambda: False).outcome is Outcome.OK
        known = prober.connect(5.0)
    assert known.protocol == SERVICE_NAMES[peer.flavor]
    assert facts.model == MODEL
    if peer.flavor in ("vllm", "sglang"):
        assert (facts.max_total_tokens, facts.max_input_tokens) == (CONTEXT, CONTEXT - 6)


def test_every_token_is_counted_once_and_at_its_message(peer: Peer) -> None:
    """Deltas, sums, a first message without a token, empty messages in between, and an end that repeats the last."""
    with peer.prober() as prober:
        prober.connect(5.0)
        result = prober.probe(sent(), 4, lambda: False)
    assert result.outcome is Outcome.OK, result.detail
    assert len(result.streams) == 4
    for stream in result.streams:
        assert sum(step.tokens for step in stream.steps) == 9
        assert stream.prompt_tokens == LENGTH
        assert not stream.prompt_estimated
        assert not stream.generated_estimated
        assert stream.cached_tokens == (CACHED if peer.flavor in ("vllm", "sglang") else None)
    if peer.flavor in ("vllm", "sglang"):
        assert result.corrections == 0  # a token for each id: nothing to find out


def test_the_server_understands_what_is_asked(peer: Peer) -> None:
    with peer.prober() as prober:
        prober.connect(5.0)
        prober.probe(sent(), 3, lambda: False)
    requests = peer.understood("generate")[-3:]
    assert len({request["request_id"] for request in requests}) == 3
    assert all(request["request_id"].startswith("tgi-probe-") for request in requests)
    for request in requests:
        if peer.flavor in ("vllm", "sglang"):
            ids = request["tokenized"]["input_ids"]
            assert len(ids) == LENGTH
            assert all(VOCABULARY // 4 <= one < VOCABULARY * 3 // 4 for one in ids)
            assert 8000 not in ids  # it ends answers
            assert request["stream"]
            bounds = request["sampling_params"]
            assert bounds["ignore_eos"]
            assert bounds.get("max_tokens", bounds.get("max_new_tokens")) == 9
            assert bounds.get("min_tokens", bounds.get("min_new_tokens")) == 9
            assert bounds["repetition_penalty"] == 1
            assert "data_parallel_rank" not in request
        else:
            assert request["stopping"] == {"max_new_tokens": 9, "min_new_tokens": 9, "ignore_eos": True}
            assert request["kv"] == {"bypass_prefix_cache": True}
            assert request["truncate_prompt_tokens"] == LENGTH
            assert request["model"] == MODEL
    assert len({json.dumps(request.get("tokenized", request.get("text"))) for request in requests}) == 3


def test_a_stream_that_ends_early_is_aborted_by_its_id(peer: Peer) -> None:
    """The server goes on when the stream is gone, until it is told."""
    late = workload(sequence_length=HANGS, decode_length=9, timeout="1s")
    with peer.prober() as prober:
        prober.connect(5.0)
        result = prober.probe(late, 2, lambda: False)
        assert len(prober.given_up) == 0
    assert result.outcome is Outcome.TIMEOUT
    assert peer.all_aborted()


def test_a_probe_that_is_cut_off_is_aborted_too(peer: Peer) -> None:
    with peer.prober() as prober:
        prober.connect(5.0)
        with pytest.raises(Abandoned):
            prober.probe(workload(sequence_length=HANGS, decode_length=9), 1, lambda: bool(peer.endless()))
        assert len(prober.given_up) == 0
    assert peer.all_aborted()


def test_what_could_not_be_aborted_is_aborted_at_the_next_connecting(tmp_path: Path) -> None:
    with serving("vllm", tmp_path) as peer, peer.prober() as prober:
        prober.connect(5.0)
        protocol = prober.given_up._protocol
        prober.given_up._protocol = cast(RouterProtocol, _Away())
        prober.probe(workload(sequence_length=HANGS, decode_length=9, timeout="0.3s"), 1, lambda: False)
        assert len(prober.given_up) == 1
        assert not peer.aborted()
        prober.given_up._protocol = protocol
        prober.connect(5.0)
        assert len(prober.given_up) == 0
        assert peer.all_aborted()


class _Away:
    """A protocol whose server is not reached."""

    def abort(self, request_ids: Any) -> Any:
        raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "nobody is there")


def test_a_load_that_ends_leaves_no_request(peer: Peer) -> None:
    shape = workload(sequence_length=HANGS, decode_length=9, timeout="0.4s")
    background = open_background(peer.target(), shape)
    background.connect(5.0)
    background._warm.want(1)  # type: ignore[attr-defined]
    sent, ended = 0, 0
    give_up = time.monotonic() + 20
    while ended < 1 and time.monotonic() < give_up:
        if not sent and background.send(None):
            sent = 1
        ended += len(background.poll(time.perf_counter() + 0.01))
    background.close()
    assert ended == 1
    assert peer.all_aborted()


def test_the_rank_is_asked_for(tmp_path: Path) -> None:
    for flavor in ("vllm", "sglang"):
        with serving(flavor, tmp_path) as peer, peer.prober(data_parallel_rank=3) as prober:
            prober.connect(5.0)
            prober.probe(sent(), 1, lambda: False)
            assert peer.understood("generate")[0]["data_parallel_rank"] == 3


def test_users_who_wait_are_seen_without_a_metrics_page(tmp_path: Path) -> None:
    for flavor in ("vllm", "sglang"):
        with serving(flavor, tmp_path) as peer, peer.prober(yield_to_users=True, data_parallel_rank=1) as prober:
            prober.connect(5.0)
            assert prober.users_wait()
            assert peer.understood("loads") == [{"dp_rank": 1}]


def test_where_no_load_is_told_yielding_says_what_to_set(tmp_path: Path) -> None:
    with serving("inference", tmp_path) as peer, peer.prober(yield_to_users=True) as prober:
        prober.connect(5.0)
        with pytest.raises(Failure, match="set metrics_url to its /metrics"):
            prober.users_wait()


def test_another_kind_of_server_is_named(tmp_path: Path) -> None:
    with serving("vllm", tmp_path) as peer:
        target = Target.model_validate({"name": "engine", "kind": "sglang", "address": peer.address})
        prober = StreamProber(target, EngineProtocol(target))
        with contextlib.closing(prober), pytest.raises(Failure, match="kind sglang; try kind: shard, fmaas or vllm"):
            prober.connect(5.0)


def test_ids_are_of_the_middle_of_the_vocabulary_and_one_for_each_word() -> None:
    special = frozenset(range(250, 260))
    ids = token_ids("able act add able", 1000, special, 3)
    assert len(set(ids)) == len(ids) == 3
    assert token_ids("able", 1000, special, 9) == ids[:1]
    assert not special & set(ids)
    with pytest.raises(Failure, match="vocabulary of 2 ids"):
        token_ids("able", 2, frozenset((0,)), 1)


def test_the_check_of_a_wrong_kind_names_the_right_one(peer: Peer) -> None:
    wrong = Target.model_validate({"name": "engine", "kind": "fmaas", "address": peer.address})
    found = identify(wrong, time.perf_counter() + 30)
    assert found is not None
    assert found.kind == peer.target().kind
    assert found.address == peer.address
