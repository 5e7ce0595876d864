"""What tgi-probe writes: nothing that every user can write, and nothing private that every user can read.

With umask 000, so that all depends on tgi-probe itself.
"""

import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.processes import TGI_PROBE, Process, free_port, running, wait_until

UNMASKED = ("/bin/bash", "-c", 'umask 000; exec "$@"', "bash")
SIMULATE = (*UNMASKED, *TGI_PROBE, "simulate")


def modes(folder: Path) -> Mapping[str, int]:
    """The permissions of everything below."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def shard(folder: Path) -> Sequence[str]:
    return (*SIMULATE, "--listen", f"unix://{folder}/shard", "--record", str(folder / "record.jsonl"))


def up(process: Process) -> None:
    wait_until(lambda: "listens on" in process.stdout, "it listens", process)


def writable(found: Mapping[str, int]) -> dict[str, str]:
    """What every user can write."""
    return {name: oct(mode) for name, mode in found.items() if mode & 0o002}


def test_a_simulated_shard_keeps_its_record_of_prompts_to_itself(tmp_path: Path) -> None:
    with running(shard(tmp_path)) as process:
        up(process)
        found = modes(tmp_path)
    assert found["record.jsonl"] == 0o600
    assert set(found) == {"shard-0", "record.jsonl"}
    assert not writable(found)


def test_the_daemon_writes_only_the_lock_beside_the_socket_for_those_who_may_connect(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    port = free_port()
    config.write_text(
        f"targets: [{{name: t, address: 'unix://{tmp_path}/shard-0'}}]\n"
        "workloads: [{name: w, sequence_length: 8, decode_length: 2, interval: 10ms}]\n"
        f"web: {{listen_address: '127.0.0.1:{port}'}}\n"
    )
    daemon = (*UNMASKED, *TGI_PROBE, "run", "--config", str(config))
    with running(shard(tmp_path)) as served, running(daemon, {"TMPDIR": str(tmp_path)}) as process:
        up(served)
        lock = tmp_path / ".shard-0.tgi-probe"
        wait_until(lock.exists, "a probe was sent", process, served)
        found = modes(tmp_path)
    assert set(found) == {"shard-0", "record.jsonl", "c.yaml", ".shard-0.tgi-probe"}
    assert found[".shard-0.tgi-probe"] == 0o660
    assert not writable(found)
    assert set(modes(tmp_path)) <= set(found)


def test_a_sweep_writes_reports_that_others_can_read_and_not_change(tmp_path: Path) -> None:
    with running(shard(tmp_path)) as served:
        up(served)
        outputs = [
            word for name in ("r.json", "r.md", "r.csv", "r.html") for word in ("--output", str(tmp_path / name))
        ]
        words = (
            "bench",
            "--target",
            f"unix://{tmp_path}/shard-0",
            "-b",
            "1",
            "-s",
            "8",
            "-d",
            "2",
            "-r",
            "1",
            "--quiet",
        )
        with running((*UNMASKED, *TGI_PROBE, *words, *outputs), {"TMPDIR": str(tmp_path)}) as process:
            assert process.wait() == 0, process.output
        found = modes(tmp_path)
    assert {name for name in found if name.startswith("r.")} == {"r.json", "r.md", "r.csv", "r.html"}
    assert not writable(found)


def test_the_demo_keeps_all_of_its_files_in_a_folder_of_its_own(tmp_path: Path) -> None:
    environment = {"TMPDIR": str(tmp_path), "PATH": str(Path(sys.executable).parent)}  # without Prometheus
    with running((*UNMASKED, *TGI_PROBE, "demo", "--port", "0"), environment) as process:
        wait_until(lambda: "Look at" in process.stdout, "the demo is up", process)
        [folder] = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not writable(modes(tmp_path))
        process.terminate()
        process.wait()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_the_users_own_umask_is_only_made_stricter(umask: str, tmp_path: Path) -> None:
    program = "import os; from exporter.cli import main; main(['check']); print(os.umask(0))"
    command = ("/bin/bash", "-c", f'umask {umask}; exec "$@"', "bash", sys.executable, "-c", program)
    with running(command) as process:
        process.wait()
    assert int(process.stdout.split()[-1]) == int(umask, 8) | 0o002
