"""What only routers need is loaded only where there is one."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import exporter.daemon.app, exporter.cli
from exporter.probes.opening import open_prober
from exporter.config.target import Target
open_prober(Target(**{target}))
print(*sorted({{"h2", "grpc"}} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("target", "loaded"),
    [
        ({"name": "a", "address": "h:1"}, "grpc"),
        ({"name": "a", "kind": "fmaas", "address": "h:1"}, "h2"),
        ({"name": "a", "kind": "http", "address": "http://h:1"}, "h2"),
    ],
    ids=["shard", "fmaas", "http"],
)
def test_a_kind_loads_its_own_libraries_only(target: dict[str, str], loaded: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(target=target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == loaded.split()
