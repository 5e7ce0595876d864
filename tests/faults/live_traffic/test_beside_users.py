"""Probes beside real users, under random faults: users' KV blocks, batches and answers stay as they are."""

from pathlib import Path
from typing import Any

import pytest

from exporter.simulator import Config
from tests.faults.live_traffic.routed_probing import RoutedProbes
from tests.faults.live_traffic.shard_probing import LiveShard, padded, paged

RESERVED = {"kv_cache": "reserved_block"}
LIMITED = {"max_batch_tokens": 700}
KINDS: dict[str, tuple[Config, dict[str, Any]]] = {
    "reserved block": (paged(), RESERVED),
    "reserved block of 1": (paged(block_size=1, max_batch_tokens=640), RESERVED),
    "reserved block of 64, speculation": (paged(block_size=64, max_batch_tokens=40 * 64, speculate=2), RESERVED),
    "padded v3": (padded(), LIMITED),
    "padded v2": (padded(protocol="v2"), LIMITED),
}
FAULTS = (
    *("expired in the queue", "refused", "exhausted", "server error", "cancelled", "timeout", "connection lost"),
    *("unknown", "garbage", "other requests", "missing generation", "server restarted"),
    *("killed before a call", "killed after a call"),
)
# 100,000 steps of each kind, in parts that end within the time of a test on a busy machine.
PARTS, STEPS = range(4), 25_000


def lived(kind: str, steps: int, seed: int, folder: Path) -> LiveShard:
    config, target = KINDS[kind]
    live = LiveShard(seed, folder, config, target)
    live.run(steps)
    assert not live.harm, f"seed {seed}: {live.harm[0].kind}: {live.harm[0].text}"
    assert not live.shard.ours(), f"seed {seed}: batches of probes are left in the shard"
    return live


@pytest.mark.parametrize("kind", KINDS)
def test_probes_leave_users_alone(kind: str, tmp_path: Path) -> None:
    live = lived(kind, 1_000, 0, tmp_path)
    assert live.outcomes["ok"] > 5
    assert live.router.seen["answered"] > 20


def test_a_seed_replays_a_run(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        folder = tmp_path / name
        folder.mkdir()
        live = lived("reserved block", 1_000, seed, folder)
        runs.append((live.shard.calls, live.seen, live.outcomes, live.router.seen, live.random.random()))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.faults
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_probes_leave_users_alone_for_a_long_time(kind: str, part: int, tmp_path: Path, seed: int) -> None:
    live = lived(kind, STEPS, seed, tmp_path)
    print(dict(live.shard.calls), dict(live.outcomes), dict(live.seen), dict(live.router.seen), sep="\n")
    assert all(live.seen[fault] for fault in FAULTS)


ROUTED = {
    "tgi": {"kind": "http", "address": "http://router:80"},
    "completions": {"kind": "http", "address": "http://router:80", "api": "completions", "model": "m"},
    "chat": {"kind": "http", "address": "http://router:80", "api": "chat", "model": "m"},
    "fmaas": {"kind": "fmaas", "address": "router:8033"},
}


def routed(api: str, steps: int, seed: int, folder: Path) -> RoutedProbes:
    probes = RoutedProbes(seed, folder, paged(), ROUTED[api])
    probes.run(steps)
    assert not probes.harm, f"seed {seed}: {probes.harm[0].kind}: {probes.harm[0].text}"
    assert set(probes.shard.calls) == {"users"}
    return probes


@pytest.mark.parametrize("api", ROUTED)
def test_probes_through_the_router_leave_users_alone(api: str, tmp_path: Path) -> None:
    probes = routed(api, 500, 0, tmp_path)
    assert probes.router.seen["answered"] > 10
    assert probes.seen["given up"] > 0


def test_a_seed_replays_a_run_through_the_router_too(tmp_path: Path) -> None:
    runs = [routed("chat", 500, seed, tmp_path) for seed in (7, 7, 8)]
    found = [(run.shard.calls, run.seen, run.router.seen, run.random.random()) for run in runs]
    assert found[0] == found[1] != found[2]


@pytest.mark.faults
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("api", ROUTED)
def test_probes_through_the_router_leave_users_alone_for_a_long_time(
    api: str, part: int, tmp_path: Path, seed: int
) -> None:
    probes = routed(api, STEPS, seed, tmp_path)
    assert probes.seen["server restarted"] > 0
