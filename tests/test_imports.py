"""What a sidecar loads: memory and start-up are its price, and extras may not be there."""

import subprocess
import sys

SIDECAR = "import exporter.daemon.app, exporter.cli, exporter.probes.shard.prober, sys; print(*sys.modules, sep='\\n')"
# What only the command line's other commands or other kinds of target need.
ELSEWHERE = {"bcrypt", "h2", "hpack", "tabulate"}


def test_a_sidecar_imports_nothing_that_only_others_need() -> None:
    loaded = subprocess.run([sys.executable, "-c", SIDECAR], capture_output=True, text=True, check=True).stdout.split()
    assert not ELSEWHERE & set(loaded)
    assert not [name for name in loaded if name.startswith(("exporter.simulator", "exporter.bench"))]
