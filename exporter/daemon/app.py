"""The daemon's life: start, signals, stop. The composition root: here its parts are made and put together."""

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from exporter.config.errors import SettingsError
from exporter.config.settings import Settings
from exporter.config.sources import load
from exporter.daemon.journal import set_up
from exporter.daemon.ledger import Recorder
from exporter.daemon.page_data import PageData
from exporter.daemon.probed_targets import LONGEST_STOP_SECONDS, ProbedTargets
from exporter.daemon.reload import ConfigurationFile, Reloads
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.plan.targets import plans
from exporter.web.routes import Views
from exporter.web.server import WebServer
from exporter.web.web_file_state import WebFileState

logger = logging.getLogger("tgi_probe")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNALS = (*STOP_SIGNALS, signal.SIGHUP)
SWITCH_SECONDS = 0.0001


class Daemon:
    """Probes until SIGTERM or SIGINT. `read` reads the settings, at the start and anew at each reload.

    Errors: SettingsError, also from `run` when the port is taken.
    """

    def __init__(
        self,
        read: Callable[[], Settings],
        on_ready: Callable[[int], None] = lambda port: None,
        file: Path | None = None,
    ) -> None:
        self._read = read
        self._on_ready = on_ready
        self._file = ConfigurationFile(file)  # looked at before it is read: a change in between is noticed later
        settings = read()
        set_up(settings.log_level, settings.log_format)
        metrics = Metrics(layout(settings))
        metrics.configure(settings)
        metrics.reloaded(True)
        self.recorder = Recorder(metrics, settings)

    def run(self) -> int:
        """Blocks the main thread, which the signals need. Answers the exit code. Later signals are ignored."""
        anyio.run(self.serve)
        return 0

    async def serve(self) -> None:
        """SIGTERM and SIGINT stop, SIGHUP reloads; signals that come during the stop change nothing."""
        http, probing, tasks = (anyio.create_task_group() for _ in range(3))
        targets = ProbedTargets(self.recorder, probing)
        reloads = Reloads(self._read, self.recorder, targets, tasks)
        stopped_at = None
        with (
            anyio.open_signal_receiver(*SIGNALS) as signals,
            contextlib.closing(self._bind(PageData(self.recorder, targets), reloads)) as server,
        ):
            async with http, probing:
                try:
                    async with tasks:
                        await targets.start(plans(self.recorder.settings).values())
                        tasks.start_soon(reloads.watch, self._file)
                        http.start_soon(server.serve)
                        logger.info("listening on %s, probing %s", server.address, ", ".join(targets.names))
                        self._on_ready(server.port)
                        await _until_stop(signals, tasks, reloads)
                        stopped_at = anyio.current_time()
                        reloads.close()
                        targets.stop(targets.names)
                        tasks.cancel_scope.cancel()
                finally:
                    # Whatever ends it, no batch stays behind.
                    with anyio.CancelScope(shield=True):
                        targets.stop(targets.names)  # one may have been started meanwhile
                        await targets.drain(stopped_at or anyio.current_time())
                probing.cancel_scope.cancel()
                http.cancel_scope.cancel()
        ignore(*SIGNALS)  # their handlers are gone, and another signal must change neither the end nor the exit code
        logger.info("stopped")

    def _bind(self, data: PageData, reloads: Reloads) -> WebServer:
        """Before anything else, so that a port that is taken ends the start. It answers once the targets are there."""
        web = self.recorder.settings.web
        views = Views(
            registry=lambda: self.recorder.metrics.registry,
            healthy=data.unhealthy,
            ready=data.not_ready,
            reload=reloads.reload if web.enable_reload else None,
            configuration=data.configuration,
            status=data.status,
            probe=data.manual_probe if web.enable_probe else None,
        )
        warn = self.recorder.journal.warn
        web_file = WebFileState(web.config_file, warn)
        try:
            return WebServer(web.listen_address, views, web_file, warn)
        except OSError as error:
            # Python adds the address to the system's words.
            number = error.errno or 0
            why = os.strerror(number) if number in errno.errorcode else error.strerror or error
            problem = f"web.listen_address: {web.listen_address}: cannot be used ({why}); choose another"
            raise SettingsError([problem]) from None


async def _until_stop(signals: AsyncIterator[signal.Signals], tasks: TaskGroup, reloads: Reloads) -> None:
    async for number in signals:
        if number in STOP_SIGNALS:
            break
        tasks.start_soon(reloads.reload)
    line = "stopping: waiting for the calls in flight, clearing our batches; this takes at most %g s"
    logger.info(line, LONGEST_STOP_SECONDS)


def run(config: Path | None, on_ready: Callable[[int], None] = lambda port: None) -> int:
    """The daemon, until a signal. 0 after a graceful stop; SettingsError before it has begun."""
    tune_interpreter()
    return Daemon(lambda: load(config), on_ready, config).run()


def ignore(*numbers: signal.Signals) -> None:
    """For the rest of the process."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def tune_interpreter() -> None:
    """Let a measuring thread have the interpreter soon: by default it waits 5 ms for one that renders or parses.

    Measured: `python -m benchmarks interpreter`.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
