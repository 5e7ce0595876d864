"""A daemon that is stopped or killed at a random instant: what is left in the servers, and what the next one does.

The instants are drawn from SEED. A failure names its own, so that it can be tried again.
"""

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from exporter.daemon.probed_targets import LONGEST_STOP_SECONDS
from tests.faults.daemon_parts import Servers, bugs, document, listening, servers, write
from tests.processes import TGI_PROBE, running, wait_until

SEED = 16
# Daemons that run at the same time, each with servers of its own.
AT_A_TIME = 3
# Slow enough that every kind of call is in flight at some instant.
SERVER = ("--speed", "4", "--jitter", "0.3")
LATEST = 1.5
# In parts, each with servers of its own. CI runs the first one.
STOPS, KILLS = 1000, 96


def parts(runs: int, size: int) -> list[ParameterSet]:
    return [
        pytest.param(range(first, first + size), id=f"from {first}", marks=[pytest.mark.faults] if first else [])
        for first in range(0, runs, size)
    ]


@pytest.fixture
def several(tmp_path: Path) -> Iterator[list[tuple[Servers, Path]]]:
    """Servers, and a configuration that probes them."""
    with ExitStack() as stack:
        found = []
        for number in range(AT_A_TIME):
            folder = tmp_path / str(number)
            folder.mkdir()
            own = stack.enter_context(servers(folder, *SERVER))
            content = document(own.targets(), batch_sizes=[1, 4], interval="0s")
            load = {"name": "users", "load": {"mode": "open", "rate": "20/s"}, "targets": ["fmaas", "http"]}
            content["workloads"].append({"sequence_length": 32, "decode_length": 8, **load})
            found.append((own, write(folder / "config.yaml", content)))
        yield found


def shared_out(several: list[tuple[Servers, Path]], runs: range, one_run: "type[StopRun] | type[KillRun]") -> None:
    def work(slot: int) -> None:
        for number in runs[slot::AT_A_TIME]:
            one_run(*several[slot], random.Random(f"{SEED} {number}"), number).run()

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(work, range(AT_A_TIME)))


class StopRun:
    """One daemon, stopped at a random instant after its start; some of them before they listen."""

    def __init__(self, own: Servers, config: Path, rng: random.Random, number: int) -> None:
        self.own, self.config, self.rng = own, config, rng
        self.name = f"run {number} of seed {SEED}"

    def run(self) -> None:
        with running((*TGI_PROBE, "run", "--config", str(self.config))) as process:
            early = self.rng.random() < 0.1
            if not early:
                listening(process)
            time.sleep(self.rng.uniform(0, LATEST))
            listened = "listening" in process.stderr
            process.send(signal.SIGTERM if early else self.rng.choice((signal.SIGTERM, signal.SIGINT)))
            asked = time.monotonic()
            code = process.wait(timeout=LONGEST_STOP_SECONDS + 10)
            took = time.monotonic() - asked
        said = f"{self.name}, after {took:.3f} s: {process.output}"
        # Before it handles signals it has sent nothing.
        assert code == 0 or (not listened and code == -signal.SIGTERM), said
        assert took < LONGEST_STOP_SECONDS, said
        assert not bugs(process), said
        assert self.own.batches() == 0, said
        wait_until(lambda: self.own.in_flight() == 0, f"no request is left: {said}", self.own.process)


class KillRun(StopRun):
    """One daemon, killed at a random instant, and then another one that lives until it has probed."""

    def run(self) -> None:
        command = (*TGI_PROBE, "run", "--config", str(self.config))
        with running(command) as process:
            listening(process)
            time.sleep(self.rng.uniform(0, LATEST))
            process.send(signal.SIGKILL)
            process.wait()
        # A call that was on its way arrives.
        wait_until(lambda: self.own.in_flight() == 0, f"the router notices: {self.name}", self.own.process)
        left = self.own.batches()
        assert left <= 1, f"{self.name}: {left} batches"
        with running(command) as process:
            daemon = listening(process)
            for target in ("shard", "fmaas", "http"):
                daemon.await_answers(1, target=target)
            process.terminate()
            assert process.wait() == 0, process.output
        assert not bugs(process), f"{self.name}: {process.output}"
        assert self.own.batches() == 0, f"{self.name}: {process.output}"
        assert self.own.died() is None, self.name


@pytest.mark.parametrize("runs", parts(STOPS, 25))
def test_a_stop_at_any_instant_ends_with_0_in_time_and_leaves_nothing(
    several: list[tuple[Servers, Path]], runs: range
) -> None:
    shared_out(several, runs, StopRun)


@pytest.mark.parametrize("runs", parts(KILLS, 6))
def test_a_kill_at_any_instant_leaves_one_batch_at_most_and_the_next_start_clears_it_and_probes(
    several: list[tuple[Servers, Path]], runs: range
) -> None:
    shared_out(several, runs, KillRun)
