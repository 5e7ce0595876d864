"""The composition root: the only place that calls constructors. Signals, reload and drain are here too."""

import contextlib
import gc
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from exporter import __version__
from exporter.config import dump
from exporter.config.errors import SettingsError
from exporter.config.notation import counted
from exporter.config.settings import Settings
from exporter.config.sources import load, stamp
from exporter.config.target import Target
from exporter.daemon.journal import logger, set_up
from exporter.daemon.ledger import Recorder
from exporter.daemon.load import LoadRunner
from exporter.daemon.runner import Runner
from exporter.daemon.transcript import transcript
from exporter.metrics.catalogue import layout
from exporter.metrics.pages import prepare
from exporter.metrics.pauses import Pauses
from exporter.metrics.record import Metrics
from exporter.plan.safety import too_large
from exporter.plan.schedule import phase
from exporter.plan.targets import Plan, change, plans
from exporter.probes.interface import OwnRequests
from exporter.probes.opening import open_background, open_prober
from exporter.probes.quarantine import Quarantine
from exporter.probes.router.hints import doubled_paths
from exporter.web.routes import Exposition, Views
from exporter.web.status_page import page
from exporter.web.web_file_state import WebFileState

# In flight calls get this long to end by themselves. With what follows it must fit into Kubernetes' 30 s.
DRAIN_SECONDS = 15.0
CUT_SECONDS = 6.0
RELOAD_PATIENCE = 60.0
SWITCH_SECONDS = 0.0001
SIGNAL_SECONDS = 1.0
# People at /probe: so many at once, each for so long.
MAX_MANUAL_PROBES = 2
PROBE_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Watch:
    """One target under watch: its runner and the thread that runs it, or those of a background load on it."""

    runner: Runner | LoadRunner
    thread: threading.Thread


class Watched:
    """The configuration file, if there is one: whether it changed since it was asked last."""

    def __init__(self, file: Path | None) -> None:
        self._files = [file] if file else []
        self._stamp = stamp(self._files)

    def changed(self) -> bool:
        before, self._stamp = self._stamp, stamp(self._files)
        return before != self._stamp


@dataclass(slots=True)
class ReloadRequest:
    """Asked for by a signal or over HTTP; whoever waits gets the problems, none when it was taken."""

    answer: queue.SimpleQueue[list[str]]


