"""A daemon that runs out of what its machine has: file descriptors, memory, disk. It says so once, and goes on."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.parts import Daemon, daemon_running
from tests.faults.daemon_parts import (
    Servers,
    bugs,
    document,
    log_lines,
    peak_memory,
    servers,
    write,
)
from tests.processes import TGI_PROBE, free_port, running, wait_until

MIB = 1 << 20
ATTEMPTS = "tgi_probe_attempts_total"
LATENCIES = ("tgi_probe_time_to_first_token_seconds_count", "tgi_probe_request_duration_seconds_count")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Servers]:
    with servers(tmp_path, "--speed", "100") as own:
        yield own


def failed(daemon: Daemon, target: str) -> float:
    ends = daemon.by_labels(ATTEMPTS, target=target)
    return sum(value for labels, value in ends.items() if dict(labels)["outcome"] not in ("ok", "disturbed"))


def test_without_file_descriptors_probes_fail_and_all_recovers_when_there_are_some(
    tmp_path: Path, own: Servers
) -> None:
    with daemon_running(write(tmp_path / "config.yaml", document(own.targets(), interval="200ms"))) as daemon:
        names = [target["name"] for target in own.targets()]
        for name in names:
            daemon.await_answers(2, target=name)
        kept = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        # The limit is for the numbers of new ones, and these are taken.
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (3, kept[1]))
        own.command("restart")  # every connection has to be opened again
        # A client waits in the queue of the listening socket, and the daemon is told so.
        with socket.create_connection(("127.0.0.1", daemon.port)) as waiting:
            wait_until(lambda: log_lines(daemon.process, "no connection can be accepted"), "it says so", daemon.process)
            for name in names:
                failure = f"probe failed: {name} "
                wait_until(lambda words=failure: log_lines(daemon.process, words), failure, daemon.process)  # type: ignore[misc]
            daemon.process.send(signal.SIGHUP)
            wait_until(lambda: log_lines(daemon.process, "reload refused"), "and so does a reload", daemon.process)
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, kept)
            waiting.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
            waiting.settimeout(60)
            assert waiting.recv(1000).startswith(b"HTTP/1.1 200")
        for name in names:
            assert failed(daemon, name) > 0
            before = sum(daemon.by_labels(ATTEMPTS, target=name).values()) - failed(daemon, name)
            daemon.await_answers(before + 2, target=name)
        assert len(log_lines(daemon.process, "no connection can be accepted")) == 1
        assert not bugs(daemon.process), daemon.process.output
        answers = sum(daemon.sum_of(ATTEMPTS, outcome=end) for end in ("ok", "disturbed"))
        for name in LATENCIES:
            assert daemon.sum_of(name) <= answers
        daemon.process.terminate()
        assert daemon.process.wait() == 0
    assert own.batches() == 0


def test_pages_for_a_hundred_scrapers_fit_into_a_small_pod(tmp_path: Path) -> None:
    """64 targets, which nobody answers for: their page has all series."""
    targets = [{"name": f"t{number}", "address": f"unix://{tmp_path}/none-{number}"} for number in range(64)]
    content = document(targets, batch_sizes=[1, 2, 4, 8], interval="30s")
    content["slos"] = [{"name": "fast", "workload": "chat", "ttft": "200ms"}]
    with daemon_running(write(tmp_path / "config.yaml", content)) as daemon:
        accepts: tuple[dict[str, str], ...] = (
            {},
            {"Accept-Encoding": "gzip"},
            {"Accept": "application/openmetrics-text;version=1.0.0"},
            {"Accept": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"},
        )

        def scrape(number: int) -> int:
            command = ["curl", "--silent", "--fail", "--output", os.devnull, "--write-out", "%{size_download}"]
            for header in accepts[number % len(accepts)].items():
                command += ["--header", ": ".join(header)]
            url = f"http://127.0.0.1:{daemon.port}/metrics"
            return int(subprocess.run([*command, url], capture_output=True, check=True, timeout=300).stdout)

        with ThreadPoolExecutor(16) as pool:
            sizes = list(pool.map(scrape, range(100)))
        assert max(sizes) > 2 * MIB
        assert peak_memory(daemon.process) < 192 * MIB  # the limit of the deployments in deploy/
        assert not bugs(daemon.process), daemon.process.output


# --- no room for the log, and beside the socket


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", ">/dev/full 2>&1", "2> >(true)"])
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, own: Servers, where: str) -> None:
    """A full disk, none at all, and a reader that has left."""
    port = free_port()
    content = document(own.targets())
    content["web"]["listen_address"] = f"127.0.0.1:{port}"
    config = write(tmp_path / "config.yaml", content)
    shell = ["bash", "-c", f'exec "$@" {where}', "bash"]
    with running([*shell, *TGI_PROBE, "run", "--config", str(config)]) as process:
        daemon = Daemon(process, port)
        for target in own.targets():
            daemon.await_answers(2, target=target["name"])
        own.command("fault?kind=unavailable")  # something to tell
        wait_until(lambda: failed(daemon, "http") > 0, "a failure", process)
        own.command("fault?kind=none")
        assert daemon.get("/-/reload", "POST").text == "reloaded\n"
        daemon.await_answers(daemon.sum_of(ATTEMPTS, target="http", outcome="ok") + 1, target="http")
        process.terminate()
        assert process.wait() == 0
    assert own.batches() == 0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where this process may mount one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_beside_the_socket_is_one_line_and_probing_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, servers(disk, "--speed", "100") as own:
        with (disk / "filling").open("wb", buffering=0) as filling, contextlib.suppress(OSError):
            while True:
                filling.write(b"x" * 4096)
        assert shutil.disk_usage(disk).free == 0
        with daemon_running(write(tmp_path / "config.yaml", document(own.targets()))) as daemon:
            daemon.await_answers(5, target="shard")
            daemon.process.terminate()
            assert daemon.process.wait() == 0
        said = [line for line in daemon.process.stderr.splitlines() if "No space left on device" in line]
        assert len(said) == 1, daemon.process.output
        assert not bugs(daemon.process), daemon.process.output
        assert own.batches() == 0
