"""What is said to gRPC's core before it is loaded."""

import os
import subprocess
import sys

import pytest

from exporter.wire import grpc_env

CALL = """
from exporter.wire.grpc_env import prepare
prepare()
import grpc
try:
    grpc.insecure_channel("127.0.0.1:1").unary_unary("/a/b")(b"", timeout=1)
except grpc.RpcError as error:
    print(error.code())
"""
COMMAND = """
import os, sys
from exporter import cli
assert "grpc" not in sys.modules, "the core reads its environment when it is loaded"
cli.main(["check", "--config", os.devnull])
print(*(os.environ[name] for name in sys.argv[1:]))
"""


def test_every_command_says_it() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("GRPC_", "TGI_PROBE_"))}
    command = [sys.executable, "-c", COMMAND, *grpc_env.ENV_DEFAULTS]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(grpc_env.ENV_DEFAULTS.values())


def test_the_core_knows_every_word() -> None:
    """Of one that it does not know it writes a line; then a newer release has made the word needless."""
    environ = dict(os.environ) | grpc_env.ENV_DEFAULTS | {"GRPC_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-c", CALL], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "StatusCode.UNAVAILABLE"
    assert "experiment" not in done.stderr


def test_what_an_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", "")
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    grpc_env.prepare()
    assert os.environ["GRPC_EXPERIMENTS"] == ""
    assert os.environ["GRPC_VERBOSITY"] == "NONE"
