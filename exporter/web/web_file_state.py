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
                self.values = self._read(path)
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
        if stamp(self._watched) == self._stamp:
            return
        try:
            fresh = self._read(path)
            if path.stat().st_size == 0 and self.values.config != WebFile():
                raise SettingsError([f"{path}: is empty; write what it had, or {{}} for nothing"])
        except SettingsError as error:
            for line in error.problems:
                self._report("web file", f"the web file is wrong, what was read before stays in force: {line}")
            return
        if (fresh.context is not None) != self.speaks_tls:
            change = "now has" if fresh.context is not None else "no longer has"
            self._report("web file", f"{path} {change} a tls_server_config: takes effect at the next start only")
            # The whole section stays: it also says which names of clients are allowed.
            before = {"tls_server_config": self.values.config.tls_server_config}
            fresh = WebFileValues(fresh.config.model_copy(update=before), self.values.context)
        self.values = fresh

    def _read(self, path: Path) -> WebFileValues:
        """Each stamp is taken before its file is read, so that a change in between is seen next time. The files that a
        wrong one names are watched too: a certificate may come later.
        """
        self._stamp = stamp(self._watched)
        own = stamp([path])
        config = load(path)
        certificates = _certificates(config) or _certificates(self.values.config)
        self._watched, self._stamp = [path, *certificates], own + stamp(certificates)
        return WebFileValues(config, _context(path, config))


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
