"""A daemon that has more to do than it can, or no CPU: it counts what it leaves out, answers, and is not wrong."""

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.disturbances import preferred
from benchmarks.processes import Server, addresses, socket_address
from tests.end_to_end.parts import Daemon, Key, daemon_running
from tests.faults.daemon_parts import Servers, bugs, document, servers, write
from tests.processes import TGI_PROBE, Process, wait_until
from tests.prometheus_server import prometheus_scraping

ATTEMPTS, SKIPPED = "tgi_probe_attempts_total", "tgi_probe_skipped_total"
WINDOW = 8.0
# While it has CPU for so long after each stop of that length.
STOPPED, RUNS = 0.4, 0.1
SERVICE = 0.005


def total(samples: dict[Key, float], name: str, **labels: str) -> float:
    return sum(value for (at, has), value in samples.items() if at == name and has >= frozenset(labels.items()))


def due(samples: dict[Key, float]) -> float:
    """What was due until then: started and skipped."""
    return total(samples, ATTEMPTS) + total(samples, SKIPPED)


def above(samples: dict[Key, float], name: str, seconds: float) -> float:
    """How many values of a histogram may be above so many seconds: above the first edge from there on."""
    edges = {float(dict(has)["le"]): dict(has)["le"] for at, has in samples if at == f"tgi_probe_{name}_seconds_bucket"}
    edge = edges[min(one for one in edges if one >= seconds)]
    return total(samples, f"tgi_probe_{name}_seconds_count") - total(
        samples, f"tgi_probe_{name}_seconds_bucket", le=edge
    )


class Timed:
    """A scrape between two instants."""

    def __init__(self, daemon: Daemon) -> None:
        self.began = time.perf_counter()
        self.samples = daemon.samples()
        self.ended = time.perf_counter()


def check_due(first: Timed, last: Timed, targets: int, interval: float) -> None:
    """Due = started + skipped. Each target may have a probe in flight, and what is due while it is is told after it."""
    found = due(last.samples) - due(first.samples)
    least, most = last.began - first.ended, last.ended - first.began
    longest = 2.0  # of a probe, and until a thread that waits for the interpreter has told its skips
    assert targets * (least - longest) / interval <= found <= targets * (most + longest) / interval


@pytest.fixture
def parallel_server(tmp_path: Path) -> Iterator[Server]:
    """It answers every client at the same time, and keeps its time."""
    with Server(socket_address(str(tmp_path)), SERVICE) as server:
        preferred(server.pid)
        yield server


@pytest.mark.parametrize(("number", "interval"), [(60, 0.03), pytest.param(200, 0.1, marks=pytest.mark.faults)])
def test_more_targets_than_a_daemon_can_serve_are_skipped_and_counted(
    tmp_path: Path, parallel_server: Server, number: int, interval: float
) -> None:
    found = addresses(parallel_server.address, number)
    targets = [{"name": f"t{at}", "address": address} for at, address in enumerate(found)]
    content = document(targets, decode_length=4, interval=f"{interval * 1000:g}ms")
    with daemon_running(write(tmp_path / "config.yaml", content)) as daemon:
        wait_until(lambda: daemon.get("/-/ready").status == 200, "every target had an attempt", daemon.process)
        first = Timed(daemon)
        until = time.monotonic() + WINDOW
        while time.monotonic() < until:
            assert daemon.get("/-/healthy").status == 200
        last = Timed(daemon)
        check_due(first, last, number, interval)
        assert {dict(has)["reason"] for (at, has), value in last.samples.items() if at == SKIPPED and value} == {"busy"}
        # What TgiProbeSkipped looks at. No start is later than an interval: by then it is skipped.
        skipped = total(last.samples, SKIPPED) - total(first.samples, SKIPPED)
        assert skipped > 0.25 * (due(last.samples) - due(first.samples))
        # Beside the server's own time, of what was recorded. The others were withheld.
        assert above(last.samples, "overhead", 0.05) == 0
        assert total(last.samples, ATTEMPTS, outcome="disturbed") > 0
        assert not bugs(daemon.process), daemon.process.output
        daemon.process.terminate()
        assert daemon.process.wait() == 0
    assert parallel_server.batches() == 0


