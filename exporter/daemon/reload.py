"""Takes a new configuration while the daemon runs: one at a time, and all of it or nothing."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from exporter.config.errors import SettingsError
from exporter.config.notation import counted
from exporter.config.settings import Settings
from exporter.config.sources import stamp
from exporter.daemon.journal import set_up
from exporter.daemon.ledger import Recorder
from exporter.daemon.manual_probe import STOPPING
from exporter.daemon.probed_targets import ProbedTargets
from exporter.daemon.threads import run_in_daemon_thread
from exporter.plan.targets import Change, Plan, change, plans

logger = logging.getLogger("tgi_probe")
# How long somebody waits for the answer over HTTP.
ANSWER_SECONDS = 60.0
LOOK_AT_FILE_SECONDS = 1.0


class ConfigurationFile:
    """Whether the file, if there is one, changed since it was looked at last."""

    def __init__(self, file: Path | None) -> None:
        self._files = [file] if file else []
        self._stamp = stamp(self._files)

    def changed(self) -> bool:
        before, self._stamp = self._stamp, stamp(self._files)
        return before != self._stamp


class WaitingReload:
    """What it answered, once it is done."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.answer = [STOPPING]


class Reloads:
    """`read` reads the new settings; those in force are the recorder's. Reloads run in `tasks`."""

    def __init__(
        self, read: Callable[[], Settings], recorder: Recorder, targets: ProbedTargets, tasks: TaskGroup
    ) -> None:
        self._read = read
        self._recorder = recorder
        self._targets = targets
        self._tasks = tasks
        self._one_at_a_time = anyio.Lock()
        # The reload that waits for the one under way. It reads the newest file, so it answers all who ask meanwhile.
        self._waiting: WaitingReload | None = None
        self._closed = False
        self._stopped_some = False  # targets of the old configuration, and not yet started those of the new one

    async def reload(self) -> list[str]:
        """The problems that kept the new configuration from being taken, none when it is in force.

        After ANSWER_SECONDS the answer says that the reload is still under way. The reload goes on then, and also when
        its caller is cancelled.
        """
        if self._closed:
            return [STOPPING]
        if self._waiting is None:
            self._waiting = WaitingReload()
            self._tasks.start_soon(self._run, self._waiting)
        waiting = self._waiting
        with anyio.move_on_after(ANSWER_SECONDS):
            await waiting.done.wait()
            return waiting.answer
        return [f"the reload is still under way after {ANSWER_SECONDS:g} s; see the log"]

    async def _run(self, waiting: "WaitingReload") -> None:
        try:
            async with self._one_at_a_time:
                self._waiting = None
                waiting.answer = await self._guarded_reload()
        finally:
            waiting.done.set()

    def close(self) -> None:
        """Refuse what is still to come. The reload under way ends when its tasks are cancelled."""
        self._closed = True

    async def watch(self, file: ConfigurationFile) -> None:
        """Reload when the file changes, as long as the settings ask for it."""
        while True:
            await anyio.sleep(LOOK_AT_FILE_SECONDS)
            try:
                if self._recorder.settings.reload_on_change and await run_in_daemon_thread(file.changed, "stat"):
                    await self.reload()
            except Exception:  # such as no thread to be had at the moment
                logger.exception("tgi-probe failed while it looked whether the configuration file changed")

    async def _guarded_reload(self) -> list[str]:
        """A bug in a reload must not end the daemon."""
        try:
            return await self._reload()
        except Exception as error:
            logger.critical("the reload ended by a bug of tgi-probe; restart it", exc_info=True)
            self._targets.reload_failed = self._stopped_some
            # Not in a worker thread: that there is none may be the bug.
            self._recorder.metrics.reloaded(False)
            return [f"the reload ended by a bug of tgi-probe ({type(error).__name__}: {error}); restart it"]

    async def _reload(self) -> list[str]:
        try:
            # It may hang, as a file on a network does. That must not keep the daemon from stopping.
            settings = await run_in_daemon_thread(self._read, "read-configuration")
        except SettingsError as error:
            for problem in error.problems:
                logger.error("reload refused, the old configuration stays in force: %s", problem)
            await to_thread.run_sync(self._recorder.metrics.reloaded, False)
            return error.problems
        if settings.web != self._recorder.settings.web:
            logger.warning("web: takes effect at the next start only")
        old, new = plans(self._recorder.settings), plans(settings)
        what = change(old, new)
        running = set(self._targets.names)
        leaving = [name for name in what.leaving if name in running]
        self._stopped_some = True
        self._targets.stop(leaving)
        await self._targets.drain(anyio.current_time())
        await to_thread.run_sync(self._take_over, settings, old, new, what)
        set_up(settings.log_level, settings.log_format)
        await self._targets.start(new[name] for name in what.arriving)
        self._stopped_some = False
        logger.info(
            "reloaded, %s: %d kept, %d started, %d stopped",
            counted(len(new), "target"),
            len(new) - len(what.arriving),
            len(what.arriving),
            len(what.leaving),
        )
        return []

    def _take_over(self, settings: Settings, old: dict[str, Plan], new: dict[str, Plan], what: Change) -> None:
        """In a worker thread: a page that is being made holds it up, and with hundreds of targets it takes a while."""
        for name in what.leaving:
            if name in new:
                self._recorder.metrics.narrow(new[name], old[name])
            else:
                self._recorder.metrics.forget(name)
            self._recorder.forget(name)
        self._change_objectives(settings, [plan for name, plan in new.items() if name not in what.arriving])
        self._recorder.settings = settings

    def _change_objectives(self, settings: Settings, staying: Sequence[Plan]) -> None:
        """New objectives on the old instruments; everything that still exists goes on counting."""
        self._recorder.metrics.configure(settings)
        self._recorder.metrics.reloaded(True)
        for plan in staying:
            self._recorder.metrics.announce_objectives(plan)
