"""`tgi-probe health`: asks the daemon, not the configuration file."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from exporter.cli import main
from tests.end_to_end.parts import daemon_running, write_config
from tests.processes import TGI_PROBE, free_port
from tests.web.certificates import Authority


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Its daemon listens on a port that the file names. No server is at its target."""
    file = write_config(tmp_path / "c.yaml", f"unix://{tmp_path}/nobody", interval="1h")
    document = json.loads(file.read_text())
    document["web"]["listen_address"] = f"127.0.0.1:{free_port()}"
    file.write_text(json.dumps(document))
    return file


def with_tls(config: Path) -> None:
    pair = Authority.found(config.parent).sign("server", "IP:127.0.0.1")
    web = config.parent / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: {pair.certificate}, key_file: {pair.key}}}\n")
    document = json.loads(config.read_text())
    document["web"]["config_file"] = web.name
    config.write_text(json.dumps(document))


def assert_healthy(config: Path, **variables: str) -> None:
    done = subprocess.run(
        [*TGI_PROBE, "health", "--config", config], capture_output=True, text=True, env=os.environ | variables
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_daemon_is_healthy_whatever_becomes_of_its_file(config: Path, tls: bool) -> None:
    if tls:
        with_tls(config)
    good = config.read_text()
    with daemon_running(config) as daemon:
        assert_healthy(config)
        config.write_text(json.dumps(json.loads(good) | {"no_such_key": 1, "workloads": []}))
        assert_healthy(config)
        config.write_text("targets: [\n" + good)
        assert_healthy(config)
        config.unlink()
        assert_healthy(config, TGI_PROBE_WEB__LISTEN_ADDRESS=f"127.0.0.1:{daemon.port}")


def test_a_daemon_with_tls_is_healthy_when_its_web_file_is_broken_or_gone(config: Path) -> None:
    with_tls(config)
    web = config.parent / "web.yml"
    with daemon_running(config):
        web.write_text("tls_server_config: [")
        assert_healthy(config)
        web.unlink()
        assert_healthy(config)


def test_a_daemon_without_tls_is_healthy_when_a_changed_file_asks_for_tls(config: Path) -> None:
    with daemon_running(config):
        with_tls(config)
        assert_healthy(config)


def test_where_nobody_answers_it_says_so_without_the_number_of_the_error(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = json.loads(config.read_text())["web"]["listen_address"]
    assert main(["health", "--config", str(config)]) == 1
    assert capsys.readouterr().err == f"no answer at {address} (Connection refused)\n"
