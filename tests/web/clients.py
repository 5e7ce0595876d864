"""A server in this process, and clients that write their requests by hand."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

from exporter.metrics.collector import Registry
from exporter.web.admission import Admission
from exporter.web.routes import Views
from exporter.web.server import WebServer
from exporter.web.web_file_state import WebFileState
from tests.processes import PATIENCE
from tests.web.certificates import Authority

HOST = "127.0.0.1"
SMALL, LARGE = "x" * 5, "x" * 16_000_000


def pages(status: Callable[[], str] = lambda: SMALL, **more: Any) -> Views:
    """`/` is a small page, `/config` a large one."""
    return Views(Registry, lambda: None, lambda: None, None, lambda: LARGE, status, **more)


@contextmanager
def serving(
    views: Views | None = None,
    web_file: WebFileState | None = None,
    paced_by: Admission | None = None,
    report: Callable[[str, str], None] = lambda kind, line: None,
) -> Iterator[WebServer]:
    found = WebServer(f"{HOST}:0", views or pages(), web_file, report, paced_by)
    with start_blocking_portal() as portal:
        life = portal.start_task_soon(found.serve)
        try:
            yield found
        finally:
            life.cancel()


def clients(stack: ExitStack, found: WebServer, number: int) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection((HOST, found.port), PATIENCE)) for _ in range(number)]


def request(path: str = "/", *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: x", *headers, "\r\n")).encode()


def last_request(path: str = "/") -> bytes:
    return request(path, "Connection: close")


def status(client: socket.socket) -> int:
    return int(client.recv(12).split()[1])


def whole(client: socket.socket, ends_with: bytes) -> bytes:
    answered = bytearray()
    while not answered.endswith(ends_with):
        part = client.recv(65536)
        assert part, f"closed after {len(answered)} bytes"
        answered += part
    return bytes(answered)


def until_closed(client: socket.socket) -> bytes:
    client.settimeout(PATIENCE)
    answered = bytearray()
    with suppress(ConnectionError):
        while part := client.recv(65536):
            answered += part
    return bytes(answered)


def opened_by_a_reader(pipe: Path) -> int | None:
    """The other end, kept open: the reader then waits for its data."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def tls_web_file(authority: Authority) -> WebFileState:
    pair = authority.sign("server", "IP:127.0.0.1")
    web = authority.folder / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}}}\n")
    return WebFileState(web)