# --- no CPU


@contextlib.contextmanager
def starved(process: Process, stopped: float = STOPPED, runs: float = RUNS) -> Iterator[None]:
    """In the block the process runs only now and then, as under a CPU limit that is far too low."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.wait(runs):
            process.send(signal.SIGSTOP)
            over.wait(stopped)
            process.send(signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        process.send(signal.SIGCONT)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Servers]:
    with servers(tmp_path, "--slowdown", "1", "--jitter", "0") as own:
        yield own


def late_alert(config: Path, scrape_interval: str) -> str:
    """The expression of TgiProbeLate, with windows of a twentieth."""
    options = ("--config", str(config), "--scrape-interval", scrape_interval, "--time-scale", "0.02")
    rules = subprocess.run([*TGI_PROBE, "rules", *options], capture_output=True, text=True, timeout=120, check=True)
    groups: list[dict[str, Any]] = yaml.safe_load(rules.stdout)["groups"]
    [found] = [rule["expr"] for group in groups for rule in group["rules"] if rule.get("alert") == "TgiProbeLate"]
    return str(found)


def test_a_daemon_without_cpu_counts_answers_and_says_that_it_is_late(tmp_path: Path, own: Servers) -> None:
    config = write(tmp_path / "config.yaml", document(own.targets(), interval="250ms", decode_length=16))
    expression = late_alert(config, "500ms")
    with (
        daemon_running(config) as daemon,
        prometheus_scraping(tmp_path / "prometheus", [daemon.port], "500ms") as prometheus,
    ):
        for target in own.targets():
            daemon.await_answers(2, target=target["name"])
        first = Timed(daemon)
        with starved(daemon.process):
            wait_until(lambda: prometheus.query(expression), "the alert's expression is true", prometheus.process)
            assert daemon.get("/-/healthy").status == 200
        last = Timed(daemon)
        check_due(first, last, len(own.targets()), 0.25)
        assert total(last.samples, "tgi_probe_withheld_values_total") > total(
            first.samples, "tgi_probe_withheld_values_total"
        )
        for name in ("time_to_first_token", "inter_token_latency", "time_per_output_token"):
            assert above(last.samples, name, STOPPED / 2) == above(first.samples, name, STOPPED / 2), name
        assert not bugs(daemon.process), daemon.process.output


@pytest.mark.parametrize("seconds", [5.0])
def test_a_stop_longer_than_the_timeout_of_a_probe_is_no_timeout_of_the_server(
    tmp_path: Path, own: Servers, seconds: float
) -> None:
    config = write(tmp_path / "config.yaml", document(own.targets(), interval="0s", timeout="2s", decode_length=64))
    with daemon_running(config) as daemon:
        for target in own.targets():
            daemon.await_answers(2, target=target["name"])
        for _ in range(2):
            before = {name["name"]: total(daemon.samples(), ATTEMPTS, target=name["name"]) for name in own.targets()}
            daemon.process.send(signal.SIGSTOP)
            until = time.monotonic() + seconds
            wait_until(lambda at=until: time.monotonic() > at, "it stood still")  # type: ignore[misc]
            daemon.process.send(signal.SIGCONT)
            for name, count in before.items():
                daemon.await_sum(ATTEMPTS, count + 2, target=name)
        samples = daemon.samples()
        ends = {dict(has)["outcome"] for (at, has), value in samples.items() if at == ATTEMPTS and value}
        assert ends <= {"ok", "disturbed"}, daemon.process.output
        assert total(samples, ATTEMPTS, outcome="disturbed") > 0
        for name in ("time_to_first_token", "inter_token_latency", "time_per_output_token", "request_duration"):
            assert above(samples, name, seconds / 2) == 0, name
        assert not bugs(daemon.process), daemon.process.output
    assert own.batches() == 0
