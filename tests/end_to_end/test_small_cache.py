"""The README's own configuration on a paged shard with a small cache: whatever its limit says, the shard lives on."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import generate
from exporter.cli import main
from exporter.simulator import Config
from tests.end_to_end.parts import ANSWERED, Daemon, daemon_running
from tests.processes import wait_until
from tests.simulator.caller import fast
from tests.simulator.supervised import supervised

README = Path(generate.__file__).parent.parent / "README.md"
# 154 blocks of 64; a request of 512 + 64 tokens takes 9 of them.
CACHE = 9856


def readme(config: Config, max_batch_tokens: int | None = None, **target: Any) -> dict[str, Any]:
    """What stands in the README, for a shard here, and in less time."""
    [text] = re.findall(r"```yaml\n(# tgi-probe\.yaml\n.*?)```", README.read_text("utf-8"), re.DOTALL)
    document: dict[str, Any] = yaml.safe_load(text)
    document["targets"][0] |= {"address": f"{config.listen}-0"} | target
    if max_batch_tokens is not None:
        document["targets"][0]["max_batch_tokens"] = max_batch_tokens
    document["workloads"][0]["interval"] = "600ms"
    document["slos"][0]["ttft"] = "30s"  # on a busy machine this shard is slow
    document |= {"max_duty_cycle": 1, "web": {"listen_address": "127.0.0.1:0", "enable_reload": True}}
    return document


def small(folder: Path) -> Config:
    return fast(attention="paged", block_size=64, max_batch_tokens=CACHE, listen=f"unix://{folder}/shard")


def sizes(daemon: Daemon, name: str, **labels: str) -> set[int]:
    found = daemon.by_labels(name, **labels)
    return {int(dict(has)["batch_size"]) for has, value in found.items() if value}


@pytest.mark.parametrize(
    ("max_batch_tokens", "measured"), [(None, {1, 2, 4, 8}), (CACHE, {1, 2, 4, 8, 16}), (9 * 64 * 32, None)]
)
def test_what_fits_is_measured_and_the_rest_is_named(
    tmp_path: Path, max_batch_tokens: int | None, measured: set[int] | None
) -> None:
    config, file = small(tmp_path), tmp_path / "config.yaml"
    file.write_text(json.dumps(readme(config, max_batch_tokens)))
    lives_at_most = 1 if measured else 2  # a wrong limit is found out once
    measured = measured or {1, 2, 4, 8, 16}
    with supervised(config) as lives:
        with daemon_running(file) as daemon:
            for size in measured:
                daemon.await_answers(2, batch_size=str(size))
            assert len(lives) == lives_at_most
            assert (
                set().union(*(sizes(daemon, "tgi_probe_attempts_total", outcome=end) for end in ANSWERED)) == measured
            )
            for size in {1, 2, 4, 8, 16, 32} - measured:
                named = rf"batch size {size} is never sent|batch size {size} \(\d+ tokens of KV cache\)"
                assert re.search(named, daemon.process.stderr), daemon.process.stderr
        assert sum(len(rank["batches"]) for rank in lives[-1].state()["ranks"]) == 0


def test_a_quarantine_is_in_the_metrics_outlives_a_reload_and_ends_with_a_changed_limit(tmp_path: Path) -> None:
    config, file = small(tmp_path), tmp_path / "config.yaml"
    file.write_text(json.dumps(readme(config, 100_000)))
    with supervised(config) as lives, daemon_running(file) as daemon:
        daemon.await_sum("tgi_probe_attempts_total", 2, outcome="quarantined", code="QUARANTINED")
        assert sizes(daemon, "tgi_probe_quarantined") == {32}
        file.write_text(json.dumps(readme(config, 100_000, labels={"zone": "a"})))
        assert daemon.get("/-/reload", "POST").status == 200
        daemon.await_sum("tgi_probe_attempts_total", 3, outcome="quarantined", zone="a")
        daemon.await_answers(3, zone="a", batch_size="16")
        assert len(lives) == 2
        assert daemon.sum_of("tgi_probe_slo_requests_total", verdict="bad") == 0
        file.write_text(json.dumps(readme(config, CACHE, labels={"zone": "a"})))
        assert daemon.get("/-/reload", "POST").status == 200
        wait_until(lambda: not sizes(daemon, "tgi_probe_quarantined"), "it is released", daemon.process)
        daemon.await_sum("tgi_probe_skipped_total", 1, reason="unsafe", batch_size="32")
        assert len(lives) == 2


def test_a_quarantine_outlives_a_restart_and_ends_with_a_changed_limit_or_without_its_file(tmp_path: Path) -> None:
    config, file = small(tmp_path), tmp_path / "config.yaml"
    file.write_text(json.dumps(readme(config, 100_000)))
    with supervised(config) as lives:
        for started in range(3):
            with daemon_running(file) as daemon:
                daemon.await_sum("tgi_probe_attempts_total", 2, outcome="quarantined", batch_size="32")
                daemon.await_answers(2, batch_size="16")
                assert daemon.process.stderr.count("the server ended at") == 1
            assert len(lives) == 2, started
        [kept] = tmp_path.glob(".shard-0.tgi-probe")
        assert json.loads(kept.read_text())["quarantine"]["max_batch_tokens: 100000"]["batch_size"] == 32
        flags = ["--kv-cache", "exclusive", "--max-batch-tokens", str(CACHE), "--runs", "1", "--format", "csv"]
        assert main(["bench", "--target", f"{config.listen}-0", *flags, "--batch-size", "1"]) == 0
        with daemon_running(file) as daemon:  # whatever limits others have
            daemon.await_sum("tgi_probe_attempts_total", 1, outcome="quarantined", batch_size="32")
        assert len(lives) == 2
        file.write_text(json.dumps(readme(config, CACHE)))
        with daemon_running(file) as daemon:
            daemon.await_sum("tgi_probe_skipped_total", 1, reason="unsafe", batch_size="32")
            daemon.await_answers(1, batch_size="16")
            assert not sizes(daemon, "tgi_probe_attempts_total", outcome="quarantined")
        assert len(lives) == 2
        kept.unlink()
        file.write_text(json.dumps(readme(config, 100_000)))
        with daemon_running(file) as daemon:
            daemon.await_sum("tgi_probe_attempts_total", 1, outcome="quarantined", batch_size="32")
            assert len(lives) == 3


def test_bench_does_not_send_again_what_ended_the_server_and_neither_does_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path)
    options = ["--target", f"{config.listen}-0", "--kv-cache", "exclusive", "--max-batch-tokens", "100000"]
    options += [
        "--sequence-length",
        "512",
        "--decode-length",
        "64",
        "--runs",
        "1",
        "--warmups",
        "0",
        "--format",
        "json",
    ]
    with supervised(config) as lives:
        assert main(["bench", *options, "--batch-size", "32"]) == 1
        assert "the server ended during this probe" in capsys.readouterr().err
        wait_until(lambda: len(lives) == 2, "the server is back")
        assert main(["bench", *options, "--batch-size", "16", "--batch-size", "32"]) == 1
        assert "batch size 32: quarantined (QUARANTINED): the server ended at" in capsys.readouterr().err
        file = tmp_path / "config.yaml"
        file.write_text(json.dumps(readme(config, 100_000)))
        with daemon_running(file) as daemon:
            daemon.await_sum("tgi_probe_attempts_total", 1, outcome="quarantined", batch_size="32")
        assert len(lives) == 2


def test_check_warns_of_a_limit_that_is_missing_and_of_what_is_over_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    document = readme(small(tmp_path), 9856)
    file.write_text(json.dumps(document))
    assert main(["check", "--config", str(file)]) == 0
    assert "batch size 32 is never sent: batch_size x (sequence_length + decode_length)" in capsys.readouterr().err
    del document["targets"][0]["max_batch_tokens"]
    file.write_text(json.dumps(document))
    assert main(["check", "--config", str(file)]) == 0
    said = capsys.readouterr().err
    assert "warning: target llama: kv_cache: exclusive without max_batch_tokens" in said
    assert "Setting max batch total tokens to" in said
