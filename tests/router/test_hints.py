"""A target of the wrong kind, or with the wrong idea of TLS, is told the key to change; against real servers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.target import Target
from exporter.observation import Failure, Outcome
from exporter.probes.interface import Prober
from exporter.probes.opening import open_prober
from exporter.probes.router.hints import hinted
from exporter.simulator import Shard
from exporter.simulator.roofline import Roofline
from exporter.simulator.router import Router
from exporter.simulator.router_options import RouterConfig, ServerTls
from exporter.wire.detect import HTTP1, HTTP2, TLS, detect_protocol
from exporter.wire.http_codec import BrokenConnection, Http1, Http2, HttpCodec, HttpRequest
from tests.router.parts import workload
from tests.simulator.caller import fast
from tests.web.certificates import Authority

FAST = RouterConfig(roofline=replace(Roofline(), speed=20.0))
PLAIN_TEXT = "the server answers without TLS; check the port; if the server is meant to speak plain text, "
EXPECTS_TLS = "does it expect TLS? Then "
# By kind and whether with TLS, then by server: how the line ends.
ENDINGS: dict[tuple[str, bool], dict[str, str]] = {
    ("shard", False): {
        "http": "is it the router's HTTP port? Then kind: http",
        "grpc": "is it the router? Then kind: fmaas",
        "https": "does it speak TLS? Then it is a router: kind: fmaas with tls: {}, or kind: http with https://…",
        "grpcs": "does it speak TLS? Then it is a router: kind: fmaas with tls: {}, or kind: http with https://…",
    },
    ("fmaas", False): {
        "shard": "it speaks gRPC, but not that of kind fmaas; try kind: shard, vllm or sglang",
        "http": "the server answers in HTTP/1.1; is it an HTTP port? Then kind: http, with address: http://…",
        "grpcs": f"{EXPECTS_TLS}tls: {{}}; is it an HTTP port? Then kind: http, with address: http://…",
        "https": f"{EXPECTS_TLS}tls: {{}}; is it an HTTP port? Then kind: http, with address: http://…",
    },
    ("fmaas", True): {
        "shard": f"{PLAIN_TEXT}remove tls",
        "http": f"{PLAIN_TEXT}remove tls",
        "grpc": f"{PLAIN_TEXT}remove tls",
        "https": "which gRPC needs; is it an HTTP port? Then kind: http, with address: https://…",
    },
    ("http", False): {
        "shard": "HTTP/2; is it a gRPC port? Then kind: fmaas for a router, kind: shard for a shard",
        "grpc": "HTTP/2; is it a gRPC port? Then kind: fmaas for a router, kind: shard for a shard",
        "https": f"closed the connection without an answer; {EXPECTS_TLS}change the address to https://…",
        "grpcs": f"closed the connection without an answer; {EXPECTS_TLS}change the address to https://…",
    },
    ("http", True): {
        "shard": f"{PLAIN_TEXT}change the address to http://…",
        "http": f"{PLAIN_TEXT}change the address to http://…",
        "grpc": f"{PLAIN_TEXT}change the address to http://…",
        "grpcs": "HTTP/2; is it a gRPC port? Then kind: fmaas with tls: {}",
    },
}
CASES = [(kind, tls, server) for (kind, tls), endings in ENDINGS.items() for server in endings]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def servers(authority: Authority) -> Iterator[Mapping[str, str]]:
    """host:port of every sort of server."""
    pair = authority.sign("router.test", "IP:127.0.0.1")
    secure = replace(FAST, tls=ServerTls(pair.certificate, pair.key))
    with Shard(fast()) as shard, Router(FAST) as router, Router(secure) as secret:
        found = {"shard": shard.addresses[0], "http": router.http, "grpc": router.grpc}
        found |= {"https": secret.http, "grpcs": secret.grpc}
        yield {name: str(address) for name, address in found.items()}


def first_trouble(prober: Prober) -> str:
    """Of connecting, or of the first probe where facts are not needed."""
    try:
        prober.connect(5.0)
    except Failure as failure:
        return failure.detail
    return prober.probe(workload(), 1, lambda: False).detail


@pytest.mark.parametrize(("kind", "tls", "server"), CASES)
def test_the_line_ends_with_what_it_looks_like_and_the_key_to_change(
    kind: str, tls: bool, server: str, servers: Mapping[str, str], authority: Authority
) -> None:
    scheme = {True: "https://", False: "http://"}[tls] if kind == "http" else ""
    keys: dict[str, Any] = {"tls": {"ca_file": str(authority.own.certificate)}} if tls else {}
    prober = open_prober(Target(name="t", kind=kind, address=scheme + servers[server], **keys))  # type: ignore[arg-type]
    try:
        detail = first_trouble(prober)
    finally:
        prober.close()
    assert detail.endswith(ENDINGS[kind, tls][server])
    assert servers[server] in detail


@pytest.mark.parametrize(
    ("first", "spoken"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", HTTP1),
        (bytes.fromhex("000012040000000000"), HTTP2),  # SETTINGS, as every HTTP/2 server begins
        (bytes.fromhex("15030100020246"), TLS),  # an alert, as OpenSSL answers what is no TLS
        (b"SSH-2.0-OpenSSH_9.2\r\n", None),
        (b"", None),
    ],
)
def test_a_server_is_known_by_its_first_bytes(first: bytes, spoken: str | None) -> None:
    assert detect_protocol(first) == spoken


@given(st.binary())
def test_whatever_a_server_sends_first_is_at_most_recognised(first: bytes) -> None:
    assert detect_protocol(first) in (None, HTTP1, HTTP2, TLS)


def hear_all(codec: HttpCodec, data: bytes) -> None:
    codec.receive(data)
    codec.receive(None)


def test_a_server_that_answers_with_a_tls_alert_is_recognised_by_both_protocols() -> None:
    alert = bytes.fromhex("15030100020246")
    for codec in (Http1("h"), Http2("h", "http")):
        codec.first_bytes()
        codec.encode(HttpRequest("GET", "/"))
        with pytest.raises(BrokenConnection, match="the server answers in TLS"):
            hear_all(codec, alert)


@pytest.mark.parametrize(
    ("kind", "code", "said", "hint"),
    [
        ("http", "UNAVAILABLE", "the server answers in TLS", "; change the address to https://…"),
        ("http", "BAD_REQUEST", "Client sent an HTTP request to an HTTPS server.", "; change the address to https://…"),
        ("http", "BAD_REQUEST", "no such model", ""),
        ("fmaas", "UNAVAILABLE", "the server answers in TLS", "; set tls: {}"),
        ("fmaas", "UNAVAILABLE", "Connection refused", ""),
    ],
)
def test_what_other_servers_say_has_its_hint(kind: str, code: str, said: str, hint: str) -> None:
    failure = Failure(Outcome.UNREACHABLE, code, said)
    assert hinted(failure, kind, secure=False, has_answered=False).detail == said + hint


@pytest.mark.parametrize("kind", ["http", "fmaas"])
@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("self-signed certificate in certificate chain", "ca_file"),
        ("IP address mismatch, certificate is not valid for '10.0.0.1'.", "server_name"),
        ("certificate has expired", "renew the server's certificate"),
        ("certificate is not yet valid", "clocks"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "cert_file and key_file"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "tls.cert_file"),
        ("TLSV1_ALERT_UNKNOWN_CA", "tls.cert_file"),
        ("the server closed the connection in the handshake", "does it speak TLS at all?"),
        ("the server closed the connection", "does it want a certificate of ours?"),
    ],
)
def test_what_openssl_says_of_certificates_has_its_mend(kind: str, said: str, hint: str) -> None:
    failure = Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"h:1: TLS: {said}")
    assert hint in hinted(failure, kind, secure=True, has_answered=False).detail.removeprefix(failure.detail)


@pytest.mark.parametrize("kind", ["http", "fmaas"])
@pytest.mark.parametrize("secure", [True, False])
def test_a_server_that_has_answered_before_may_close_a_connection_without_a_hint(kind: str, secure: bool) -> None:
    failure = Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "h:1: the server closed the connection")
    assert hinted(failure, kind, secure, has_answered=True) is failure
    assert hinted(failure, kind, secure, has_answered=False) is not failure
