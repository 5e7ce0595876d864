"""The same users over real gRPC, on a shard in a process of its own, beside the real daemon, which is killed."""

import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.end_to_end.parts import SimulatedShard, daemon_running, simulated_shard, write_config
from tests.faults.live_traffic.shard_probing import padded, paged
from tests.faults.live_traffic.shared_shard import CallFailed, Harm
from tests.faults.live_traffic.users_router import UsersRouter
from tests.processes import wait_until
from tests.simulator.caller import Caller

PAGED = ("--attention", "paged", "--block-size", "16", "--max-batch-tokens", "640")
KINDS: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "reserved block": (paged(), PAGED, {"kv_cache": "reserved_block"}),
    "padded": (padded(), ("--max-batch-tokens", "4000"), {"max_batch_tokens": 700}),
}
# How a daemon ends, and the timeout of its probes. The short one ends most of them in the middle.
LIVES = ((signal.SIGKILL, "30ms"), (signal.SIGTERM, "20s"))
ALL_LIVES = (*LIVES, (signal.SIGKILL, "20s"), (signal.SIGTERM, "30ms"), *LIVES)
CALLS = 40  # of users between two looks at what the probes do
PROBES = 10  # Prefills in each life


class OverGrpc:
    """The users' way to the shard."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def call(self, method: str, request: Any) -> Any:
        """Raises CallFailed."""
        try:
            return self._caller.call(method, request)
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, str(error.details())) from None


def test_users_get_their_answers_beside_the_daemon(tmp_path: Path) -> None:
    beside_the_daemon("reserved block", LIVES, PROBES, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_users_get_their_answers_beside_the_daemon_for_a_long_time(kind: str, tmp_path: Path) -> None:
    beside_the_daemon(kind, ALL_LIVES, 5 * PROBES, tmp_path)


def beside_the_daemon(kind: str, lives: Sequence[tuple[signal.Signals, str]], probes: int, folder: Path) -> None:
    config, words, target = KINDS[kind]
    speed = ("--speed", "100000", "--kv-contents", "on")
    harm: list[Harm] = []
    with simulated_shard(f"unix://{folder}/shard", *words, *speed) as shard:
        caller = Caller(shard.address)
        router = UsersRouter(config, OverGrpc(caller).call, random.Random(0), harm)

        def users() -> None:
            for _ in range(CALLS):
                router.step()
            assert not harm, harm[0].text

        for number, (end, timeout) in enumerate(lives):
            work = {"batch_sizes": [1, 3], "sequence_length": 30, "interval": "20ms", "timeout": timeout, "warmups": 0}
            file = write_config(folder / f"{number}.yaml", shard.address, target, **work)
            with daemon_running(file) as daemon:
                until = prefills(shard, router) + probes
                while prefills(shard, router) < until:
                    users()
                    assert daemon.process.returncode is None, daemon.process.output
                daemon.process.send(end)
                daemon.process.wait()
            users()
        state = shard.state()
        assert state["died"] is None
        [rank] = state["ranks"]
        assert rank["clear_all_calls"] == 0
        assert {batch["id"] for batch in rank["batches"]} == router.batch_ids()
        caller.close()


def prefills(shard: SimulatedShard, router: UsersRouter) -> int:
    """How many Prefills of probes the shard has served."""
    return shard.calls("Prefill") - router.seen["Prefill"] - router.seen["health checks"]


def test_a_careless_client_over_grpc_is_noticed_by_users(tmp_path: Path) -> None:
    """The same with `kv_cache: exclusive`, which says that there are no users."""
    target = {"kv_cache": "exclusive", "max_batch_tokens": 640}
    harm: list[Harm] = []
    with simulated_shard(f"unix://{tmp_path}/shard", *PAGED, "--speed", "100000", "--kv-contents", "on") as shard:
        caller = Caller(shard.address)
        router = UsersRouter(paged(), OverGrpc(caller).call, random.Random(0), harm)
        file = write_config(tmp_path / "config.yaml", shard.address, target, interval="20ms", batch_sizes=[4])
        with daemon_running(file) as daemon:

            def noticed() -> bool:
                for _ in range(CALLS):
                    router.step()
                return bool(harm)

            wait_until(noticed, "users get wrong answers", shard.process, daemon.process)
        assert {one.kind for one in harm} == {"answer"}
        caller.close()
