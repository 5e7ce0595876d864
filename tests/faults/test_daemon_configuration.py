"""A configuration file that became something else, and 100 reloads in a row: what stays, and what may not grow."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.parts import Daemon, Key, daemon_running
from tests.faults.daemon_parts import (
    Servers,
    bugs,
    document,
    log_lines,
    open_files,
    peak_memory,
    servers,
    threads,
    write,
)
from tests.processes import ask, wait_until

REFUSED = "reload refused, the old configuration stays in force"
RELOADED = "tgi_probe_config_last_reload_successful"
RELOADS = 100
# Families with a series for each thing that has happened.
AS_THEY_COME = ("tgi_probe_withheld_values", "tgi_probe_attempts")
# gRPC's timers and the worker of a reload come and go, and so does a connection. A leak would be one for each reload.
MORE_THREADS, MORE_FILES = 2, 3
MIB = 1 << 20


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Servers]:
    with servers(tmp_path, "--speed", "100") as own:
        yield own


def garbage(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 40)


def nothing(file: Path) -> None:
    file.write_bytes(b"")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def missing(file: Path) -> None:
    file.unlink()


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def large(file: Path) -> None:
    """10 MB of valid YAML."""
    file.write_text("".join(f"key{number}: value\n" for number in range(600_000)))


def as_large_as_can_be(file: Path) -> None:
    """Each line is a mistake, and there are nearly as many as a file may have."""
    file.write_text("".join(f"k{number}:\n" for number in range(49_000)))


def nested(file: Path) -> None:
    file.write_text("[" * 20_000)


# What becomes of the file, and what the log says of it.
BECOMES: tuple[tuple[Callable[[Path], None], str], ...] = (
    (garbage, "is not UTF-8 text"),
    (nothing, "targets: must hold at least one target"),
    (folder, "cannot be read: Is a directory"),
    (pipe, "as from a pipe that nobody writes to"),
    (missing, "cannot be read: No such file or directory"),
    (loop, "cannot be read: Too many levels of symbolic links"),
    (endless, "is larger than 512 KiB"),
    (large, "is larger than 512 KiB"),
    (as_large_as_can_be, "more problems; is it the right file?"),
    (nested, "is nested too deeply"),
)


@pytest.mark.parametrize(("become", "said"), BECOMES, ids=[become.__name__ for become, _ in BECOMES])
def test_a_file_that_became_something_else_is_refused_and_the_old_configuration_stays(
    tmp_path: Path, own: Servers, become: Callable[[Path], None], said: str
) -> None:
    config = tmp_path / "config.yaml"
    content = document(own.targets())
    with daemon_running(write(config, content)) as daemon:
        daemon.await_answers(1, target="shard")
        in_force = daemon.get("/config").text
        become(config)
        reply = daemon.get("/-/reload", "POST")
        assert reply.status == 500
        assert said in reply.text
        assert len(reply.text.splitlines()) <= 52
        lines = len(reply.text.splitlines())
        wait_until(
            lambda: len(log_lines(daemon.process, REFUSED)) == lines, "a line of the log for each", daemon.process
        )
        assert daemon.sum_of(RELOADED) == 0
        assert daemon.get("/config").text == in_force
        before = sum(daemon.by_labels("tgi_probe_attempts_total", target="shard").values())
        daemon.await_answers(before + 2, target="shard")
        assert peak_memory(daemon.process) < 192 * MIB  # the limit of the deployments in deploy/
        # The right file is taken again.
        if config.is_dir():
            config.rmdir()
        else:
            config.unlink(missing_ok=True)
        write(config, content)
        assert daemon.get("/-/reload", "POST").text == "reloaded\n"
        assert daemon.sum_of(RELOADED) == 1
        assert not bugs(daemon.process), daemon.process.output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path, own: Servers) -> None:
    config = write(tmp_path / "config.yaml", document(own.targets()))
    with daemon_running(config) as daemon:
        config.chmod(0)
        reply = daemon.get("/-/reload", "POST")
        assert (reply.status, "Permission denied" in reply.text) == (500, True)


# --- many reloads


def generation(own: Servers, number: int) -> dict[str, Any]:
    """The shard under another name each time, another batch size, and one or two routers."""
    shard, fmaas, http = own.targets()
    shard["name"] = f"shard-{number % 5}"
    return document([shard, http, *([fmaas] if number % 2 else [])], batch_sizes=[1 + number % 3])


@dataclass(frozen=True, slots=True)
class Figures:
    files: int
    threads: int
    series: frozenset[Key]


def figures(daemon: Daemon) -> Figures:
    series = frozenset(key for key in daemon.samples() if not key[0].startswith(AS_THEY_COME))
    return Figures(open_files(daemon.process), threads(daemon.process), series)


def settled(daemon: Daemon, own: Servers, number: int) -> Figures:
    """The figures once this generation has been in force for some probes of each target."""
    names = [target["name"] for target in generation(own, number)["targets"]]

    def is_in_force() -> bool:
        asked = {dict(labels)["target"] for labels in daemon.by_labels("tgi_probe_target_up")}
        return asked == set(names)

    wait_until(is_in_force, "the last configuration is in force", daemon.process)
    for name in names:
        daemon.await_answers(3, target=name)
    return figures(daemon)


@pytest.mark.parametrize(
    "way", [pytest.param("SIGHUP", marks=pytest.mark.faults), pytest.param("POST", marks=pytest.mark.faults), "both"]
)
def test_a_hundred_reloads_in_a_row_leave_no_thread_file_series_or_batch(
    tmp_path: Path, own: Servers, way: str
) -> None:
    config = tmp_path / "config.yaml"
    last = RELOADS - 1
    with daemon_running(write(config, generation(own, last))) as daemon:
        url = f"http://127.0.0.1:{daemon.port}/-/reload"
        before = settled(daemon, own, last)

        def post() -> str:
            return ask(url, "POST", timeout=90.0).text

        with ThreadPoolExecutor(RELOADS) as pool:
            answers = []
            began = time.monotonic()
            for number in range(RELOADS):
                write(config, generation(own, number))
                if way == "SIGHUP" or (way == "both" and number % 2):
                    daemon.process.send(signal.SIGHUP)
                else:
                    answers.append(pool.submit(post))
                # Within a second; fewer where this machine is busy.
                time.sleep(max(0.0, began + number / RELOADS - time.monotonic()))
            assert {answer.result() for answer in answers} <= {"reloaded\n"}
        daemon.process.send(signal.SIGHUP)

        def is_as_before() -> bool:
            found = settled(daemon, own, last)
            assert not found.series ^ before.series
            assert found.threads <= before.threads + MORE_THREADS
            assert found.files <= before.files + MORE_FILES
            return True

        wait_until(is_as_before, "no more than before", daemon.process)
        assert daemon.sum_of(RELOADED) == 1
        assert not bugs(daemon.process), daemon.process.output
        daemon.process.terminate()
        assert daemon.process.wait() == 0
    assert own.batches() == 0
    assert own.died() is None
    wait_until(lambda: own.in_flight() == 0, "no request is left", own.process)
