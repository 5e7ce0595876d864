"""A connection that cannot be opened is told in one line: the address once, the system's reason, what to look at."""

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from exporter.config.target import Target
from exporter.observation import Failure, Outcome
from exporter.probes.opening import open_prober
from exporter.wire import connect_errors
from tests.processes import free_port

REFUSED = "Connection refused; nothing listens there: is the server up, and the port right?"


@pytest.fixture
def addresses(tmp_path: Path) -> Mapping[str, str]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "stale"))
        server.listen()
    (tmp_path / "file").touch()
    found = {"port": f"127.0.0.1:{free_port()}", "name": "no-such-host.invalid:80"}
    return found | {name: f"unix://{tmp_path}/{name}" for name in ("stale", "file", "none")}


@pytest.mark.parametrize(
    ("kind", "server", "said"),
    [
        ("shard", "stale", f"Connection refused; {connect_errors.GONE}"),
        ("fmaas", "stale", f"Connection refused; {connect_errors.GONE}"),
        ("shard", "file", f"Connection refused; {connect_errors.GONE}"),
        ("fmaas", "none", "No such file or directory; is the server up, and its directory shared with this container?"),
        ("shard", "none", "no such socket; is the server up, and its directory shared with this container?"),
        ("shard", "port", REFUSED),
        ("fmaas", "port", REFUSED),
        ("http", "port", REFUSED),
        ("shard", "name", "the host's name is not known; is it spelt right, and known in this network?"),
        ("http", "name", "is it spelt right, and known in this network?"),
    ],
)
def test_a_connection_that_cannot_be_opened_is_told_with_what_to_look_at(
    kind: str, server: str, said: str, addresses: Mapping[str, str]
) -> None:
    address = addresses[server]
    written = f"http://{address}" if kind == "http" else address
    prober = open_prober(Target.model_validate({"name": "t", "kind": kind, "address": written}))
    with pytest.raises(Failure) as caught:
        prober.connect(3.0)
    prober.close()
    assert caught.value.outcome is Outcome.UNREACHABLE
    assert caught.value.detail.endswith(said)
    assert caught.value.detail.count(address.removeprefix("unix://")) == 1


@pytest.mark.parametrize(
    "said",
    [
        "upstream connect error. reset reason: remote connection failure: Connection refused",
        "the model refused",
        "",
    ],
)
def test_what_a_server_says_of_another_one_is_not_taken_for_our_connection(said: str) -> None:
    assert connect_errors.reason(said) is None
    assert connect_errors.hint("h:1", said) is None
