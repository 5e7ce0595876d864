"""While pages are being made: health and other pages are answered, and a page under way is sent or is an error."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from anyio.from_thread import start_blocking_portal
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from exporter.config.settings import Settings
from exporter.metrics.catalogue import layout
from exporter.metrics.collector import Registry
from exporter.metrics.record import Metrics
from exporter.plan.targets import plans
from exporter.web import admission, server
from exporter.web.routes import Views
from exporter.web.server import WebServer
from tests.processes import PATIENCE, ask, wait_until
from tests.web.clients import HOST, SMALL, clients, last_request, pages, request, serving, until_closed, whole


@contextmanager
def pages_under_way() -> Iterator[tuple[WebServer, threading.Semaphore]]:
    """A server whose every worker makes a page that does not end before the block does."""
    begun, may_end = threading.Semaphore(0), threading.Event()

    def status() -> str:
        begun.release()
        may_end.wait(PATIENCE)
        return SMALL

    with serving(pages(status)) as found:
        try:
            yield found, begun
        finally:
            may_end.set()


def test_health_is_answered_while_as_many_pages_are_made_as_can_be() -> None:
    with pages_under_way() as (found, begun), ExitStack() as stack:
        for client in clients(stack, found, admission.MAX_PAGES + 5):
            client.sendall(last_request())
        for _ in range(server.WORKERS):
            assert begun.acquire(timeout=PATIENCE)
        assert ask(f"http://{HOST}:{found.port}/-/healthy").status == 200


class HeldCollector(Collector):
    """Holds a page back in its middle until it is released, and remembers which thread makes the page."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()
        self.thread = 0

    def collect(self) -> list[Metric]:
        self.thread = threading.get_ident()
        self.begun.set()
        self.released.wait(PATIENCE)
        return []

    def describe(self) -> list[Metric]:
        return []


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_health_is_answered_while_the_page_of_256_targets_is_made(encoding: str) -> None:
    settings = Settings.model_validate(
        {
            "targets": [{"name": f"t{number}", "address": f"h:{number}"} for number in range(1, 257)],
            "workloads": [{"name": "chat", "batch_sizes": [1, 2, 4, 8]}],
            "histograms": {"classic": "fine"},
        }
    )
    metrics = Metrics(layout(settings))
    metrics.configure(settings)
    for plan in plans(settings).values():
        metrics.announce(plan)
    held = HeldCollector()
    metrics.registry.process.register(held)
    loop_threads: list[int] = []

    def healthy() -> None:
        loop_threads.append(threading.get_ident())

    with serving(Views(lambda: metrics.registry, healthy, lambda: None, None, str)) as found, ExitStack() as stack:
        stack.callback(held.released.set)
        [scraper] = clients(stack, found, 1)
        scraper.sendall(request("/metrics", f"Accept-Encoding: {encoding}", "Connection: close"))
        assert held.begun.wait(PATIENCE)
        assert ask(f"http://{HOST}:{found.port}/-/healthy").status == 200
        assert held.thread not in loop_threads
        held.released.set()
        assert len(until_closed(scraper)) > 1_000_000


def test_other_pages_are_answered_while_many_metrics_pages_wait_for_each_other() -> None:
    metrics, held = Registry(), HeldCollector()
    metrics.process.register(held)
    asked_for = threading.Semaphore(0)

    def registry() -> Registry:
        asked_for.release()
        return metrics

    views = Views(registry, lambda: None, lambda: None, None, str)
    with serving(views) as found, ExitStack() as stack:
        stack.callback(held.released.set)
        scrapers = clients(stack, found, server.WORKERS + 2)
        for client in scrapers:
            client.sendall(request("/metrics"))
        for _ in scrapers:
            assert asked_for.acquire(timeout=PATIENCE)
        for path in ("/", "/config"):
            assert ask(f"http://{HOST}:{found.port}{path}").status == 200


def test_a_page_under_way_is_sent_whole_after_the_stop() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def page() -> str:
        begun.set()
        may_end.wait(PATIENCE)
        return SMALL

    with start_blocking_portal() as portal, ExitStack() as stack:
        found = WebServer(f"{HOST}:0", pages(page))
        life = portal.start_task_soon(found.serve)
        [client] = clients(stack, found, 1)
        client.sendall(last_request())
        assert begun.wait(PATIENCE)
        life.cancel()
        wait_until(lambda: _refused(found.port), "no one is accepted any more")
        may_end.set()
        assert whole(client, b"xxxxx")


def _refused(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_page_that_fails_by_a_bug_is_an_error_and_the_server_goes_on() -> None:
    def broken() -> str:
        raise ValueError("a bug")

    class BrokenCollector(HeldCollector):
        def collect(self) -> list[Metric]:
            raise ValueError("a bug")

    registry = Registry()
    registry.process.register(BrokenCollector())
    with serving(Views(lambda: registry, lambda: None, lambda: None, None, str, broken)) as found:
        assert ask(f"http://{HOST}:{found.port}/").status == 500
        for encoding in ("gzip", "identity"):
            assert ask(f"http://{HOST}:{found.port}/metrics", headers={"Accept-Encoding": encoding}).status == 500
        assert ask(f"http://{HOST}:{found.port}/-/healthy").status == 200
