"""Whether recorded values stay true while the daemon is stopped, throttled, or short of processors.

Each value is held against the server's own record. The servers and the bare client have processes of their own with a
higher priority, so that their record is what was on the wire.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bare import BareClient
from benchmarks.processes import Server, Subject, socket_address
from benchmarks.report import Part, Reach, Table, median, milliseconds

SERVICE_SECONDS = 0.02
DECODE_LENGTHS = {"chat": 24, "users": 16}
ROUTER = (
    *("-m", "exporter", "simulate", "--router-http", "127.0.0.1:0", "--router-grpc", "127.0.0.1:0"),
    *("--admin-address", "127.0.0.1:0", "--slowdown", "3", "--jitter", "0.1", "--record-limit", "100000"),
)
SETTLE_SECONDS = 2.0
# The error that a recorded value may have: a share of it, and this many times the bare client's median; at least the
# 3 ms of one slice of the scheduler.
LIMIT_SHARE, LIMIT_RATIO, FLOOR_SECONDS = 0.02, 8, 0.003
BARE_SECONDS = 0.055
# The longest time from sending a request until the server has it.
ON_THE_WAY = 0.1
CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
CGROUP_V1 = Path("/sys/fs/cgroup/cpu")
RUN_SECONDS, STOP_SECONDS = 0.03, 0.07


# --- disturbances


def nothing(pid: int, until: float) -> str:
    time.sleep(until - time.perf_counter())
    return ""


def stutter(pid: int, until: float, stop: float = STOP_SECONDS, run: float = RUN_SECONDS) -> str:
    """SIGSTOP and SIGCONT: what a CPU limit does to a busy pod."""
    try:
        while time.perf_counter() < until:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(stop)
            os.kill(pid, signal.SIGCONT)
            time.sleep(run)
    finally:
        os.kill(pid, signal.SIGCONT)
    return ""


def long_stops(pid: int, until: float) -> str:
    """Stopped for 2 s, then left alone for 1.7 s."""
    return stutter(pid, until, 2.0, 1.7)


def quota(pid: int, until: float) -> str:
    """0.2 cores for the daemon and a busy process in one control group.

    Where no control group may be made, the daemon is stopped for 80 of each 100 ms instead.
    """
    group = _limited()
    if group is None:
        stutter(pid, until, 0.08, 0.02)
        return "no permission to make a control group: stopped for 80 of each 100 ms instead"
    with _burning(1, until) as burners:
        try:
            for process in (pid, *(burner.pid for burner in burners)):
                (group / "cgroup.procs").write_text(str(process))
            time.sleep(until - time.perf_counter())
        finally:
            for one in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (group.parent / "cgroup.procs").write_text(one)
    group.rmdir()
    return "by the kernel's cpu controller"


def _limited() -> Path | None:
    """A new control group that may use 0.2 cores."""
    ways = [(place, "cpu.max", "20000 100000") for place in CGROUPS] + [(CGROUP_V1, "cpu.cfs_quota_us", "20000")]
    for parent, key, value in ways:
        group = parent / f"tgi-probe-bench-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            if (group / key).exists():
                (group / key).write_text(value)
                return group
            group.rmdir()
    return None


@contextmanager
def _burning(count: int, until: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that keep a core busy each, until then at the latest."""
    burn = f"import time\nend = time.perf_counter() + {until - time.perf_counter()}\nwhile time.perf_counter() < end: 0"
    burners = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(count)]
    try:
        yield burners
    finally:
        for burner in burners:
            burner.wait()


def neighbour(pid: int, until: float) -> str:
    """A busy process for every core."""
    with _burning(os.cpu_count() or 1, until):
        time.sleep(until - time.perf_counter())
    return ""


SITUATIONS: dict[str, Callable[[int, float], str]] = {
    "calm": nothing,
    "stopped 70 of each 100 ms": stutter,
    "stopped for 2 s": long_stops,
    "CPU quota of 0.2 cores": quota,
    "neighbour on every core": neighbour,
}


# --- errors


