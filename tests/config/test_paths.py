"""Relative file names start where they are written: at the file, or for the environment at the working directory."""

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.cli import main
from exporter.config import dump
from exporter.config.sources import load

TARGET = {
    "name": "t",
    "kind": "http",
    "address": "https://h",
    "bearer_token_file": "token",
    "tls": {"ca_file": "../ca.pem", "cert_file": "/etc/me.pem"},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which is not that of the file."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def written(folder: Path, **keys: Any) -> Path:
    file = folder / "conf" / "probe.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"targets": [TARGET], "workloads": [{"name": "w"}], **keys}))
    return file


def test_names_in_a_file_start_at_that_file(tmp_path: Path) -> None:
    settings = load(written(tmp_path, web={"config_file": "web.yml"}))
    [target] = settings.targets
    assert target.tls is not None
    assert settings.web.config_file == tmp_path / "conf" / "web.yml"
    assert target.bearer_token_file == f"{tmp_path}/conf/token"
    assert (target.tls.ca_file, target.tls.cert_file) == (f"{tmp_path}/conf/../ca.pem", "/etc/me.pem")


def test_a_file_that_is_named_from_the_working_directory_is_the_same(tmp_path: Path, elsewhere: Path) -> None:
    file = written(tmp_path, web={"config_file": "web.yml"})
    assert load(Path("../conf/probe.yaml")).web.config_file == elsewhere / ".." / "conf" / "web.yml"
    assert load(file).web.config_file == tmp_path / "conf" / "web.yml"


def test_names_in_the_environment_start_at_the_working_directory(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TGI_PROBE_WEB__CONFIG_FILE", "web.yml")
    monkeypatch.setenv("TGI_PROBE_TARGETS__0__TLS__CA_FILE", "ca.pem")
    settings = load(written(tmp_path, web={"config_file": "other.yml"}))
    [target] = settings.targets
    assert target.tls is not None
    assert settings.web.config_file == elsewhere / "web.yml"
    assert target.tls.ca_file == f"{elsewhere}/ca.pem"
    assert target.bearer_token_file == f"{tmp_path}/conf/token"


def test_what_is_shown_of_them_means_the_same_wherever_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TGI_PROBE_WEB__CONFIG_FILE", "web.yml")
    settings = load(written(tmp_path))
    monkeypatch.delenv("TGI_PROBE_WEB__CONFIG_FILE")
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump.text(settings))
    assert load(saved) == settings


def test_a_web_file_that_is_missing_or_wrong_is_told_with_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, web={"config_file": "web.yml"})
    web = tmp_path / "conf" / "web.yml"
    assert main(["check", "--config", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"web.config_file: {web}: cannot be read: No such file or directory; check the path and its permissions\n"
    )
    web.write_text("tls: {}\n")
    assert main(["run", "--config", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"web.config_file: {web}: tls: is not a known key; check the spelling, or remove it\n"
    )
