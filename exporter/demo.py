"""`tgi-probe demo`: an embedded shard in a process of its own, and the daemon in this one."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from exporter import app

CONFIG = """\
targets:
  - {{name: demo, address: "unix://{socket}-0"}}
workloads:
  - {{name: chat, sequence_length: 512, decode_length: 32, batch_sizes: [1, 2, 4, 8, 16, 32], interval: 15s}}
slos:
  - {{name: chat-ttft, workload: chat, batch_sizes: [1], ttft: 200ms, objective: 0.99}}
  - {{name: chat-tokens, workload: chat, inter_token_latency: 50ms, objective: 0.95}}
web: {{listen_address: "127.0.0.1:{port}", enable_reload: true, enable_probe: true}}
"""


def run(port: int) -> int:
    """Until Ctrl-C or SIGTERM; the exit code of the daemon."""
    with tempfile.TemporaryDirectory(prefix="tgi-probe-") as folder:
        socket = Path(folder) / "shard"
        config = Path(folder) / "demo.yaml"
        config.write_text(CONFIG.format(socket=socket, port=port))
        command = [sys.executable, "-m", "exporter", "simulate", "--listen", f"unix://{socket}", "--ranks", "2"]
        # In a session of its own, so that Ctrl-C reaches the daemon alone: it clears its batches before the shard goes.
        with subprocess.Popen(command, start_new_session=True) as shard:
            try:
                # Else the first thing a newcomer reads would be a failed probe.
                while shard.poll() is None and not Path(f"{socket}-1").exists():
                    time.sleep(0.05)
                return app.run(config, on_ready=_show)
            finally:
                shard.terminate()


def _show(port: int) -> None:
    print(
        f"""
Look at
  http://127.0.0.1:{port}/metrics     histograms (the first probes take a few seconds)
  http://127.0.0.1:{port}/-/ready     200 when every target had its first attempt
  http://127.0.0.1:{port}/config      the configuration in force
Stop with Ctrl-C.
""",
        flush=True,
    )
