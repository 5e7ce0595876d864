"""The web file and its certificates: read again when a file changes; after an error the last good ones stay."""

from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext

from exporter.config.errors import SettingsError
from exporter.config.sources import Stamp, stamp
from exporter.web.tls import context, problem
from exporter.web.web_file import WebFile, load


class WebFileState:
    """For one thread, and cheap enough for every request: without a change it costs one `stat` for each file.

    Whether TLS is used is decided at the start: a file that loses its `tls_server_config` later does not turn it off.
    Raises SettingsError at the start only. `report` gets a kind and a line.
    """

    def __init__(self, path: Path | None, report: Callable[[str, str], None] = lambda kind, line: None) -> None:
        self._path = path
        self._report = report
        self._config = WebFile()
        self._context: SSLContext | None = None
        self._stamp: Stamp = ()
        if path is not None:
            try:
                self._config, self._context, self._stamp = _read(path)
            except SettingsError as error:
                raise _named(error) from None
        self.speaks_tls = self._context is not None

    @property
    def config(self) -> WebFile:
        self._refresh()
        return self._config

    @property
    def context(self) -> SSLContext | None:
        self._refresh()
        return self._context

    def _refresh(self) -> None:
        path = self._path
        if path is None or (now := stamp(_files(path, self._config))) == self._stamp:
            return
        try:
            config, fresh, self._stamp = _read(path)
        except SettingsError as error:
            self._stamp = now
            for line in error.problems:
                self._report("web file", f"the web file is wrong, what was read before stays in force: {line}")
            return
        if (fresh is not None) != self.speaks_tls:
            change = "now has" if fresh is not None else "no longer has"
            self._report("web file", f"{path} {change} a tls_server_config: takes effect at the next start only")
            fresh = self._context
        self._config, self._context = config, fresh


def check(path: Path, with_certificates: bool) -> None:
    """Raises SettingsError when the web file is wrong, or one of its certificates."""
    read = _read if with_certificates else load
    try:
        read(path)
    except SettingsError as error:
        raise _named(error) from None


def _named(error: SettingsError) -> SettingsError:
    return SettingsError([f"web.config_file: {line}" for line in error.problems])


def _read(path: Path) -> tuple[WebFile, SSLContext | None, Stamp]:
    config = load(path)
    # Taken before the certificates are read, so that a change in between is seen next time.
    seen = stamp(_files(path, config))
    if config.tls_server_config is None:
        return config, None, seen
    try:
        return config, context(config.tls_server_config), seen
    except (OSError, ValueError) as error:
        raise SettingsError([f"{path}: tls_server_config{problem(config.tls_server_config, error)}"]) from None


def _files(path: Path, config: WebFile) -> list[Path]:
    tls = config.tls_server_config
    named = (tls.cert_file, tls.key_file, tls.client_ca_file) if tls else ()
    return [path, *(file for file in named if file is not None)]
