"""What several ranks and a lost connection ask of the shard prober."""

import contextlib
import random
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.analysis.timeline import inter_token_latencies
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.probes.interface import Prober
from exporter.probes.opening import open_prober
from exporter.probes.shard.ranks import Ranks
from exporter.simulator import Fault, Shard
from tests.processes import wait_until
from tests.simulator.caller import fast


def workload(**keys: object) -> Workload:
    return Workload.model_validate({"name": "chat", "sequence_length": 32, "decode_length": 8, "timeout": "20s"} | keys)


def prober_of(shard: Shard) -> Prober:
    return open_prober(Target(name="t", address=shard.addresses[0]))


def batches(shard: Shard) -> list[int]:
    return [len(rank["batches"]) for rank in shard.state()["ranks"]]


def test_a_timeout_never_leaves_one_rank_waiting_for_another() -> None:
    """A call that one rank computes and another still had queued when it ran out would end the model."""
    chance = random.Random(1)
    with Shard(fast(ranks=2, rank_timeout=1.0)) as shard:
        prober = prober_of(shard)
        ends = set()
        for _ in range(150):
            prober.connect(5.0)
            prober.settle(5.0)
            timeout = f"{chance.uniform(1, 25):.3f}ms"
            try:
                prober.probe(workload(timeout=timeout), 2, lambda: False)
                ends.add(Outcome.OK)
            except Failure as failure:
                ends.add(failure.outcome)
        prober.close()
        assert shard.died is None
        assert batches(shard) == [0, 0]
        assert Outcome.TIMEOUT in ends


def test_with_speculation_no_token_waits_longer_than_its_step() -> None:
    with Shard(fast(speculate=3, seed=3)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        (stream,) = prober.probe(workload(decode_length=40), 16, lambda: False).streams
        prober.close()
        steps = [step for step in stream.steps[1:] if step.tokens]
        assert {step.requests for step in steps} != {16}, "all requests ended together: nothing is shown"
        for step, latency in zip(steps, inter_token_latencies(stream), strict=True):
            assert latency <= step.arrived - step.asked


def test_a_debt_is_paid_on_every_rank_however_often_connecting_failed_meanwhile() -> None:
    with Shard(fast(ranks=2)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        shard.fault(Fault("hang", method="Decode"))
        with pytest.raises(Failure):
            prober.probe(workload(timeout="100ms"), 1, lambda: False)
        for _ in range(2):
            with pytest.raises(Failure):
                prober.connect(0.1)
            with pytest.raises(Failure):
                prober.settle(0.1)
        shard.fault(None)
        prober.close()
        assert batches(shard) == [0, 0]


def test_each_further_rank_has_a_thread_until_the_prober_closes() -> None:
    before = set(threading.enumerate())

    def ranks() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - before if thread.name == "rank"]

    with Shard(fast(ranks=3)) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
        (stream,) = prober.probe(workload(decode_length=4), 1, lambda: False).streams
        assert {step.ranks for step in stream.steps} == {3}
        assert len(threads := ranks()) == 2
        assert all(thread.daemon for thread in threads), "a hung call must not keep the process alive"
        prober.close()
        wait_until(lambda: not ranks(), "they end")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_call_after_the_end_of_the_connection_fails_at_once(ranks: int) -> None:
    closed = Ranks([f"127.0.0.1:{number + 1}" for number in range(ranks)], "generate.v3")
    closed.close()
    for call in (closed.call, closed.call_first):
        with pytest.raises(Failure, match="we closed the connection"):
            call("Info", b"", 60.0)


def test_a_restart_between_two_calls_is_noticed(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard")) as shard:
        prober = prober_of(shard)
        before = prober.connect(5.0)
        assert prober.connect(5.0) == before
        shard.restart()
        assert prober.connect(5.0) != before
        prober.close()


class Relay:
    """Before a shard, as a service or a proxy is; when it restarts, connections end without a word."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, server = self._listener.accept()[0], socket.create_connection(self._server)
                self._ends += (client, server)
                for source, drain in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, drain), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, drain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                drain.sendall(data)

    def lose_connections(self) -> None:
        while self._ends:
            end = self._ends.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.lose_connections()


def test_a_server_is_not_held_for_away_because_an_old_connection_to_it_is() -> None:
    with Shard(fast(listen="127.0.0.1:0")) as shard, contextlib.closing(Relay(shard.addresses[0])) as relay:
        prober = open_prober(Target(name="t", address=relay.address))
        for _ in range(10):
            before = prober.connect(5.0)
            relay.lose_connections()
            assert replace(prober.connect(5.0), connection=()) == replace(before, connection=())
        prober.close()


def test_a_server_that_stays_away_is_unreachable_at_once(tmp_path: Path) -> None:
    with Shard(fast(listen=f"unix://{tmp_path}/shard")) as shard:
        prober = prober_of(shard)
        prober.connect(5.0)
    with pytest.raises(Failure) as found:
        prober.connect(5.0)
    assert found.value.outcome is Outcome.UNREACHABLE
    prober.close()
