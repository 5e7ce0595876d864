"""Both doors behind TLS, with and without client certificates."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from exporter.simulator import ServerTls
from exporter.simulator.router import Router
from tests.simulator.router.callers import Http, Rpc, fast, single
from tests.web.certificates import Authority

SERVERS = ("h2", "library")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=SERVERS)
def mutual(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Router]:
    """A router that asks its clients for a certificate."""
    pair = authority.sign("localhost", "DNS:localhost,IP:127.0.0.1")
    tls = ServerTls(pair.certificate, pair.key, authority.own.certificate)
    with Router(fast(tls=tls, grpc_server=request.param)) as router:
        yield router


def test_a_client_that_trusts_the_authority_is_served_by_both_doors(authority: Authority) -> None:
    pair = authority.sign("localhost", "DNS:localhost,IP:127.0.0.1")
    with Router(fast(tls=ServerTls(pair.certificate, pair.key))) as router:
        with Http(str(router.http), ssl.create_default_context(cafile=authority.own.certificate)) as http:
            assert http.ask("GET", "/health") == (200, b"")
        with Rpc(str(router.grpc), grpc.ssl_channel_credentials(read(authority.own.certificate))) as rpc:
            assert len(list(rpc.stream(single(2)))) == 3


def test_with_a_client_ca_a_client_must_show_its_certificate(authority: Authority, mutual: Router) -> None:
    client = authority.sign("client", "DNS:client")
    context = ssl.create_default_context(cafile=authority.own.certificate)
    with Http(str(mutual.http), context) as http, pytest.raises((ssl.SSLError, ConnectionError)):
        http.ask("GET", "/health")
    context.load_cert_chain(client.certificate, client.key)
    with Http(str(mutual.http), context) as http:
        assert http.ask("GET", "/health") == (200, b"")
    anonymous = grpc.ssl_channel_credentials(read(authority.own.certificate))
    with Rpc(str(mutual.grpc), anonymous) as rpc:
        assert rpc.failure(single())[0] is grpc.StatusCode.UNAVAILABLE
    known = grpc.ssl_channel_credentials(read(authority.own.certificate), read(client.key), read(client.certificate))
    with Rpc(str(mutual.grpc), known) as rpc:
        assert len(list(rpc.stream(single(2)))) == 3


def read(file: Path) -> bytes:
    return file.read_bytes()
