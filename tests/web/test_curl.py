"""The running daemon, asked by the real curl: TLS, client certificates, passwords, right, wrong and out of date."""

import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest

from tests.processes import TGI_PROBE, Process, running, wait_until
from tests.real_parts import real_part
from tests.web.certificates import Authority, Pair
from tests.web.clients import opened_by_a_reader

# 128+ are signals; these are curl's own: https://curl.se/libcurl/c/libcurl-errors.html
TLS_FAILED, CERTIFICATE_REFUSED = 35, 60
REFUSED_BY_SERVER = (TLS_FAILED, 55, 56)  # in or right after the handshake: sending or receiving fails


@dataclass(frozen=True, slots=True)
class Answer:
    exit_code: int
    status: int
    body: str


def curl(url: str, *options: str) -> Answer:
    command = [real_part("curl"), "--silent", "--max-time", "20", "--noproxy", "*", "--write-out", "\n%{http_code}"]
    done = subprocess.run([*command, *options, url], capture_output=True, text=True)
    body, _, status = done.stdout.rpartition("\n")
    return Answer(done.returncode, int(status), body)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.found(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.sign("server", "DNS:localhost,IP:127.0.0.1")


class Daemon:
    """A daemon with a web file; its target is not there, which does not matter here."""

    def __init__(self, folder: Path, web: str, variables: dict[str, str] | None = None) -> None:
        self.web = folder / "web.yml"
        self.web.write_text(web)
        self.variables = {
            "TGI_PROBE_TARGET": f"unix://{folder}/nobody",
            "TGI_PROBE_WEB__LISTEN_ADDRESS": "127.0.0.1:0",
            "TGI_PROBE_WEB__CONFIG_FILE": str(self.web),
            **(variables or {}),
        }
        self.port = 0
        self.process: Process | None = None

    def __enter__(self) -> "Daemon":
        self._block = running([*TGI_PROBE, "run"], self.variables)
        self.process = process = self._block.__enter__()
        self.port = int(
            wait_until(lambda: re.findall(r"listening on \S*:(\d+)", process.stderr), "listens", process)[0]
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._block.__exit__(None, None, None)

    @property
    def log(self) -> str:
        assert self.process is not None
        return self.process.stderr

    def rewrite(self, text: str) -> None:
        """As an editor or a Secret volume does it: a new file in the place of the old one."""
        fresh = self.web.with_suffix(".new")
        fresh.write_text(text)
        os.replace(fresh, self.web)

    @property
    def https(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def tls(server: Pair, more: str = "") -> str:
    return f"tls_server_config:\n  cert_file: {server.certificate}\n  key_file: {server.key}\n{more}"


@pytest.fixture(scope="module")
def over_tls(tmp_path_factory: pytest.TempPathFactory, server: Pair) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("tls"), tls(server)) as daemon:
        yield daemon


def test_a_client_that_knows_the_authority_is_served_over_tls(over_tls: Daemon, authority: Authority) -> None:
    answer = curl(f"{over_tls.https}/metrics", "--cacert", str(authority.own.certificate))
    assert (answer.exit_code, answer.status) == (0, 200)
    assert "tgi_probe_build_info" in answer.body


def test_a_client_that_does_not_know_the_authority_turns_away(over_tls: Daemon, tmp_path: Path) -> None:
    stranger = Authority.found(tmp_path, "another")
    answer = curl(f"{over_tls.https}/metrics", "--cacert", str(stranger.own.certificate))
    assert answer.exit_code == CERTIFICATE_REFUSED


def test_tls_below_1_2_is_refused(over_tls: Daemon, authority: Authority) -> None:
    options = ("--cacert", str(authority.own.certificate), "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0")
    assert curl(f"{over_tls.https}/metrics", *options).exit_code == TLS_FAILED


def test_plain_http_on_a_tls_port_is_told_so(over_tls: Daemon) -> None:
    answer = curl(f"{over_tls.http}/metrics")
    assert (answer.status, answer.body) == (400, "this port speaks HTTPS only; use https://\n")


def test_min_version_tls13_refuses_tls_1_2(tmp_path: Path, server: Pair, authority: Authority) -> None:
    with Daemon(tmp_path, tls(server, "  min_version: TLS13\n")) as daemon:
        ca = ("--cacert", str(authority.own.certificate))
        assert curl(f"{daemon.https}/-/healthy", *ca, "--tls-max", "1.2").exit_code == TLS_FAILED
        assert curl(f"{daemon.https}/-/healthy", *ca).status == 200


def test_an_expired_server_certificate_is_refused_by_the_client(tmp_path: Path, authority: Authority) -> None:
    expired = authority.sign("late", "DNS:localhost", expired=True)
    with Daemon(tmp_path, tls(expired)) as daemon:
        _until_expired(expired)
        answer = curl(f"{daemon.https}/metrics", "--cacert", str(authority.own.certificate))
        assert answer.exit_code == CERTIFICATE_REFUSED


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path, server: Pair, authority: Authority) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificate.write_bytes(server.certificate.read_bytes())
    key.write_bytes(server.key.read_bytes())
    with Daemon(tmp_path, tls(Pair(certificate, key))) as daemon:
        before = _served_certificate(daemon)
        renewed = authority.sign("server", "DNS:localhost", serial=2)
        key.write_bytes(renewed.key.read_bytes())
        wait_until(lambda: "do not belong together" in daemon.log, "the mismatch is in the log")
        assert _served_certificate(daemon) == before, "while key and certificate do not match, the old pair serves"
        certificate.write_bytes(renewed.certificate.read_bytes())
        wait_until(lambda: _served_certificate(daemon) != before, "the new certificate is served")


def test_a_file_system_that_hangs_stops_neither_health_nor_the_end(tmp_path: Path) -> None:
    with Daemon(tmp_path, "") as daemon:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        os.replace(pipe, daemon.web)
        writer = wait_until(lambda: opened_by_a_reader(daemon.web), "the daemon reads the web file")
        assert writer is not None
        assert daemon.process is not None
        try:
            assert curl(f"{daemon.http}/-/healthy").status == 200
            daemon.process.terminate()
            assert daemon.process.wait() == 0
        finally:
            os.close(writer)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory, server: Pair, authority: Authority) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("mtls")
    ca = f"  client_ca_file: {authority.own.certificate}\n  client_auth_type: RequireAndVerifyClientCert\n"
    with Daemon(folder, tls(server, f"{ca}  client_allowed_sans: [scraper.example]\n")) as daemon:
        yield daemon


