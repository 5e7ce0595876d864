"""The web file and its certificates: read again when a file changes; after an error the last good ones stay."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import SSLContext
from typing import NamedTuple

from exporter.config.errors import SettingsError
from exporter.config.sources import Stamp, stamp
from exporter.web.tls import context, problem
from exporter.web.web_file import WebFile, load

# How often the files are looked at: a `stat` for each.
LOOK_SECONDS = 1.0


class WebFileValues(NamedTuple):
    """What one reading gave. `context` is None without TLS."""

    config: WebFile
    context: SSLContext | None


class WebFileState:
    """`values` are those of the last reading. While `followed`, a thread of its own reads changed files again: a file
    system that hangs holds up neither requests nor the end of the process.

    Whether TLS is used is decided at the start: a file that loses its `tls_server_config` later does not turn it off.
    Raises SettingsError at the start only. `report` gets a kind and a line, also from that thread.
    """

    def __init__(self, path: Path | None, report: Callable[[str, str], None] = lambda kind, line: None) -> None:
        self._path = path
        self._report = report
        self.values = WebFileValues(WebFile(), None)
        self._watched: list[Path] = [] if path is None else [path]
        self._stamp: Stamp = ()
        if path is not None:
            try:
                own = stamp([path])
                self.values = self._with_certificates(path, own, load(path))
            except SettingsError as error:
                raise _named(error) from None
        self.speaks_tls = self.values.context is not None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """In the block, `values` follow the files. Waits for nothing at its end."""
        ended = threading.Event()
        if self._path is not None:
            # Not a worker of anyio: those are no daemons, and one that hangs would keep the process alive.
            threading.Thread(target=self._follow, args=(self._path, ended), name="web file", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _follow(self, path: Path, ended: threading.Event) -> None:
        while not ended.wait(LOOK_SECONDS):
            try:
                self._refresh(path)
            except Exception as error:
                self._report("web file", f"a bug of tgi-probe in reading the web file: {type(error).__name__}: {error}")

    def _refresh(self, path: Path) -> None:
        now = stamp(self._watched)
        if now == self._stamp:
            return
        self._stamp = now
        try:
            fresh = self._read_again(path)
        except SettingsError as error:
            for line in error.problems:
                self._report("web file", f"the web file is wrong, what was read before stays in force: {line}")
            return
        if fresh.context is not None and not self.speaks_tls:
            self._report_tls(path, "now has")
            fresh = WebFileValues(fresh.config.model_copy(update={"tls_server_config": None}), None)
        self.values = fresh

    def _read_again(self, path: Path) -> WebFileValues:
        before, own = self.values.config, stamp([path])
        [(_, _, size, _)] = own
        config = load(path)
        # Empty while it is written: before it was read, or only then.
        is_being_written = size == 0 or stamp([path]) != own
        if is_being_written and config == WebFile() and before != WebFile():
            raise SettingsError([f"{path}: is empty; write what it had, or {{}} for nothing"])
        if self.speaks_tls and config.tls_server_config is None:
            self._report_tls(path, "no longer has")
            # The whole section stays: it also says which names of clients are allowed.
            config = config.model_copy(update={"tls_server_config": before.tls_server_config})
        return self._with_certificates(path, own, config)

    def _with_certificates(self, path: Path, own: Stamp, config: WebFile) -> WebFileValues:
        """Each stamp is taken before its file is read, so that a change in between is seen next time. The files that a
        wrong one names are watched too: a certificate may come later.
        """
        certificates = _certificates(config)
        self._watched, self._stamp = [path, *certificates], own + stamp(certificates)
        return WebFileValues(config, _context(path, config))

    def _report_tls(self, path: Path, change: str) -> None:
        self._report("web file", f"{path} {change} a tls_server_config: takes effect at the next start only")


def check(path: Path, with_certificates: bool) -> None:
    """Raises SettingsError when the web file is wrong, or one of its certificates."""
    try:
        config = load(path)
        if with_certificates:
            _context(path, config)
    except SettingsError as error:
        raise _named(error) from None


def _named(error: SettingsError) -> SettingsError:
    return SettingsError([f"web.config_file: {line}" for line in error.problems])


def _context(path: Path, config: WebFile) -> SSLContext | None:
    if config.tls_server_config is None:
        return None
    try:
        return context(config.tls_server_config)
    except (OSError, ValueError) as error:
        raise SettingsError([f"{path}: tls_server_config{problem(config.tls_server_config, error)}"]) from None


def _certificates(config: WebFile) -> list[Path]:
    tls = config.tls_server_config
    named = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls else ()
    return [file for file in named if file is not None]
