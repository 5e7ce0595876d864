"""Where the daemon of a configuration listens, whatever has become of the file."""

from pathlib import Path

import pytest

from exporter.config.daemon_address import daemon_address

WEB = 'web: {listen_address: "127.0.0.1:9500", config_file: web.yml}\n'


@pytest.mark.parametrize(
    "text",
    [
        WEB,
        f"{WEB}targets: [{{name: a}}]\nno_such_key: 1\n",
        f"{WEB}log_level: loud\n",
    ],
    ids=["without targets", "wrong and unknown keys", "wrong value"],
)
def test_a_wrong_configuration_still_has_its_address_and_web_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    found = daemon_address(file)
    assert (found.listen_address, found.web_file) == ("127.0.0.1:9500", tmp_path / "web.yml")


@pytest.mark.parametrize(
    "text",
    [
        "targets: [\nweb:\n  # listen_address: :1\n  listen_address: 127.0.0.1:9500  # ours\n",
        'targets: {{\nweb: {enable_probe: true, "listen_address": "127.0.0.1:9500"}\n',
    ],
)
def test_the_address_is_found_in_a_file_that_is_no_yaml(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert daemon_address(file).listen_address == "127.0.0.1:9500"


@pytest.mark.parametrize("text", [None, "", "[1, 2]", "web: 7", "web: {listen_address: nine}", "web: [", "\0"])
def test_without_an_address_in_the_file_it_is_the_default(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    assert daemon_address(file).listen_address == ":9477"
    assert daemon_address(None).listen_address == ":9477"


@pytest.mark.parametrize(
    ("name", "value"),
    [("TGI_PROBE_WEB__LISTEN_ADDRESS", ":9600"), ("TGI_PROBE_WEB", '{"listen_address": ":9600"}')],
)
def test_a_variable_is_stronger_than_the_file(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    file = tmp_path / "c.yaml"
    file.write_text(WEB)
    found = daemon_address(file)
    assert (found.listen_address, found.web_file) == (":9600", tmp_path / "web.yml")


def test_a_variable_that_is_no_json_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGI_PROBE_WEB", "{")
    assert daemon_address(tmp_path / "nowhere").listen_address == ":9477"