class TestClientCertificates:
    def ask(self, daemon: Daemon, authority: Authority, client: Pair | None) -> Answer:
        shown = ("--cert", str(client.certificate), "--key", str(client.key)) if client else ()
        return curl(f"{daemon.https}/metrics", "--cacert", str(authority.own.certificate), *shown)

    def test_with_its_certificate_a_client_is_served(self, mutual: Daemon, authority: Authority) -> None:
        assert self.ask(mutual, authority, authority.sign("good", "DNS:scraper.example")).status == 200

    def test_without_one_it_is_refused(self, mutual: Daemon, authority: Authority) -> None:
        assert self.ask(mutual, authority, None).exit_code in REFUSED_BY_SERVER

    def test_of_another_authority_it_is_refused(self, mutual: Daemon, authority: Authority, tmp_path: Path) -> None:
        foreign = Authority.found(tmp_path, "foreign").sign("bad", "DNS:scraper.example")
        assert self.ask(mutual, authority, foreign).exit_code in REFUSED_BY_SERVER

    def test_expired_it_is_refused(self, mutual: Daemon, authority: Authority) -> None:
        expired = authority.sign("expired", "DNS:scraper.example", expired=True)
        _until_expired(expired)
        assert self.ask(mutual, authority, expired).exit_code in REFUSED_BY_SERVER
        wait_until(lambda: "no TLS handshake" in mutual.log, "the refusal is in the log")

    def test_with_another_name_than_allowed_it_is_refused(self, mutual: Daemon, authority: Authority) -> None:
        assert self.ask(mutual, authority, authority.sign("other", "DNS:other.example")).status == 0


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    users = f"basic_auth_users: {{alice: {hashed('open-sesame')}}}\n"
    headers = "http_server_config: {headers: {X-Frame-Options: deny}}\n"
    with Daemon(tmp_path_factory.mktemp("auth"), users + headers) as daemon:
        yield daemon


class TestPasswords:
    def test_the_right_one_opens(self, guarded: Daemon) -> None:
        assert curl(f"{guarded.http}/metrics", "--user", "alice:open-sesame").status == 200

    @pytest.mark.parametrize("user", ["alice:wrong", "alice:", "bob:open-sesame", ":"])
    def test_a_wrong_one_or_an_unknown_name_does_not(self, guarded: Daemon, user: str) -> None:
        assert curl(f"{guarded.http}/metrics", "--user", user).status == 401

    def test_none_at_all_is_asked_for_one(self, guarded: Daemon) -> None:
        answer = curl(f"{guarded.http}/metrics", "--include")
        assert answer.status == 401
        assert "WWW-Authenticate: Basic" in answer.body

    def test_the_headers_of_the_file_are_sent(self, guarded: Daemon) -> None:
        assert (
            "X-Frame-Options: deny" in curl(f"{guarded.http}/config", "--include", "--user", "alice:open-sesame").body
        )

    def test_health_is_told_without_one_but_in_one_word(self, guarded: Daemon) -> None:
        assert (curl(f"{guarded.http}/-/healthy")).body == "ok\n"
        assert curl(f"{guarded.http}/-/ready").body in ("ok\n", "not ok\n")

    def test_no_secret_is_in_the_configuration_the_log_or_the_metrics(self, guarded: Daemon) -> None:
        for page in ("config", "metrics", "", "-/ready"):
            body = curl(f"{guarded.http}/{page}", "--user", "alice:open-sesame").body
            assert "$2b$" not in body
            assert "open-sesame" not in body
        assert "$2b$" not in guarded.log
        assert "open-sesame" not in guarded.log

    def test_a_changed_password_counts_soon_and_a_broken_file_changes_nothing(self, tmp_path: Path) -> None:
        with Daemon(tmp_path, f"basic_auth_users: {{alice: {hashed('old')}}}\n") as daemon:
            assert curl(f"{daemon.http}/metrics", "--user", "alice:old").status == 200
            daemon.rewrite(f"basic_auth_users: {{alice: {hashed('new')}}}\n")
            new = ("--user", "alice:new")
            wait_until(lambda: curl(f"{daemon.http}/metrics", *new).status == 200, "the new password opens")
            assert curl(f"{daemon.http}/metrics", "--user", "alice:old").status == 401
            daemon.rewrite("basic_auth_users: {alice: plain-text}\n")
            wait_until(lambda: "must be a bcrypt hash" in daemon.log, "the broken file is in the log")
            assert curl(f"{daemon.http}/metrics", *new).status == 200
            assert "plain-text" not in daemon.log


