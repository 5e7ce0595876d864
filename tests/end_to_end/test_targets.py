"""What the daemon does with each kind of shard: the older protocol, TCP, a paged KV cache with and without consent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard, write_config

QUICK = ("--speed", "1000", "--ranks", "2")


@contextmanager
def probed(
    folder: Path, words: tuple[str, ...], listen: str = "", target: dict[str, Any] | None = None, **workload: Any
) -> Iterator[tuple[SimulatedShard, Daemon]]:
    with simulated_shard(listen or f"unix://{folder}/shard", *QUICK, *words) as shard:
        config = write_config(folder / "config.yaml", shard.address, target, **workload)
        with daemon_running(config) as daemon:
            yield shard, daemon
        # The daemon has stopped: whatever the shard is, nothing of ours may be left in it.
        assert shard.batches() == 0
        assert [rank["clear_all_calls"] for rank in shard.state()["ranks"]] == [0, 0]
        assert shard.state()["died"] is None


def outcomes(daemon: Daemon) -> set[str]:
    """Every way in which an attempt has ended so far."""
    attempts = daemon.by_labels("tgi_probe_attempts_total")
    return {dict(labels)["outcome"] for labels, count in attempts.items() if count}


@pytest.mark.parametrize("protocol", ["v2", "v3"])
@pytest.mark.parametrize("listen", ["", "127.0.0.1:0"])
def test_both_protocols_are_probed_over_unix_sockets_and_tcp(tmp_path: Path, protocol: str, listen: str) -> None:
    with probed(tmp_path, ("--protocol", protocol), listen, batch_sizes=[1, 3]) as (_, daemon):
        daemon.await_sum("tgi_probe_attempts_total", 5, outcome="ok", batch_size="3")
        assert daemon.sum_of("tgi_probe_target_info", protocol=f"generate.{protocol}", ranks="2") == 1
        assert outcomes(daemon) <= {"ok", "disturbed"}


@pytest.mark.parametrize("protocol", ["v2", "v3"])
def test_a_paged_shard_without_consent_gets_not_one_prefill(tmp_path: Path, protocol: str) -> None:
    words = ("--attention", "paged", "--protocol", protocol)
    with probed(tmp_path, words, interval="1s") as (shard, daemon):
        daemon.await_sum("tgi_probe_attempts_total", 2, outcome="refused")
        assert outcomes(daemon) == {"refused"}
        assert daemon.sum_of("tgi_probe_target_up") == 1
        assert [rank["received"].get("Prefill", 0) for rank in shard.state()["ranks"]] == [0, 0]
        assert "set kv_cache: exclusive and max_batch_tokens if no router serves users here" in daemon.process.stderr


def test_the_reserved_block_keeps_a_probe_out_of_every_other_block(tmp_path: Path) -> None:
    words = ("--attention", "paged", "--block-size", "16")
    with probed(tmp_path, words, target={"kv_cache": "reserved_block"}, batch_sizes=[1, 4]) as (shard, daemon):
        daemon.await_sum("tgi_probe_attempts_total", 3, outcome="ok", batch_size="4")
        assert [rank["blocks_written"] for rank in shard.state()["ranks"]] == [[0], [0]]


def test_an_exclusive_paged_shard_is_probed(tmp_path: Path) -> None:
    exclusive = {"kv_cache": "exclusive", "max_batch_tokens": 1024}
    words = ("--attention", "paged", "--max-batch-tokens", "1024")
    with probed(tmp_path, words, target=exclusive) as (shard, daemon):
        daemon.await_sum("tgi_probe_attempts_total", 3, outcome="ok")
        assert len(shard.state()["ranks"][0]["blocks_written"]) > 1


def test_a_sidecar_needs_no_file(tmp_path: Path) -> None:
    with simulated_shard(f"unix://{tmp_path}/shard", *QUICK) as shard:
        environment = {
            "TGI_PROBE_TARGET": shard.address,
            "TGI_PROBE_BATCH_SIZES": "1,2",
            "TGI_PROBE_DECODE_LENGTH": "4",
            "TGI_PROBE_INTERVAL": "0s",
            "TGI_PROBE_TTFT_SLO": "123ms",
            "TGI_PROBE_WEB__LISTEN_ADDRESS": "127.0.0.1:0",
        }
        with daemon_running(None, environment) as daemon:
            daemon.await_sum("tgi_probe_slo_requests_total", 4, verdict="good", batch_size="2")
            assert daemon.sum_of("tgi_probe_slo_threshold_seconds", slo="ttft") == 0.123
            daemon.await_sum("tgi_probe_time_to_first_token_seconds_bucket", le="0.123")
