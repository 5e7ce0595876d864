"""One daemon with all kinds of servers at once: break each, see how the probe ends, mend it, and count to recovery.

Nothing here depends on how long something takes: what is due is counted by the daemon itself.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.parts import ANSWERED, Daemon, daemon_running
from tests.faults.network import Network
from tests.faults.servers import KINDS, Server, await_nothing_left, config, listen_at, start_all
from tests.processes import wait_until

RECOVERY = 2  # the probe under way when the fault ends may fail, the next one is answered
LONGEST_ATTEMPT = 60  # seconds: two connects, clearing, a warm-up and a probe, each at its timeout
LONGEST_PAUSE = 30  # seconds after failures in a row, and the workload's interval is a second
LIMIT = 10_000
# What is counted, each by this label, in the order of the fields of `Counts`.
COUNTED = {
    "tgi_probe_attempts_total": "outcome",
    "tgi_probe_skipped_total": "reason",
    "tgi_probe_withheld_values_total": "measure",
    "tgi_probe_time_to_first_token_seconds_count": "target",
    "tgi_probe_request_duration_seconds_count": "target",
}
_LINE = re.compile(rf"^({'|'.join(COUNTED)})\{{(.*)\}} (\S+)", re.MULTILINE)
_SERVER_SECONDS = re.compile(r"^tgi_probe_server_duration_seconds_sum\S* (\S+)", re.MULTILINE)
BELIEVABLE_SECONDS = 3600.0
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# What a bug of ours looks like in the log.
BUGS = ("Traceback", "tgi-probe failed", "ended by a bug")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the daemon has counted for one target."""

    outcomes: Mapping[str, int]
    skipped: Mapping[str, int]
    withheld: Mapping[str, int]
    first_tokens: Mapping[str, int]
    durations: Mapping[str, int]

    @property
    def answered(self) -> int:
        return sum(self.outcomes.get(outcome, 0) for outcome in ANSWERED)

    @property
    def failed(self) -> int:
        return sum(self.outcomes.values()) - self.answered

    @property
    def due(self) -> int:
        return sum(self.outcomes.values()) + sum(self.skipped.values())

    def new_outcomes(self, before: "Counts") -> dict[str, int]:
        """How probes have ended since, but for the answered ones."""
        more = {outcome: count - before.outcomes.get(outcome, 0) for outcome, count in self.outcomes.items()}
        return {outcome: count for outcome, count in more.items() if count > 0 and outcome not in ANSWERED}


@dataclass(frozen=True, slots=True)
class Seen:
    """How a fault ended for one kind of target.

    `recovery`: which probe after the end of the fault was the first that was answered. Due times that were skipped
    before it, because of the `pause` after failures, or because the attempt that had met the fault was `busy` still.
    `left`: batches or requests that stayed in the server.
    """

    outcomes: Mapping[str, int]
    recovery: int
    pause: int
    busy: int
    left: int


