"""Bugs to put into a copy of the exporter, to prove that the simulation finds them.

python -m tests.faults.simulation.bugs prints a table of them with the seed that finds each.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
WORLDS, HOURS = 40, 6
FOUND = re.compile(r"^seed (\d+), virtual instant (\S+) s: ([^:]+):", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """With this seed the property was broken, after so many simulated hours of its world."""

    seed: int
    hours: float
    broken: str


@dataclass(frozen=True)
class Bug:
    """In `file`, `right` is replaced by `wrong`; `right` must be there exactly once."""

    name: str
    file: str
    right: str
    wrong: str

    def put_into(self, copy: Path) -> None:
        """`copy` is a copy of the folder `exporter`."""
        file = copy / self.file
        text = file.read_text("utf-8")
        if text.count(self.right) != 1:
            times = text.count(self.right)
            raise ValueError(f"bug {self.name!r}: its text is {times} times in exporter/{self.file}, not once; mend it")
        file.write_text(text.replace(self.right, self.wrong), "utf-8")


BUGS = (
    Bug(
        "the pause for the duty cycle is half as long",
        "plan/schedule.py",
        "return seconds_busy * (1 / max_duty_cycle - 1)",
        "return 0.5 * seconds_busy * (1 / max_duty_cycle - 1)",
    ),
    Bug(
        "the pause counts from the start of the probe",
        "daemon/runner.py",
        "pause_until = now + pause_after(busy, self.plan.max_duty_cycle)",
        "pause_until = observation.started + pause_after(busy, self.plan.max_duty_cycle)",
    ),
    Bug(
        "manual probes do not pause the target",
        "daemon/runner.py",
        "        self._choose_pauses(series, observation)\n        return observation",
        "        return observation",
    ),
    Bug(
        "manual probes do not wait for the duty cycle",
        "daemon/runner.py",
        "if why is None and (reason := self._window.reason_to_skip(started)) is not None:",
        "if why is None and (reason := self._window.reason_to_skip(float('inf'))) is not None:",
    ),
    Bug(
        "there is no backoff after failures",
        "daemon/runner.py",
        "self._window = Window(busy_until=now, backoff_until=now + backoff, pause_until=pause_until)",
        "self._window = Window(busy_until=now, pause_until=pause_until)",
    ),
    Bug(
        "a check that succeeds ends the backoff of failed probes too",
        "daemon/runner.py",
        "if self._failures and not self._failed_in_probe:",
        "if self._failures:",
    ),
    Bug(
        "a failed attempt leaves its batch in the server",
        "daemon/attempt.py",
        "                self._prober.settle(SETTLE_TIMEOUT)\n            if self._quarantine.suspected",
        "                pass\n            if self._quarantine.suspected",
    ),
    Bug(
        "an attempt begins without clearing what is owed",
        "daemon/attempt.py",
        "        self.connected = True\n        self._prober.settle(SETTLE_TIMEOUT)\n",
        "        self.connected = True\n",
    ),
    Bug(
        "an attempt stays in flight after its end",
        "daemon/runner.py",
        "        finally:\n            self._ledger.inflight(self.name, 0)\n\n    def _skip_too_large",
        "        finally:\n            pass\n\n    def _skip_too_large",
    ),
    Bug(
        "failures are not recorded when the target was never reached",
        "daemon/runner.py",
        "        self._ledger.record(observation)\n        self.attempted = True\n",
        "        if self._attempts.connected:\n            self._ledger.record(observation)\n"
        "        self.attempted = True\n",
    ),
    Bug(
        "a manual probe is recorded",
        "daemon/runner.py",
        "        self._choose_pauses(series, observation)\n        return observation",
        "        self._choose_pauses(series, observation)\n        self._ledger.record(observation)\n"
        "        return observation",
    ),
    Bug(
        "a failed probe of the prober's own bug counts as ok",
        "daemon/attempt.py",
        'return Result((), Outcome.MALFORMED, "INTERNAL", f"tgi-probe failed:',
        'return Result((), Outcome.OK, "INTERNAL", f"tgi-probe failed:',
    ),
    Bug(
        "skips are not counted while the target backs off",
        "daemon/runner.py",
        "            case Skip(Series() as series, _, reason):\n                self._ledger.skipped(series, reason)",
        "            case Skip(Series() as series, _, reason):\n                if reason is not SkipReason.BACKOFF:\n"
        "                    self._ledger.skipped(series, reason)",
    ),
    Bug(
        "a due time is lost when its member is still pending",
        "plan/schedule.py",
        "                return self._pending.pop(key)  # for its previous due time; this one comes at the next call\n",
        "                self._pending.pop(key)\n",
    ),
    Bug(
        "a probe that gave way is forgotten",
        "plan/schedule.py",
        "        self._pending[start.key] = skip\n        return None\n",
        "        return None\n",
    ),
    Bug(
        "the member that is due starts, not the one that waits longest",
        "plan/schedule.py",
        "first = self._pending.pop(min(self._pending, key=self._unprobed_since.__getitem__))",
        "first = self._pending.pop(max(self._pending, key=self._unprobed_since.__getitem__))",
    ),
    Bug(
        "lateness counts from the end",
        "daemon/runner.py",
        "self._ledger.late(self.name, started - start.due)",
        "self._ledger.late(self.name, self._clock.now() - start.due)",
    ),
    Bug(
        "an attempt begins after the stop",
        "daemon/runner.py",
        "            while not self._stop.is_set():\n                self._step()\n",
        "            while True:\n                self._step()\n                if self._stop.is_set():\n"
        "                    self._step()\n                    break\n",
    ),
    Bug(
        "a manual probe that waits at the stop has no answer",
        "daemon/runner.py",
        "            self._ledger.inflight(self.name, 0)\n            self.manual_probes.close()\n",
        "            self._ledger.inflight(self.name, 0)\n",
    ),
    Bug(
        "the watchdog does not know the timeout of a probe",
        "daemon/runner.py",
        "self.watchdog.expect_back_by(started + self._attempts.longest(series))",
        "self.watchdog.expect_back_by(started)",
    ),
)


def find(bug: Bug, folder: Path) -> Found:
    """Simulate with a copy of the exporter in this folder, until a property is broken. AssertionError if none is."""
    shutil.copytree(ROOT / "exporter", folder / "exporter", ignore=shutil.ignore_patterns("__pycache__"))
    bug.put_into(folder / "exporter")
    command = [sys.executable, "-m", "tests.faults.simulation", "--worlds", str(WORLDS), "--hours", str(HOURS)]
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)
    if f"testing {folder / 'exporter'}" not in done.stdout:
        raise AssertionError(f"the copy was not tested: {done.stdout}{done.stderr}")
    found = FOUND.search(done.stdout)
    if found is None:
        raise AssertionError(f"not found, so a property is missing: {bug.name}\n{done.stdout}{done.stderr}")
    return Found(int(found[1]), float(found[2]) / 3600, found[3])


def row(bug: Bug) -> str:
    with tempfile.TemporaryDirectory(prefix="bug-") as folder:
        try:
            found = find(bug, Path(folder))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return f"| {bug.name} | not found | | {str(error)[-1500:]} |"
    return f"| {bug.name} | {found.seed} | {found.hours:.2f} | {found.broken} |"


def main() -> None:
    print("| bug | seed | after hours | broken property |\n|---|---|---|---|", flush=True)
    chosen = [bug for bug in BUGS if not sys.argv[1:] or any(words in bug.name for words in sys.argv[1:])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line in pool.map(row, chosen):
            print(line, flush=True)


if __name__ == "__main__":
    main()
