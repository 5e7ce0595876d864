"""The web file: what is right is read, what is wrong is one line with the place and the mend, and never a secret."""

from pathlib import Path

import pytest

from exporter.config.errors import SettingsError
from exporter.web.web_file import load
from exporter.web.web_file_state import WebFileState

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
