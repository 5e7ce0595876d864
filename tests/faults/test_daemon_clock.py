"""A wall clock that jumps: no duration, no schedule and no timeout is measured by it.

The daemon runs with a library before the system's own, which adds a number of seconds to the wall clock and to nothing
else. The seconds are in a file that the test writes.
"""

import ast
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.parts import daemon_running
from tests.faults.daemon_parts import bugs, document, servers, write
from tests.faults.test_daemon_overload import ATTEMPTS, SKIPPED, above, total
from tests.processes import wait_until

# Reads of the wall clock in the daemon, and what each is for.
WALL_CLOCK = {
    "exporter/daemon/attempt.py": "the date in a quarantine",
    "exporter/probes/crash_check.py": "the date in a quarantine",
    "exporter/probes/shard/ranks.py": "whether it jumped during a call, since gRPC's deadlines go by it",
    "exporter/daemon/scoreboard.py": "the age on the status page",
    "exporter/metrics/record.py": "*_timestamp_seconds",
    "exporter/metrics/collector.py": "*_created",
}
# Programs and pages of their own, beside the daemon.
OTHERS = ("exporter/simulator/", "exporter/bench/", "exporter/alerting/", "exporter/demo/", "exporter/pb/")
JUMPS = (3600.0, -86400.0, 0.0, 1e8)

JUMPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *seconds;

__attribute__((constructor)) static void map(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    if (file < 0) abort();
    seconds = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *found) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, found);
    if (!result && seconds && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) found->tv_sec += *seconds;
    return result;
}

int gettimeofday(struct timeval *restrict found, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *found) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found) *found = now.tv_sec;
    return now.tv_sec;
}
"""


def set_offset(file: Path, seconds: float) -> None:
    """At one instant for all who have mapped it."""
    with file.open("r+b") as opened:
        opened.write(int(seconds).to_bytes(8, "little", signed=True))


@pytest.fixture
def jumping(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose wall clock is that of the file `offset`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library, offset = (tmp_path / name for name in ("jumping.c", "jumping.so", "offset"))
    source.write_text(JUMPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    offset.write_bytes(bytes(8))
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}


def test_a_wall_clock_that_jumps_changes_no_latency_and_no_schedule(tmp_path: Path, jumping: dict[str, str]) -> None:
    offset = Path(jumping["CLOCK_OFFSET"])
    interval = 0.1
    with servers(tmp_path, "--speed", "4") as own:
        content = document(own.targets(), interval=f"{interval * 1000:g}ms", timeout="60s")
        with daemon_running(write(tmp_path / "config.yaml", content), jumping) as daemon:
            names = [target["name"] for target in own.targets()]
            for name in names:
                daemon.await_answers(2, target=name)
            newest = "tgi_probe_last_success_timestamp_seconds"
            began, first = time.monotonic(), daemon.samples()
            for jump in JUMPS:
                set_offset(offset, jump)

                def follows(jump: float = jump) -> bool:
                    stamps = daemon.by_labels(newest).values()
                    return all(abs(stamp - time.time() - jump) < 60 for stamp in stamps)

                wait_until(follows, f"the time stamps follow a jump of {jump:g} s", daemon.process)
                assert daemon.get("/-/healthy").status == 200
            last, ended = daemon.samples(), time.monotonic()
            assert total(last, ATTEMPTS, outcome="timeout") == 0
            assert {dict(has)["outcome"] for (at, has), value in last.items() if at == ATTEMPTS and value} <= {
                "ok",
                "disturbed",
            }
            for measure in ("time_to_first_token", "request_duration", "schedule_lateness"):
                assert above(last, measure, 60.0 if measure != "schedule_lateness" else 5.0) == 0, measure
            # As many as the monotonic clock says, and neither a burst nor a silence of an hour.
            due = sum(total(one, name) * sign for one, sign in ((last, 1), (first, -1)) for name in (ATTEMPTS, SKIPPED))
            expected = len(names) * (ended - began) / interval
            assert 0.5 * expected - 30 < due < 1.5 * expected + 30
            assert not bugs(daemon.process), daemon.process.output
            daemon.process.terminate()
            assert daemon.process.wait() == 0
        assert own.batches() == 0


def test_the_wall_clock_is_read_for_dates_only() -> None:
    """Every reading of it in the daemon is known here, with what it is for."""
    root = Path(__file__).parents[2]
    found = set()
    for file in sorted((root / "exporter").rglob("*.py")):
        name = os.path.relpath(file, root)
        if name.startswith(OTHERS):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns"):
                found.add(name)
            assert not (isinstance(node, ast.ImportFrom) and node.module == "time"), name
    assert found == set(WALL_CLOCK)