@dataclass(slots=True)
class Deviations:
    """Deviations of the values that were recorded and of those withheld: divided by what is allowed, and in seconds."""

    bare: float  # the bare client's median added delay meanwhile, seconds
    recorded: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"ttft": [], "gap": []})
    withheld: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {"ttft": [], "gap": []})
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, measure: str, value: float, certain: bool, true: float) -> None:
        error = abs(value - true)
        kept = self.recorded if certain else self.withheld
        allowed = max(FLOOR_SECONDS, LIMIT_RATIO * self.bare) + LIMIT_SHARE * true
        kept[measure].append((error / allowed, error))

    def row(self, kind: str, situation: str) -> tuple[str, ...]:
        count, away = (sum(map(len, kept.values())) for kept in (self.recorded, self.withheld))
        probes = sum(self.outcomes.values())
        over = [share for kept in self.recorded.values() for share, _ in kept if share > 1]
        cells = [_highest(self.recorded[measure]) for measure in ("ttft", "gap")]
        everything = _highest(
            [pair for kept in (self.recorded, self.withheld) for pairs in kept.values() for pair in pairs]
        )
        return (
            *(kind, situation, *cells, milliseconds(self.bare), str(Reach(len(over), 0)), everything),
            f"{away / (count + away):.2%}" if count + away else "–",
            *(str(count), str(probes), f"{self.outcomes['ok'] / probes:.0%}" if probes else "–"),
        )


def _highest(pairs: list[tuple[float, float]]) -> str:
    return milliseconds(max(error for _, error in pairs)) if pairs else "–"


def of_shard(observations: list[dict[str, Any]], bare: float) -> Deviations:
    """The true time of a call is the server's own total; the transport is part of the error."""
    errors = Deviations(bare)
    for observation in observations:
        errors.outcomes[observation["outcome"]] += 1
        totals = [total for _, _, total in observation["steps"]]
        for stream in observation["streams"]:
            ok = observation["outcome"] == "ok"
            seconds, certain = stream["ttft"]
            errors.add("ttft", seconds, certain and ok, totals[0])
            for (seconds, certain), total in zip(stream["gaps"], totals[1:], strict=True):
                errors.add("gap", seconds, certain and ok, total)
    return errors


def of_router(observations: list[dict[str, Any]], record: list[dict[str, Any]], bare: float) -> Deviations:
    """Finds the record of a request by its length and the instant of sending: of each length one is sent at a time."""
    errors = Deviations(bare)
    entries = {
        length: sorted((e for e in record if e["max_new_tokens"] == length), key=lambda e: int(e["received_ns"]))
        for length in DECODE_LENGTHS.values()
    }
    for observation in observations:
        errors.outcomes[observation["outcome"]] += 1
        ours = entries[DECODE_LENGTHS[observation["workload"]]]
        received = [entry["received_ns"] / 1e9 for entry in ours]
        for stream in observation["streams"]:
            found = bisect_left(received, stream["sent"])
            if stream["ttft"] is None or found == len(ours) or received[found] > stream["sent"] + ON_THE_WAY:
                continue
            compare(errors, stream, ours[found], observation["outcome"] == "ok")
    return errors


def compare(errors: Deviations, stream: dict[str, Any], entry: dict[str, Any], ok: bool) -> None:
    """Adds the errors of one stream. Tokens that were read together share their wait evenly."""
    at = [instant / 1e9 for instant in entry["token_ns"]]
    seconds, certain = stream["ttft"]
    errors.add("ttft", seconds, certain and ok, at[0] - entry["received_ns"] / 1e9)
    last = stream["tokens"][0] - 1
    for (seconds, certain), tokens in zip(stream["gaps"], stream["tokens"][1:], strict=True):
        errors.add("gap", seconds, certain and ok, (at[last + tokens] - at[last]) / tokens)
        last += tokens


