"""TLS and mTLS to a router, over both protocols, with certificates of real openssl."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.observation import Failure, Outcome
from exporter.simulator.roofline import Roofline
from exporter.simulator.router import Router
from exporter.simulator.router_options import RouterConfig, ServerTls
from tests.router.parts import Probing, target, workload
from tests.web.certificates import Authority, Pair

FAST = RouterConfig(roofline=replace(Roofline(), speed=20.0))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.sign("router.test", "DNS:router.test,IP:127.0.0.1")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.sign("probe.test", serial=2)


@pytest.fixture
def router(server: Pair) -> Iterator[Router]:
    with Router(replace(FAST, tls=ServerTls(server.certificate, server.key))) as router:
        yield router


@pytest.fixture
def strict_router(server: Pair, authority: Authority) -> Iterator[Router]:
    """Asks for a client's certificate."""
    with Router(replace(FAST, tls=ServerTls(server.certificate, server.key, authority.own.certificate))) as router:
        yield router


@pytest.fixture(params=["fmaas", "tgi", "chat"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def probing(door: str, router: Router, **tls: Any) -> Probing:
    return Probing(target(door, router.http, router.grpc, tls={key: str(value) for key, value in tls.items()}))


def refusal(client: Probing) -> Failure:
    with client, pytest.raises(Failure) as caught:
        client.prober.connect(5.0)
    assert (caught.value.outcome, caught.value.code) == (Outcome.UNREACHABLE, "UNAVAILABLE")
    return caught.value


def test_a_router_of_a_trusted_authority_is_probed_over_tls(door: str, router: Router, authority: Authority) -> None:
    with probing(door, router, ca_file=authority.own.certificate) as client:
        first = client.probe(workload(), 4)
        second = client.probe(workload(), 4)
    assert first.outcome is second.outcome is Outcome.OK
    assert len(first.setups) == 4
    assert second.setups == ()
    assert [sum(step.tokens for step in stream.steps) for stream in second.streams] == [8] * 4


def test_an_unknown_authority_is_not_trusted(door: str, router: Router, tmp_path: Path) -> None:
    other = Authority.found(tmp_path, "other")
    detail = refusal(probing(door, router, ca_file=other.own.certificate)).detail
    assert detail.endswith("certificate; set tls: {ca_file: …} to the certificate of who signed it")


def test_the_systems_authorities_do_not_know_ours(door: str, router: Router) -> None:
    assert "certificate" in refusal(probing(door, router)).detail


def test_the_name_in_the_certificate_is_checked_and_can_be_given(
    door: str, router: Router, authority: Authority
) -> None:
    ca_file = authority.own.certificate
    detail = refusal(probing(door, router, ca_file=ca_file, server_name="elsewhere.test")).detail
    assert "elsewhere.test" in detail
    assert detail.endswith("set tls: {server_name: …} to a name that its certificate has")
    with probing(door, router, ca_file=ca_file, server_name="router.test") as client:
        assert client.probe(workload(), 1).outcome is Outcome.OK


def test_a_client_certificate_is_shown_where_one_is_asked_for(
    door: str, strict_router: Router, authority: Authority, client: Pair
) -> None:
    files = {"ca_file": authority.own.certificate, "cert_file": client.certificate, "key_file": client.key}
    with probing(door, strict_router, **files) as probe:
        assert probe.probe(workload(), 2).outcome is Outcome.OK


def test_without_a_client_certificate_it_is_unreachable(door: str, strict_router: Router, authority: Authority) -> None:
    detail = refusal(probing(door, strict_router, ca_file=authority.own.certificate)).detail
    assert detail.endswith("does it want a certificate of ours? Then set cert_file and key_file in tls")


def test_plain_text_to_a_tls_port_is_unreachable(door: str, router: Router) -> None:
    refusal(Probing(target(door, router.http, router.grpc)))


def test_tls_to_a_plain_text_port_is_unreachable(door: str) -> None:
    with Router(FAST) as router:
        assert "TLS" in refusal(probing(door, router)).detail


@pytest.mark.parametrize(
    ("files", "detail"),
    [
        ({"ca_file": "none.pem"}, "tls.ca_file: none.pem cannot be read: No such file or directory"),
        ({"ca_file": __file__}, f"tls.ca_file: {__file__} holds no certificate"),
        ({"cert_file": __file__}, f"tls.cert_file: {__file__} cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(door: str, router: Router, files: dict[str, str], detail: str) -> None:
    assert detail in refusal(probing(door, router, **files)).detail


def test_a_renewed_certificate_is_taken_up_by_the_next_connection(
    door: str, router: Router, authority: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(Authority.found(tmp_path, "old").own.certificate.read_bytes())
    with probing(door, router, ca_file=file) as client:
        with pytest.raises(Failure):
            client.prober.connect(5.0)
        file.unlink()
        file.write_bytes(authority.own.certificate.read_bytes())
        assert client.probe(workload(), 1).outcome is Outcome.OK
