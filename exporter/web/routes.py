"""The HTTP side: metrics, health, the configuration in use. A server with threads of its own; it only ever reads.

Behind it stands no reference to a prober or a runner: `app` hands over functions.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from exporter.config.notation import split_listen_address
from exporter.metrics import pages
from exporter.metrics.collector import Registry
from exporter.metrics.pauses import Pauses
from exporter.web.access import Guard
from exporter.web.current import Current
from exporter.web.listener import Listener
from exporter.web.negotiation import choose_format, compressed
from exporter.web.status_page import POLICY

OFF = "off; set {key}: true (or {variable}=true) and restart"
HTML = "text/html; charset=utf-8"
STOP_SECONDS = 4.0
TEXT = "text/plain; charset=utf-8"
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


@dataclass(frozen=True, slots=True)
class Views:
    """What the pages show, as functions, so that a reload can exchange what is behind them.

    `healthy` and `ready` answer None when all is well, else why not. `reload` answers the problems, none when it was
    taken; it is None where nobody may reload over HTTP. `probe` answers a status and a text; None: nobody may probe.
    """

    registry: Callable[[], Registry]
    healthy: Callable[[], str | None]
    ready: Callable[[], str | None]
    reload: Callable[[], list[str]] | None
    configuration: Callable[[], str]
    status: Callable[[], str] = str
    probe: Callable[[str, str, str], tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """An answer. A body that is an iterator goes out as it is made, its length unknown."""

    status: str
    body: bytes | Iterator[bytes]
    content_type: str = TEXT
    encoding: str | None = None


class Exposition:
    """Serves the views until stopped. `port` is the real one where port 0 was asked for. Raises OSError when taken."""

    def __init__(
        self,
        listen_address: str,
        views: Views,
        web: Current | None = None,
        report: Callable[[str, str], None] = lambda kind, line: None,
    ) -> None:
        host, port = split_listen_address(listen_address)
        if not host:
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        self._views = views
        web = web or Current(None)
        self._server = Listener((host, port), Guard(self._answer, web), web, report)
        self._server.prepare()
        self._thread = threading.Thread(target=self._server.serve, name="exposition", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.bind_addr[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Within STOP_SECONDS, whoever still waits for a page: cheroot would wait for its clients without end."""
        stopping = threading.Thread(target=self._server.stop, name="exposition-stop", daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        accepts = Accepts(environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", ""))
        page = respond(environ["REQUEST_METHOD"], environ["PATH_INFO"], accepts, self._views, environ["QUERY_STRING"])
        headers = [("Content-Type", page.content_type), ("Vary", "Accept, Accept-Encoding")]
        headers.append(("X-Content-Type-Options", "nosniff"))
        if page.content_type == HTML:
            headers.append(("Content-Security-Policy", POLICY))
        if page.encoding is not None:
            headers.append(("Content-Encoding", page.encoding))
        if isinstance(page.body, bytes):
            headers.append(("Content-Length", str(len(page.body))))
        start_response(page.status, headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            return []
        return [page.body] if isinstance(page.body, bytes) else page.body


@dataclass(frozen=True, slots=True)
class Accepts:
    """What the client says it can read: its headers Accept and Accept-Encoding."""

    format: str = ""
    encoding: str = ""


def respond(method: str, path: str, accepts: Accepts, views: Views, query: str = "") -> Page:
    """The page for a request: no sockets in here."""
    if path == "/-/reload":
        if views.reload is None:
            return _text("403 Forbidden", OFF.format(key="web.enable_reload", variable="TGI_PROBE_WEB__ENABLE_RELOAD"))
        if method not in ("POST", "PUT"):
            return _text("405 Method Not Allowed", "use POST: curl -X POST …/-/reload")
        problems = views.reload()
        return _text("500 Internal Server Error", "\n".join(problems)) if problems else _text("200 OK", "reloaded")
    if method not in ("GET", "HEAD"):
        return _text("405 Method Not Allowed", "use GET")
    match path:
        case "/metrics":
            return _metrics(views.registry(), accepts)
        case "/-/healthy":
            return _state(views.healthy())
        case "/-/ready":
            return _state(views.ready())
        case "/config":
            return Page("200 OK", _bytes(views.configuration()), "application/yaml; charset=utf-8")
        case "/":
            return Page("200 OK", _bytes(views.status()), HTML)
        case "/probe":
            return _probe(method, query, views)
        case _:
            return _text("404 Not Found", f"no page at {json.dumps(path)}")


def _metrics(registry: Registry, accepts: Accepts) -> Page:
    form, packed = choose_format(accepts.format), compressed(accepts.encoding)
    if form is None or packed is None:
        return _text("406 Not Acceptable", "offered: text/plain and application/openmetrics-text, as it is or in gzip")
    if packed:
        return Page("200 OK", pages.gzip_page(registry, form, Pauses()), form.content_type, "gzip")
    return Page("200 OK", pages.page(registry, form, Pauses()), form.content_type)


def _probe(method: str, query: str, views: Views) -> Page:
    if views.probe is None:
        return _text("403 Forbidden", OFF.format(key="web.enable_probe", variable="TGI_PROBE_WEB__ENABLE_PROBE"))
    given = parse_qs(query)
    if method == "HEAD" or not given.keys() >= {"target", "workload", "batch_size"}:
        return _text("400 Bad Request", "use /probe?target=…&workload=…&batch_size=…, with names of the configuration")
    return _text(*views.probe(given["target"][0], given["workload"][0], given["batch_size"][0]))


def _state(trouble: str | None) -> Page:
    return _text("200 OK", "ok") if trouble is None else _text("503 Service Unavailable", trouble)


def _text(status: str, text: str) -> Page:
    return Page(status, _bytes(f"{text}\n"))


def _bytes(text: str) -> bytes:
    """A character that UTF-8 cannot write must not cost the page."""
    return text.encode(errors="replace")
