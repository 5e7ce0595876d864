"""Whatever a client sends to our HTTP port: an answer or a closed connection, no bug, and the next client is served."""

import re
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.metrics.collector import Registry
from exporter.web.routes import Views
from exporter.web.server import WebServer
from tests.faults.fuzz.documents import mutated
from tests.faults.fuzz.examples import ends, fuzz
from tests.processes import PATIENCE, wait_until
from tests.web.clients import HOST, last_request, request, serving, until_closed

PAGES = ("/", "/metrics", "/config", "/-/healthy", "/-/ready", "/-/reload", "/probe?target=t&workload=w&batch_size=1")
HEADERS = [
    *("Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3,*/*;q=0", "Accept: ,,;;q=;q=x"),
    *(
        "Accept-Encoding: gzip;q=1.0, identity;q=0",
        "Accept-Encoding: *;q=0",
        "Connection: close",
        "Connection: upgrade",
    ),
    *(
        "Content-Length: 3",
        "Content-Length: -1",
        f"Content-Length: {'9' * 30}",
        "Content-Length: 3, 3",
        "Content-Length: \u00b2",
    ),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Expect: 100-continue", "Host: x:y:z", "Host:", ": x"),
    *(
        "Authorization: Basic eDp5",
        "Authorization: Basic =",
        "Authorization: Bearer",
        f"Cookie: {'a' * 9000}",
        "X: \x7f\xff",
    ),
    *("X-Prometheus-Scrape-Timeout-Seconds: NaN", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "Te: trailers"),
]
VALID = [
    request(page, header, method=method)
    for page in PAGES
    for header in HEADERS[:3]
    for method in ("GET", "HEAD", "POST")
]
PIECES = [
    *(f"{header}\r\n".encode("latin-1") for header in HEADERS),
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b"%00",
        b"%ff%fe",
        b"%",
        b"//",
        b"/../",
        b"?",
        b"#",
        b"http://x/",
        b"*",
    ),
    *(
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"HTTP/1.0\r\n",
        b"HTTP/9.9\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    *(b"\x16\x03\x01\x02\x00\x01\x00", b"CONNECT h:1 ", b"OPTIONS * ", b"&target=%ff", b"=" * 50, b"a" * 9000),
]
ANY_BYTES = st.deferred(lambda: st.binary(max_size=100) | mutated(VALID, PIECES))
HEADER_BYTES = st.binary(max_size=30).filter(lambda data: b"\r" not in data and b"\n" not in data)
# A status line, and nothing of ours that failed.
ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
bugs: list[str] = []


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    async def reload() -> list[str]:
        return []

    async def probe(target: str, workload: str, batch_size: str) -> tuple[str, str]:
        return "200 OK", f"{target} {workload} {batch_size}"

    views = Views(Registry, lambda: None, lambda: None, reload, str, str, probe)
    with serving(views, report=lambda kind, line: bugs.append(line)) as found:
        yield found


def answered(server: WebServer, pieces: list[bytes]) -> bytes:
    """All that the server says to these bytes, until it closes: we have closed our side."""
    with socket.create_connection((HOST, server.port), PATIENCE) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has closed already
        return until_closed(client)


def check(server: WebServer, *pieces: bytes) -> None:
    with ends(pieces):
        answer = answered(server, list(pieces))
        wait_until(lambda: not server._connections, "the server has closed too", every=0.001)
        found = bugs.copy()
        bugs.clear()
        assert not found
        assert not answer or ANSWER.match(answer), answer[:200]
        assert b" 500 " not in answer[:20]


@fuzz
@given(data=ANY_BYTES, cut=st.integers(0, 400))
def test_any_bytes(server: WebServer, data: bytes, cut: int) -> None:
    check(server, data[:cut], data[cut:])


@fuzz
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE"]),
    path=st.sampled_from(PAGES) | st.text(max_size=30).map(lambda text: f"/{text}"),
    query=st.text(max_size=30) | st.just("&".join(["a=b"] * 2000)),
    name=st.sampled_from(["Accept", "Accept-Encoding", "Authorization", "Host", "Content-Length", "X"]),
    value=HEADER_BYTES | st.sampled_from(HEADERS).map(lambda header: header.partition(": ")[2].encode("latin-1")),
)
def test_any_path_and_header(server: WebServer, method: str, path: str, query: str, name: str, value: bytes) -> None:
    target = f"{path}?{query}".encode("utf-8", "surrogatepass")
    check(
        server,
        method.encode() + b" " + target + b" HTTP/1.1\r\nHost: x\r\n" + name.encode() + b": " + value + b"\r\n\r\n",
    )


def test_it_still_answers(server: WebServer) -> None:
    """Runs after the others of this module."""
    assert answered(server, [last_request("/-/healthy")]).startswith(b"HTTP/1.1 200 ")
