"""What the pages show of the daemon, and the probes that people ask for there."""

import json

import anyio
from anyio import to_thread

from exporter import __version__
from exporter.config import dump
from exporter.daemon.ledger import Recorder
from exporter.daemon.probed_targets import ProbedTargets
from exporter.daemon.threads import result_of
from exporter.daemon.transcript import transcript
from exporter.web.status_page import page

# How many people may wait for a probe at a time, and how many seconds each.
MAX_MANUAL_PROBES = 2
MANUAL_PROBE_SECONDS = 120.0


class PageData:
    """`manual_probe` is for the event loop, everything else for any thread."""

    def __init__(self, recorder: Recorder, targets: ProbedTargets) -> None:
        self._recorder = recorder
        self._targets = targets
        self._manual_probes = anyio.Semaphore(MAX_MANUAL_PROBES)

    def unhealthy(self) -> str | None:
        """Why the daemon is not healthy, None when it is."""
        if self._targets.reload_failed:
            return "a reload ended by a bug of tgi-probe; restart it"
        stuck = self._targets.stuck()
        return f"standing still: {', '.join(stuck)}" if stuck else None

    def not_ready(self) -> str | None:
        """Why the daemon is not ready, None when it is."""
        waiting = self._targets.not_attempted()
        return f"no first attempt yet: {', '.join(waiting)}" if waiting else None

    def configuration(self) -> str:
        """The settings in force, as YAML."""
        return dump.text(self._recorder.settings)

    def status(self) -> str:
        """The status page."""
        settings = self._recorder.settings
        return page(
            self._recorder.scoreboard.status(settings, self.unhealthy(), __version__, settings.web.enable_probe)
        )

    async def manual_probe(self, target: str, workload: str, batch_size: str) -> tuple[str, str]:
        """One probe now: HTTP status and text. "" is a parameter that is missing."""
        if target and target not in self._targets.names:
            return "404 Not Found", f"no target is called {json.dumps(target)}; /config has the names"
        given = {"target": target, "workload": workload, "batch_size": batch_size}
        if missing := ", ".join(name for name, value in given.items() if not value):
            return "400 Bad Request", f"missing: {missing}; use /probe?target=…&workload=…&batch_size=…"
        runner = self._targets.runner(target)
        planned = runner.plan.series() if runner is not None else ()
        found = {(series.workload, str(series.batch_size)): (series, sent) for series, sent in planned}
        if runner is None or (workload, batch_size) not in found:
            what = f"target {target} has no workload {json.dumps(workload)} with batch size {json.dumps(batch_size)}"
            return "404 Not Found", f"{what}; /config has the names"
        try:
            self._manual_probes.acquire_nowait()
        except anyio.WouldBlock:
            return "429 Too Many Requests", f"{MAX_MANUAL_PROBES} others wait for a probe already; come back later"
        series, sent = found[workload, batch_size]
        try:
            with anyio.move_on_after(MANUAL_PROBE_SECONDS):
                answer = await result_of(runner.manual_probes.request(series))
                if isinstance(answer, str):
                    return "503 Service Unavailable", answer
                return "200 OK", await to_thread.run_sync(transcript, answer, sent)
        finally:
            self._manual_probes.release()
        return "503 Service Unavailable", f"not within {MANUAL_PROBE_SECONDS:g} s: the target is busy with other probes"
