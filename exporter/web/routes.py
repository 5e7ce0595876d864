"""Which page a request gets. It knows no prober and no runner: the daemon gives it functions."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from anyio import CapacityLimiter, to_thread

from exporter.metrics import pages
from exporter.metrics.collector import Registry
from exporter.metrics.formats import PROTOBUF
from exporter.metrics.pauses import Pauses
from exporter.web.messages import HTML, HttpResponse, ReceivedRequest, encoded, text_response
from exporter.web.negotiation import choose_format, compressed

PROBE_PARAMETERS = ("target", "workload", "batch_size")
OFF = "off; set {key}: true (or {variable}=true) and restart"


@dataclass(frozen=True, slots=True)
class Views:
    """What the pages show, as functions, so that a reload can exchange what is behind them.

    `healthy` and `ready` return None when all is well, else why not. They are called on the event loop, those of the
    other pages in a worker thread. `reload` returns the problems, none when the new configuration is in force; it is
    None where nobody may reload over HTTP. `probe` gets the PROBE_PARAMETERS, "" for one that is missing, and returns
    a status and a text; None: nobody may probe.
    """

    registry: Callable[[], Registry]
    healthy: Callable[[], str | None]
    ready: Callable[[], str | None]
    reload: Callable[[], Awaitable[list[str]]] | None
    configuration: Callable[[], str]
    status: Callable[[], str] = str
    probe: Callable[[str, str, str], Awaitable[tuple[str, str]]] | None = None


async def answer(request: ReceivedRequest, views: Views, workers: CapacityLimiter) -> HttpResponse:
    """The response to any request. What takes time is done in the threads of `workers`."""
    if request.is_action:
        return await _act(request, views)
    if request.is_health_check or request.path == "/metrics":  # whose body is made when it is sent
        return respond(request, views)
    return await to_thread.run_sync(respond, request, views, limiter=workers, abandon_on_cancel=True)


def respond(request: ReceivedRequest, views: Views) -> HttpResponse:
    """The response to a request that only reads."""
    match request.path:
        case "/metrics":
            return _metrics(request, views.registry())
        case "/-/healthy":
            return _state(views.healthy())
        case "/-/ready":
            return _state(views.ready())
        case "/config":
            return HttpResponse(
                "200 OK", encoded(views.configuration()), "text/plain; charset=utf-8"
            )  # browsers store YAML as a file
        case "/":
            return HttpResponse("200 OK", encoded(views.status()), HTML)
        case _:
            return text_response("404 Not Found", f"no page at {json.dumps(request.path)}")


def _metrics(request: ReceivedRequest, registry: Registry) -> HttpResponse:
    form = choose_format(request.headers.get("accept", ""))
    packed = compressed(request.headers.get("accept-encoding", ""))
    if form is None or packed is None:
        offered = f"offered: text/plain, application/openmetrics-text and {PROTOBUF.content_type}; as it is or in gzip"
        return text_response("406 Not Acceptable", offered)
    if packed:
        return HttpResponse("200 OK", pages.gzip_page(registry, form, Pauses()), form.content_type, "gzip")
    return HttpResponse("200 OK", pages.page(registry, form, Pauses()), form.content_type)


def _state(trouble: str | None) -> HttpResponse:
    return text_response("200 OK", "ok") if trouble is None else text_response("503 Service Unavailable", trouble)


async def _act(request: ReceivedRequest, views: Views) -> HttpResponse:
    match request.path:
        case "/-/reload":
            return await _reload(request, views)
        case "/probe":
            return await _probe(request, views)
        case _:
            return text_response("405 Method Not Allowed", "use GET")


async def _reload(request: ReceivedRequest, views: Views) -> HttpResponse:
    if views.reload is None:
        off = OFF.format(key="web.enable_reload", variable="TGI_PROBE_WEB__ENABLE_RELOAD")
        return text_response("403 Forbidden", off)
    if request.method not in ("POST", "PUT"):
        return text_response("405 Method Not Allowed", "use POST: curl -X POST …/-/reload")
    if problems := await views.reload():
        return text_response("500 Internal Server Error", "\n".join(problems))
    return text_response("200 OK", "reloaded")


async def _probe(request: ReceivedRequest, views: Views) -> HttpResponse:
    if request.method not in ("GET", "HEAD"):
        return text_response("405 Method Not Allowed", "use GET")
    if views.probe is None:
        off = OFF.format(key="web.enable_probe", variable="TGI_PROBE_WEB__ENABLE_PROBE")
        return text_response("403 Forbidden", off)
    if request.method == "HEAD":
        return text_response("400 Bad Request", "use GET")
    given = parse_qs(request.query)
    target, workload, batch_size = (given.get(name, [""])[0] for name in PROBE_PARAMETERS)
    return text_response(*await views.probe(target, workload, batch_size))