def test_over_the_rate_limit_a_client_is_told_to_come_back(tmp_path: Path) -> None:
    with Daemon(tmp_path, "rate_limit: {interval: 1h, burst: 2}\n") as daemon:
        assert [curl(f"{daemon.http}/metrics").status for _ in range(3)] == [200, 200, 429]


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    enabled = {"TGI_PROBE_WEB__ENABLE_RELOAD": "true", "TGI_PROBE_WEB__ENABLE_PROBE": "true"}
    with Daemon(tmp_path_factory.mktemp("acting"), "", enabled) as daemon:
        yield daemon


class TestWhatIsOffUnlessEnabled:
    def test_reload_over_http_is_refused_with_the_mend(self, over_tls: Daemon, authority: Authority) -> None:
        answer = curl(f"{over_tls.https}/-/reload", "--request", "POST", "--cacert", str(authority.own.certificate))
        assert answer.status == 403
        assert answer.body == "off; set web.enable_reload: true (or TGI_PROBE_WEB__ENABLE_RELOAD=true) and restart\n"

    def test_enabled_it_reloads(self, tmp_path: Path) -> None:
        with Daemon(tmp_path, "", {"TGI_PROBE_WEB__ENABLE_RELOAD": "true"}) as daemon:
            assert curl(f"{daemon.http}/-/reload", "--request", "POST").status == 200
            cross = curl(f"{daemon.http}/-/reload", "--request", "POST", "--header", "Sec-Fetch-Site: cross-site")
            assert cross.status == 403

    @pytest.mark.parametrize("place", ["/-/reload", "/probe?target=target&workload=default&batch_size=1"])
    def test_another_sites_page_cannot_make_a_browser_act_even_over_plain_http(
        self, acting: Daemon, place: str
    ) -> None:
        method = "GET" if place.startswith("/probe") else "POST"
        own = acting.http.removeprefix("http://")
        for said in (
            "Origin: http://evil.example",
            "Origin: null",
            f"Origin: http://evil.example:{own.rpartition(':')[2]}",
            f"Origin: http://{own}.evil.example",
            f"Origin: http://{own}@evil.example",
            "Origin: http://[",
            "Referer: http://evil.example/page",
        ):
            answer = curl(f"{acting.http}{place}", "--request", method, "--header", said)
            assert (answer.status, answer.body) == (403, "not from another site's page; open it from here\n"), said

    def test_its_own_page_and_what_is_no_browser_may_act(self, acting: Daemon) -> None:
        for said in (f"Origin: {acting.http}", f"Referer: {acting.http}/", "X-Nothing: said"):
            assert curl(f"{acting.http}/-/reload", "--request", "POST", "--header", said).status == 200, said
            assert curl(f"{acting.http}/probe", "--header", said).status == 400, said  # let in, and names nothing

    def test_a_page_that_only_reads_is_open_to_links_from_elsewhere(self, acting: Daemon) -> None:
        assert curl(f"{acting.http}/", "--header", "Referer: http://wiki.example/").status == 200


def test_json_logs_hold_one_object_a_line(tmp_path: Path) -> None:
    with Daemon(tmp_path, "", {"TGI_PROBE_LOG_FORMAT": "json"}) as daemon:
        wait_until(lambda: '"outcome"' in daemon.log, "a failed probe is in the log")
        events = [json.loads(line) for line in daemon.log.splitlines()]
    failed = next(event for event in events if "outcome" in event)
    assert {"time", "level", "message", "target", "workload", "batch_size", "outcome", "code"} <= failed.keys()


def _until_expired(pair: Pair) -> None:
    def expired() -> bool:
        done = subprocess.run(
            [real_part("openssl"), "x509", "-in", str(pair.certificate), "-checkend", "0", "-noout"],
            capture_output=True,
        )
        return done.returncode != 0

    wait_until(expired, "the certificate has expired")


def _served_certificate(daemon: Daemon) -> bytes:

    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", daemon.port), 20) as plain, anyone.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True) or b""