class Daemon:
    """`run` blocks until SIGTERM or SIGINT and returns the exit code. `read` reads the settings anew at each reload."""

    def __init__(
        self,
        read: Callable[[], Settings],
        on_ready: Callable[[int], None] = lambda port: None,
        file: Path | None = None,
    ) -> None:
        self._read = read
        self._file = Watched(file)
        self._on_ready = on_ready
        self._settings = read()
        set_up(self._settings.log_level, self._settings.log_format)
        self._commands: queue.SimpleQueue[ReloadRequest | None] = queue.SimpleQueue()
        self._watches: dict[str, list[Watch]] = {}
        self._hanging: dict[str, list[threading.Thread]] = {}
        self._last_call = float("inf")  # when the first request to stop came
        self._started = 0
        self._recorder = Recorder(self._new_metrics(self._settings), self._settings)
        self._quarantines: dict[str, Quarantine] = {}
        self._manual_probes = threading.BoundedSemaphore(MAX_MANUAL_PROBES)
        self._web = WebFileState(self._settings.web.config_file, self._recorder.journal.warn)

    # --- life

    def run(self) -> int:
        exposition = self._bind()
        try:
            self._start(plans(self._settings).values())
            exposition.start()
            logger.info("listening on port %s, probing %s", exposition.port, ", ".join(self._watches))
            self._on_ready(exposition.port)
            while (command := self._next_command()) is not None:
                command.answer.put(self._guarded_reload())
        finally:
            # Whatever ends it, no batch stays behind, and no thread keeps the process alive.
            self._turn_away()
            logger.info("stopping: waiting for the calls in flight, clearing our batches")
            self._drain(list(self._watches))
            exposition.stop()
        logger.info("stopped")
        return 0

    def _turn_away(self) -> None:
        """Whoever still waits for a reload would keep the HTTP side from ending."""
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if command is not None:
                    command.answer.put(["the daemon stops"])

    def _next_command(self) -> ReloadRequest | None:
        """Waits in pieces: of signals that come in a burst the kernel may give every one to other threads, and then a
        wait without end in this one, where Python runs the handlers, is not interrupted.
        """
        while True:
            try:
                return self._commands.get(timeout=SIGNAL_SECONDS)
            except queue.Empty:
                if self._settings.reload_on_change and self._file.changed():
                    return ReloadRequest(queue.SimpleQueue())

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT stop, SIGHUP reloads. Only from the main thread."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop()

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._commands.put(ReloadRequest(queue.SimpleQueue()))

    def stop(self) -> None:
        self._last_call = min(self._last_call, time.monotonic())
        self._commands.put(None)

    def _bind(self) -> Exposition:
        """Before anything else, so that a port that is taken ends the start. It answers once the targets are there."""
        views = Views(
            registry=lambda: self._recorder.metrics.registry,
            healthy=self._unhealthy,
            ready=self._unready,
            reload=self.reload if self._settings.web.enable_reload else None,
            configuration=lambda: dump.text(self._settings),
            status=self._status,
            probe=self._probe_now if self._settings.web.enable_probe else None,
        )
        try:
            return Exposition(self._settings.web.listen_address, views, self._web, self._recorder.journal.warn)
        except OSError as error:
            place = f"web.listen_address: {self._settings.web.listen_address}"
            why = error.strerror or error
            raise SettingsError([f"{place}: cannot be used ({why}); choose another"]) from None

    # --- targets

    def _new_metrics(self, settings: Settings) -> Metrics:
        metrics = Metrics(layout(settings))
        metrics.configure(settings)
        metrics.reloaded(True)
        return metrics

    def _start(self, arriving: Iterable[Plan]) -> None:
        arriving = list(arriving)
        for line in (*too_large(arriving), *doubled_paths(self._settings)):
            logger.warning("%s", line)
        for plan in arriving:
            self._recorder.kinds[plan.target.name] = plan.target.kind
            self._recorder.metrics.announce(plan)
            if not plan.workloads:
                logger.warning("target %s has no workload: it is only checked for being up", plan.target.name)
        prepare(self._recorder.metrics.registry, Pauses())
        spare_collector()
        # Only now: the first probes would be late while the series and lines of hundreds of targets are made.
        for plan in arriving:
            name = plan.target.name
            own_requests = OwnRequests()
            held = self._quarantine(plan.target)
            prober = open_prober(plan.target, own_requests, held)
            runners: list[Runner | LoadRunner] = [
                Runner(plan.batches, prober, self._recorder, phase(self._started), seed=self._started, quarantine=held)
            ]
            for workload in plan.loads:
                background = open_background(plan.target, workload, own_requests)
                runners.append(LoadRunner(plan.only(workload), background, self._recorder, seed=self._started))
            self._started += 1
            before = self._hanging.pop(name, [])
            self._watches[name] = [self._watched(runner, before) for runner in runners]

    def _quarantine(self, target: Target) -> Quarantine:
        """What a reload leaves in force."""
        known = self._quarantines.get(target.name)
        if known is None or not known.applies_to(target):
            known = self._quarantines[target.name] = Quarantine(target)
        return known

    def _watched(self, runner: Runner | LoadRunner, before: Sequence[threading.Thread]) -> Watch:
        thread = threading.Thread(target=self._guarded, args=(runner, before), name=f"probe-{runner.name}", daemon=True)
        thread.start()
        return Watch(runner, thread)

    def _all_watches(self) -> list[Watch]:
        return [watch for watches in list(self._watches.values()) for watch in watches]

    def _guarded(self, runner: Runner | LoadRunner, before: Sequence[threading.Thread]) -> None:
        """A target's thread must never end unseen. Threads that watched it `before` and hang are waited for."""
        try:
            for thread in before:
                thread.join()
            if before and isinstance(runner, Runner):
                runner.skip_missed()
            runner.run()
        except Exception:
            logger.critical(
                "the watching of %s ended by a bug of tgi-probe; /-/healthy fails from now on",
                runner.name,
                exc_info=True,
            )

    def _drain(self, names: list[str]) -> None:
        """Stop these targets: all are told first, then waited for, so that it takes as long as the slowest.

        Those that outlast it are cut off, all at once; the threads of a target that hang on even then are remembered.
        """
        of_name = {name: self._watches.pop(name) for name in names}
        watches = [watch for name in names for watch in of_name[name]]
        for watch in watches:
            watch.runner.stop()
        # A stop that comes during a reload's drain is not followed by another whole drain.
        self._wait_for([watch.thread for watch in watches], lambda: self._last_call + DRAIN_SECONDS, DRAIN_SECONDS)
        stuck = [watch for watch in watches if watch.thread.is_alive()]
        if stuck:
            stuck_names = ", ".join(watch.runner.name for watch in stuck)
            logger.warning("a call outlasts the %g s of draining; ending it: %s", DRAIN_SECONDS, stuck_names)
        cuts = [threading.Thread(target=watch.runner.cut, daemon=True) for watch in stuck]
        for cut in cuts:
            cut.start()
        self._wait_for([*cuts, *(watch.thread for watch in stuck)], lambda: float("inf"), CUT_SECONDS)
        for name in names:
            hanging = [watch.thread for watch in of_name[name] if watch.thread.is_alive()]
            self._hanging[name] = [thread for thread in self._hanging.get(name, []) if thread.is_alive()] + hanging

    def _wait_for(self, threads: Sequence[threading.Thread], until: Callable[[], float], seconds: float) -> None:
        """Until they have ended, so many seconds are over, or it is `until`, which may come nearer meanwhile."""
        deadline = time.monotonic() + seconds
        for thread in threads:
            while thread.is_alive() and (left := min(deadline, until()) - time.monotonic()) > 0:
                thread.join(min(left, SIGNAL_SECONDS))

    # --- reload

    def reload(self) -> list[str]:
        """From any thread: the problems that kept the new configuration from being taken, none when it is in force."""
        if self._last_call < float("inf"):
            return ["the daemon stops"]
        request = ReloadRequest(queue.SimpleQueue())
        self._commands.put(request)
        try:
            return request.answer.get(timeout=RELOAD_PATIENCE)
        except queue.Empty:
            return [f"the reload is still under way after {RELOAD_PATIENCE:g} s; see the log"]

    def _guarded_reload(self) -> list[str]:
        """A bug in here must not end the thread that signals wake."""
        try:
            return self._reload()
        except Exception as error:
            logger.critical("the reload ended by a bug of tgi-probe; restart it", exc_info=True)
            self._recorder.metrics.reloaded(False)
            return [f"the reload ended by a bug of tgi-probe ({type(error).__name__}: {error}); restart it"]

    def _reload(self) -> list[str]:
        try:
            settings = self._read()
        except SettingsError as error:
            for problem in error.problems:
                logger.error("reload refused, the old configuration stays in force: %s", problem)
            self._recorder.metrics.reloaded(False)
            return error.problems
        if settings.web != self._settings.web:
            logger.warning("web: takes effect at the next start only")
        old, new = plans(self._settings), plans(settings)
        what = change(old, new)
        self._drain([name for name in what.leaving if name in self._watches])
        for name in what.leaving:
            if name in new:
                self._recorder.metrics.narrow(new[name], old[name])
            else:
                self._recorder.metrics.forget(name)
            self._recorder.forget(name)
        self._exchange_metrics(settings, [plan for name, plan in new.items() if name not in what.arriving])
        self._settings = self._recorder.settings = settings
        set_up(settings.log_level, settings.log_format)
        self._start(new[name] for name in what.arriving)
        logger.info(
            "reloaded, %s: %d kept, %d started, %d stopped",
            counted(len(new), "target"),
            len(new) - len(what.arriving),
            len(what.arriving),
            len(what.leaving),
        )
        return []

    def _exchange_metrics(self, settings: Settings, staying: list[Plan]) -> None:
        """New objectives on the old instruments; everything that still exists goes on counting."""
        if self._recorder.metrics.configure(settings):
            logger.info("SLO thresholds changed, and with them bucket edges: histograms in seconds start again at 0")
        self._recorder.metrics.reloaded(True)
        for plan in staying:
            self._recorder.metrics.announce_objectives(plan)

    # --- what the pages ask

    def _status(self) -> str:
        here = self._settings.web.enable_probe
        return page(self._recorder.scoreboard.status(self._settings, self._unhealthy(), __version__, here))

    def _probe_now(self, target: str, workload: str, batch_size: str) -> tuple[str, str]:
        """HTTP status and text."""
        runner = next((w.runner for w in self._watches.get(target, ()) if isinstance(w.runner, Runner)), None)
        planned = runner.plan.series() if runner is not None else ()
        found = {(series.workload, str(series.batch_size)): (series, sent) for series, sent in planned}
        if runner is None or (workload, batch_size) not in found:
            return "404 Not Found", "no such target, workload and batch size in the configuration; see /config"
        if not self._manual_probes.acquire(blocking=False):
            return "429 Too Many Requests", f"{MAX_MANUAL_PROBES} others wait for a probe already; come back later"
        series, sent = found[workload, batch_size]
        try:
            answer = runner.probe_now(series, PROBE_PATIENCE)
        finally:
            self._manual_probes.release()
        if isinstance(answer, str):
            return "503 Service Unavailable", answer
        return "200 OK", transcript(answer, sent)

    def _unhealthy(self) -> str | None:
        now = time.perf_counter()
        still = [watch.runner.name for watch in self._all_watches() if watch.runner.stands_still(now)]
        return f"standing still: {', '.join(still)}" if still else None

    def _unready(self) -> str | None:
        waiting = [w.runner.name for w in self._all_watches() if w.runner.plan.workloads and not w.runner.attempted]
        return f"no first attempt yet: {', '.join(waiting)}" if waiting else None


def run(config: Path | None, on_ready: Callable[[int], None] = lambda port: None) -> int:
    """The daemon, until a signal. 0 after a graceful stop; SettingsError before it has begun."""
    tune_interpreter()
    daemon = Daemon(lambda: load(config), on_ready, config)
    daemon.handle_signals()
    return daemon.run()


def tune_interpreter() -> None:
    """Let a measuring thread have the interpreter soon: by default it waits 5 ms for one that renders or parses.

    Measured: `python -m benchmarks interpreter`.
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def spare_collector() -> None:
    """Take what lives long out of the garbage collector's sight: going through it holds every thread up, for most of
    a second with hundreds of targets. What leaves later is freed all the same: it is not held by circles.
    """
    gc.collect(1)
    gc.freeze()
