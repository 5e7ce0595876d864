"""The web file: what is right is read, what is wrong is one line with the place and the mend, and never a secret."""

import os
import time
from pathlib import Path
from threading import Thread

import pytest

from exporter.config.errors import SettingsError
from exporter.web import web_file_state
from exporter.web.web_file import WebFile, load
from exporter.web.web_file_state import WebFileState
from tests.processes import PATIENCE, wait_until
from tests.web.certificates import Authority, Pair
from tests.web.clients import opened_by_a_reader

BAD = sorted((Path(__file__).parent / "bad").glob("*.yml"))


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_wrong_web_file_is_told_in_one_line(file: Path) -> None:
    expected = file.read_text().splitlines()[0].removeprefix("# ").replace("FOLDER", str(file.parent))
    with pytest.raises(SettingsError) as caught:
        WebFileState(file)
    assert caught.value.problems == [f"web.config_file: {file}: {expected}"]


@pytest.mark.parametrize("secret", ["hunter2", "12345"])
def test_a_wrong_password_entry_is_never_repeated(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text(f"basic_auth_users: {{alice: {secret}}}\n")
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value)


def test_exporter_toolkits_whole_format_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text(
        """\
tls_server_config:
  cert_file: server.crt
  key_file: /secret/server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  client_allowed_sans: [scraper.example]
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384]
  prefer_server_cipher_suites: true
http_server_config:
  http2: true
  headers: {X-Content-Type-Options: nosniff, X-Frame-Options: sameorigin}
basic_auth_users:
  alice: $2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze
rate_limit: {interval: 1s, burst: 20}
"""
    )
    config = load(file)
    tls = config.tls_server_config
    assert tls is not None
    assert (tls.cert_file, tls.key_file) == (tmp_path / "server.crt", Path("/secret/server.key"))
    assert config.rate_limit.interval == 1.0
    assert "$2y$" not in repr(config)


def test_an_empty_file_means_plain_http_open_to_all(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text("")
    state = WebFileState(file)
    assert not state.speaks_tls
    assert not state.values.config.basic_auth_users


class Followed:
    """A web file that is looked at when the test says so."""

    def __init__(self, folder: Path, text: str) -> None:
        self.file = folder / "web.yml"
        self.file.write_text(text)
        self.said: list[str] = []
        self.state = WebFileState(self.file, lambda kind, line: self.said.append(line))

    def look(self, text: str | None = None) -> WebFile:
        if text is not None:
            self.file.write_text(text)
            later = time.time_ns() + len(self.said) + 1_000_000_000
            os.utime(self.file, ns=(later, later))  # as if time had passed
        self.state._refresh(self.file)
        return self.state.values.config


def tls(pair: Pair, more: str = "") -> str:
    return f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}{more}}}\n"


def test_without_its_tls_section_a_file_still_lets_in_the_allowed_clients_alone(tmp_path: Path) -> None:
    authority = Authority.found(tmp_path)
    names = "client_auth_type: RequireAndVerifyClientCert, client_allowed_sans: [good]"
    pair = authority.sign("server", "IP:127.0.0.1")
    followed = Followed(tmp_path, tls(pair, f", client_ca_file: {authority.own.certificate}, {names}"))
    section = followed.look("rate_limit: {interval: 1s}\n").tls_server_config
    assert section is not None
    assert section.client_allowed_sans == ("good",)
    assert followed.state.values.context is not None
    assert followed.said == [f"{followed.file} no longer has a tls_server_config: takes effect at the next start only"]


def test_a_certificate_is_renewed_also_when_the_file_has_lost_its_tls_section(tmp_path: Path) -> None:
    authority = Authority.found(tmp_path)
    pair, renewed = (authority.sign("server", "IP:127.0.0.1", serial=number) for number in (1, 2))
    followed = Followed(tmp_path, tls(pair))
    followed.look("rate_limit: {interval: 1s}\n")
    before = followed.state.values.context
    os.replace(renewed.key, pair.key)
    os.replace(renewed.certificate, pair.certificate)
    followed.look()
    assert followed.state.values.context is not before
    assert "is wrong" not in "".join(followed.said)


def test_a_file_that_is_written_anew_lets_nobody_in_while_it_is_empty(tmp_path: Path) -> None:
    users = "basic_auth_users: {alice: $2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze}\n"
    followed = Followed(tmp_path, users)
    assert followed.look("").basic_auth_users
    assert followed.said[0].endswith("is empty; write what it had, or {} for nothing")
    assert not followed.look("{}\n").basic_auth_users


def test_a_file_that_is_filled_while_it_is_read_as_empty_lets_nobody_in(tmp_path: Path) -> None:
    users = "basic_auth_users: {alice: $2y$10$mDwo.lAisC94iLAyP81MCesa29IzH37oigHC/42V2pdJlUprsJPze}\n"
    followed = Followed(tmp_path, users)
    followed.file.unlink()
    os.mkfifo(followed.file)  # a reader waits for its data
    reading = Thread(target=followed.look, daemon=True)
    reading.start()
    writer = wait_until(lambda: opened_by_a_reader(followed.file), "the file is being read")
    assert writer is not None
    filled = tmp_path / "filled.yml"
    filled.write_text(users + "rate_limit: {interval: 1s}\n")
    os.replace(filled, followed.file)
    os.close(writer)
    reading.join(PATIENCE)
    assert followed.state.values.config.basic_auth_users
    assert followed.look().rate_limit.interval == 1.0


def test_a_certificate_that_comes_later_than_the_file_that_names_it_is_taken(tmp_path: Path) -> None:
    authority = Authority.found(tmp_path)
    old, new = (authority.sign("server", "IP:127.0.0.1", serial=number) for number in (1, 2))
    kept = new.certificate.read_bytes()
    new.certificate.unlink()
    followed = Followed(tmp_path, tls(old))
    section = followed.look(tls(new)).tls_server_config
    assert section is not None
    assert section.cert_file == old.certificate
    new.certificate.write_bytes(kept)
    section = followed.look().tls_server_config
    assert section is not None
    assert section.cert_file == new.certificate


def test_a_change_while_the_file_is_read_is_seen_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(tmp_path, "rate_limit: {interval: 1s}\n")

    def read_and_change(path: Path) -> WebFile:
        read = load(path)
        path.write_text("rate_limit: {interval: 3s, burst: 5}\n")
        return read

    monkeypatch.setattr(web_file_state, "load", read_and_change)
    assert followed.look("rate_limit: {interval: 2s}\n").rate_limit.interval == 2.0
    monkeypatch.setattr(web_file_state, "load", load)
    assert followed.look().rate_limit.interval == 3.0
