"""The committed messages are what proto/ says."""

import subprocess
import sys
from pathlib import Path

from exporter.pb import fmaas_pb2, generate_v2_pb2, generate_v3_pb2


def test_generated_code_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, root / "proto" / "generate.py", "--check"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_all_protocols_live_in_one_process() -> None:
    assert generate_v2_pb2.DESCRIPTOR.package == "generate.v2"
    assert generate_v3_pb2.DESCRIPTOR.package == "generate.v3"
    assert fmaas_pb2.DESCRIPTOR.package == "fmaas"