def run(seconds: float) -> list[Table]:
    rows: list[tuple[str, ...]] = []
    remarks: set[str] = set()
    each = seconds / len(SITUATIONS) / 3
    with tempfile.TemporaryDirectory() as folder, Server(socket_address(folder), SERVICE_SECONDS) as shard:
        preferred(shard.pid)
        with simulated() as (http, grpc, admin), BareClient(shard.address, BARE_SECONDS) as bare:
            preferred(bare.pid)
            targets = {
                "shard": {"address": shard.address},
                "fmaas": {"address": grpc, "kind": "fmaas"},
                "http": {"address": f"http://{http}", "kind": "http", "api": "completions"},
            }
            for kind, target in targets.items():
                for situation, hold_up in SITUATIONS.items():
                    bare.calls()
                    observations, remark = observed(kind, target, hold_up, each)
                    if remark:
                        remarks.add(f"The quota: {remark}.")
                    added = median([call.added for call in bare.calls()])
                    if kind == "shard":
                        errors = of_shard(observations, added)
                    else:
                        errors = of_router(observations, read(admin), added)
                    rows.append(errors.row(kind, situation))
    notes = (
        f"One target, probed back to back by the daemon, batches of 1, about {SERVICE_SECONDS * 1e3:g} ms a token; at "
        "the routers a load of three requests a second as well. Off: the highest difference of a recorded value from "
        f"the server's own record. Over: values that are off by more than {LIMIT_SHARE:.0%} + {LIMIT_RATIO} × the bare "
        f"client's median added delay (at least {FLOOR_SECONDS * 1e3:g} ms, one slice of the scheduler). Withheld: of "
        "all values, those of disturbed probes included; else off: the highest error, if nothing were withheld.",
        *sorted(remarks),
    )
    columns = (
        *("kind", "while", "TTFT off", "gap off", "bare p50", "over", "else off"),
        *("withheld", "values", "probes", "ok"),
    )
    return [Table("Truth of a process that is held up", columns, tuple(rows), notes)]


def observed(
    kind: str, target: dict[str, str], hold_up: Callable[[int, float], str], seconds: float
) -> tuple[list[dict[str, Any]], str]:
    with Subject(config(kind, target)) as subject:
        time.sleep(SETTLE_SECONDS)
        subject.observations()
        remark = hold_up(subject.pid, time.perf_counter() + seconds)
        return subject.observations(), remark


def config(kind: str, target: dict[str, str]) -> dict[str, Any]:
    chat = {"name": "chat", "sequence_length": 64, "batch_sizes": [1], "interval": "0s"}
    users = {"name": "users", "sequence_length": 64, "load": {"mode": "open", "rate": "3/s"}}
    workloads: list[dict[str, Any]] = [chat] if kind == "shard" else [chat, users]
    return {
        "targets": [{"name": kind, **target}],
        "workloads": [one | {"decode_length": DECODE_LENGTHS[one["name"]]} for one in workloads],
        "max_duty_cycle": 1.0,
        "log_level": "error",
        "web": {"listen_address": "127.0.0.1:0"},
    }


@contextmanager
def simulated() -> Iterator[tuple[str, str, str]]:
    """A simulated router: its HTTP and gRPC addresses, and the URL of its record."""
    with subprocess.Popen([sys.executable, *ROUTER], stdout=subprocess.PIPE, text=True) as router:
        assert router.stdout is not None
        try:
            said = [router.stdout.readline().split() for _ in range(3)]
            places = {words[1] if words[0] == "router" else words[0]: words[-1] for words in said}
            preferred(router.pid)
            yield places["http"].removeprefix("http://"), places["grpc"], places["admin"]
        finally:
            router.terminate()
            router.wait()


def read(admin: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{admin}/record") as answer:
        return [json.loads(line) for line in answer.read().splitlines()]


def preferred(pid: int) -> None:
    """Give a process and its later threads real-time priority, where that is permitted."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):
            os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(5))


PART = Part(
    "disturbances",
    "Truth of a process that is held up",
    run,
    "a value is withheld when the kernel says that the reading thread was ready to run but did not, or when a "
    "heartbeat of the process while probes are in flight was late. Waking up every 2 ms to look would cost a "
    "waiting target 1.5 % of a core. Single values are withheld where the rest of the probe is certain.",
)
