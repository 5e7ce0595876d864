"""A daemon that is stopped in the middle of its probes: what it missed is no latency of the server."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.parts import Daemon, daemon_running, simulated_shard
from tests.processes import wait_until
from tests.router.parts import simulated_router

STOP = 1.0
# Nothing on these servers takes so long.
LONG = STOP / 2


@pytest.fixture(params=["shard", "fmaas", "http"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    kind = str(request.param)
    slow = ("--slowdown", "4", "--jitter", "0")
    with simulated_shard(f"unix://{tmp_path}/shard", *slow) as shard, simulated_router(*slow) as router:
        target = {
            "shard": {"address": shard.address},
            "fmaas": {"kind": "fmaas", "address": router.grpc},
            "http": {"kind": "http", "address": f"http://{router.http}", "api": "completions"},
        }[kind]
        workload = {"name": "chat", "sequence_length": 32, "decode_length": 16, "batch_sizes": [1], "interval": "0s"}
        users = {"name": "users", "sequence_length": 32, "decode_length": 16, "load": {"mode": "open", "rate": "2/s"}}
        document = {
            "targets": [{"name": "t", **target}],
            "workloads": [workload] if kind == "shard" else [workload, users],
            "max_duty_cycle": 1,
            "histograms": {"classic": "fine"},  # an edge near LONG
            "web": {"listen_address": "127.0.0.1:0"},
        }
        config = tmp_path / "config.yaml"
        config.write_text(json.dumps(document))  # JSON is YAML
        with daemon_running(config) as daemon:
            yield daemon


def stopped(daemon: Daemon) -> None:
    daemon.process.send(signal.SIGSTOP)
    until = time.monotonic() + STOP
    wait_until(lambda: time.monotonic() > until, "it stood still")
    daemon.process.send(signal.SIGCONT)


def too_long(daemon: Daemon, name: str) -> float:
    """Values that only the stop can explain."""
    edges: dict[float, float] = {}
    for labels, value in daemon.by_labels(f"tgi_probe_{name}_seconds_bucket").items():
        edge = float(dict(labels)["le"])
        edges[edge] = edges.get(edge, 0.0) + value
    return edges[float("inf")] - max(value for edge, value in edges.items() if edge <= LONG)


def test_a_stop_in_the_middle_of_probes_is_withheld_and_counted_and_never_the_servers_latency(daemon: Daemon) -> None:
    daemon.await_sum("tgi_probe_attempts_total", 2, outcome="ok", workload="chat")
    before = daemon.sum_of("tgi_probe_withheld_values_total")
    for _ in range(3):
        ok = daemon.sum_of("tgi_probe_attempts_total", workload="chat")
        stopped(daemon)
        daemon.await_sum("tgi_probe_attempts_total", ok + 2, workload="chat")
    assert daemon.sum_of("tgi_probe_withheld_values_total") > before
    assert daemon.sum_of("tgi_probe_read_delay_seconds_bucket", le="+Inf") > daemon.sum_of(
        "tgi_probe_read_delay_seconds_bucket", le="0.1"
    )
    assert daemon.sum_of("tgi_probe_inter_token_latency_seconds_count") > 0
    for name in ("time_to_first_token", "inter_token_latency", "time_per_output_token"):
        assert too_long(daemon, name) == 0, name
    assert daemon.sum_of("tgi_probe_attempts_total", outcome="timeout") == 0
    assert daemon.sum_of("tgi_probe_schedule_lateness_seconds_count") > 0