@dataclass
class Broken:
    """The daemon, the servers that are broken, by kind, and those beside them that are never touched."""

    daemon: Daemon
    servers: Mapping[str, Server]
    healthy: Sequence[Server]
    write: Callable[[Mapping[str, int]], None]
    limits: dict[str, int] = field(default_factory=dict)
    in_a_row: dict[str, int] = field(default_factory=dict)  # failures since the newest certain answer

    def counts(self) -> dict[str, Counts]:
        """By target, all of one scrape."""
        names = [*self.servers, *(server.name for server in self.healthy)]
        return counts_of(self.daemon.get("/metrics").text, names)

    def run(
        self,
        kinds: Sequence[str],
        break_it: Callable[[Server], None],
        mend: Callable[[Server], None] = Server.mend,
        harmless: Collection[str] = (),
    ) -> dict[str, Seen]:
        """Break these servers together; mend each when a probe of it has failed; wait until all are well again.

        `harmless`: kinds of which two answers are as good as a failure.
        """
        self.revive()
        before = self.counts()
        for kind in kinds:
            break_it(self.servers[kind])

        def is_broken(kind: str, now: Counts) -> bool:
            return now.failed > before[kind].failed or (kind in harmless and now.answered >= before[kind].answered + 2)

        def is_well(kind: str, now: Counts) -> bool:
            return now.answered > mended[kind].answered or is_held(kind, now)

        def is_held(kind: str, now: Counts) -> bool:
            return kind not in quarantined and "quarantined" in now.new_outcomes(before[kind])

        mended: dict[str, Counts] = {}
        while len(mended) < len(kinds):
            failed = self._await(is_broken, kinds, mended, "a failure")
            for kind in failed:
                mend(self.servers[kind])
            for kind in failed:
                self.servers[kind].await_up()
            mended |= {kind: counts for kind, counts in self.counts().items() if kind in failed}
        well: dict[str, Counts] = {}
        quarantined: set[str] = set()
        while len(well) < len(kinds):
            found = self._await(is_well, kinds, well, "recovery")
            now = self.counts()
            held = [kind for kind in found if is_held(kind, now[kind])]
            if held:
                self.release(held)
                quarantined.update(held)
                mended |= {kind: counts for kind, counts in self.counts().items() if kind in held}
            well |= {kind: now[kind] for kind in found if kind not in held}
        self.check_healthy(before)
        return {kind: self._seen(kind, before[kind], mended[kind], well[kind]) for kind in kinds}

    def revive(self) -> None:
        """A case that failed may have left a server that has ended: the next one is judged by itself."""
        ended = [server for server in self.servers.values() if server.running.returncode is not None]
        for server in ended:
            server.start()
        if not ended:
            return
        for server in ended:
            server.await_up()
        was = self.counts()
        self.release([server.kind.name for server in ended if server.kind.is_shard])
        wait_until(
            lambda: all(self.counts()[one.kind.name].answered > was[one.kind.name].answered for one in ended),
            "those that had ended answer again",
            self.daemon.process,
        )

    def _await(
        self,
        done: Callable[[str, Counts], bool],
        kinds: Sequence[str],
        others: Mapping[str, object],
        what: str,
    ) -> list[str]:
        """Those of the kinds (but for `others`) for which it is done; waits until there is one."""
        waiting = [kind for kind in kinds if kind not in others]

        def look() -> list[str]:
            now = self.counts()
            return [kind for kind in waiting if done(kind, now[kind])]

        processes = [self.daemon.process]
        return wait_until(look, f"{what} of {', '.join(waiting)}", *processes, every=0.05)

    def _seen(self, kind: str, before: Counts, mended: Counts, well: Counts) -> Seen:
        backoff, busy = (well.skipped.get(why, 0) - mended.skipped.get(why, 0) for why in ("backoff", "busy"))
        next_ones = well.failed - mended.failed + 1
        server = self.servers[kind]
        left = await_nothing_left(server)
        assert server.cleared_all() == 0, kind
        self.check_samples(kind)
        failures = self.in_a_row.get(kind, 0) + well.failed - before.failed
        # A disturbed answer may not be one.
        self.in_a_row[kind] = 0 if well.outcomes.get("ok", 0) > mended.outcomes.get("ok", 0) else failures
        longest = min(LONGEST_PAUSE, 2 ** (failures - 1)) if failures else 0
        assert backoff <= longest, (kind, failures, well)
        assert busy <= LONGEST_ATTEMPT, (kind, well)
        return Seen(well.new_outcomes(before) or {"ok": 1}, next_ones, backoff, busy, left)

    def release(self, kinds: Sequence[str]) -> None:
        """End the quarantine of these targets, as docs/safety.md says: change a limit, and reload."""
        for kind in kinds:
            self.limits[kind] += 1
        self.write(self.limits)
        reply = self.daemon.get("/-/reload", "POST")
        assert reply.status == 200, reply.text

    def check_samples(self, name: str) -> None:
        """Only answered probes gave values, each as many as it has requests."""
        now = self.counts()[name]
        samples = KINDS[name].samples
        for found, measure in ((now.first_tokens, "ttft"), (now.durations, "request_duration")):
            assert sum(found.values()) + now.withheld.get(measure, 0) <= samples * now.answered, (name, measure, now)
        longest = max(map(float, _SERVER_SECONDS.findall(self.daemon.get("/metrics").text)), default=0.0)
        assert longest < BELIEVABLE_SECONDS, f"a server's own times add up to {longest:g} s"
        assert sum(now.first_tokens.values()) + now.withheld.get("ttft", 0) >= samples * now.outcomes.get("ok", 0), (
            name,
            now,
        )

    def check_healthy(self, before: Mapping[str, Counts]) -> None:
        """The others were probed meanwhile, and nothing happened to them. No bug of ours is in the log."""
        now = self.counts()
        for server in self.healthy:
            counted, was = now[server.name], before[server.name]
            assert counted.failed == was.failed, self.daemon.process.output
            assert counted.answered > was.answered, self.daemon.process.output
            assert counted.skipped.get("backoff", 0) == was.skipped.get("backoff", 0)
        said = self.daemon.process.stderr
        found = [bug for bug in BUGS if bug in said]
        assert not found, said


def counts_of(page: str, targets: Sequence[str]) -> dict[str, Counts]:
    """By target. A page of many buckets is read often, so only the lines that count are parsed."""
    found: dict[str, dict[str, dict[str, int]]] = {name: {metric: {} for metric in COUNTED} for name in targets}
    for metric, labels, value in _LINE.findall(page):
        has = dict(_LABEL.findall(labels))
        if has["target"] in found:
            counted = found[has["target"]][metric]
            label = has.get(COUNTED[metric], "")
            counted[label] = counted.get(label, 0) + int(float(value))
    return {name: Counts(*(by[metric] for metric in COUNTED)) for name, by in found.items()}


@contextlib.contextmanager
def broken_servers(folder: Path, kinds: Sequence[str], network: Network | None = None) -> Iterator[Broken]:
    """One daemon that probes one server of each kind, and two more that stay healthy. All answer at the start.

    With a `network` the servers to be broken are behind it.
    """
    behind = folder / "behind"
    behind.mkdir()
    servers = {kind: Server(KINDS[kind], listen_at(behind, kind)) for kind in kinds}
    healthy = [
        Server(KINDS["shard"], listen_at(folder, "shard-healthy"), name="healthy-shard"),
        Server(KINDS["openai"], "127.0.0.1:0", name="healthy-router"),
    ]
    everything = [*servers.values(), *healthy]
    try:
        start_all(everything)
        if network is not None:
            for server in servers.values():
                server.put_behind(network, folder)
        limits = dict.fromkeys(KINDS, LIMIT)
        file = folder / "config.yaml"

        def write(limits: Mapping[str, int]) -> None:
            file.write_text(config(list(servers.values()), healthy, limits))

        write(limits)
        with daemon_running(file) as daemon:
            broken = Broken(daemon, servers, healthy, write, limits)
            wait_until(
                lambda: all(counts.answered for counts in broken.counts().values()), "all answer", daemon.process
            )
            yield broken
    finally:
        for server in everything:
            server.end()
