"""`tgi-probe demo`: a simulated shard and router in processes of their own, and the daemon in this one."""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exporter.daemon import app

# Exclusive is true: the demo's router has an engine of its own. Without it the demo would begin with a warning.
SHARD = '  - {{name: demo, address: "unix://{socket}-0", kv_cache: exclusive, max_batch_tokens: 100000}}'
ROUTER = '  - {{name: router, kind: http, address: "{router}", yield_to_users: true}}'
CONFIG = """\
targets:
{targets}
workloads:
  - {{name: chat, sequence_length: 512, decode_length: 32, batch_sizes: [1, 2, 4, 8, 16, 32], interval: 15s}}
slos:
  - {{name: chat-ttft, workload: chat, batch_sizes: [1], ttft: 200ms, objective: 0.99}}
  - {{name: chat-tokens, workload: chat, time_per_output_token: 50ms, objective: 0.95}}
web: {{listen_address: "127.0.0.1:{port}", enable_reload: true, enable_probe: true}}
"""


def run(port: int) -> int:
    """Until Ctrl-C or SIGTERM; the exit code of the daemon."""
    # Until the daemon handles them: a Ctrl-C in the first second leaves no server behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: sys.exit(0))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgi-probe-")))
        socket = folder / "shard"
        # They listen before the daemon starts. Otherwise the demo would begin with a failed probe.
        stack.enter_context(_simulated("--listen", f"unix://{socket}", "--ranks", "2", lines=2))
        targets = [SHARD.format(socket=socket)]
        [line] = stack.enter_context(_simulated("--router-http", "127.0.0.1:0", "--ranks", "2", lines=1))
        targets.append(ROUTER.format(router=line.rpartition(" ")[2]))
        config = folder / "demo.yaml"
        config.write_text(CONFIG.format(targets="\n".join(targets), port=port))
        return app.run(config, on_ready=_show)


@contextlib.contextmanager
def _simulated(*words: str, lines: int) -> Iterator[list[str]]:
    """A simulated server for the length of the block, and its first lines, which say where it listens."""
    command = [sys.executable, "-m", "exporter", "simulate", *words]
    # In a session of its own: Ctrl-C reaches only the daemon, which clears its batches before the server ends.
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            first_lines = [server.stdout.readline().strip() for _ in range(lines)]
            print("\n".join(first_lines), flush=True)
            yield first_lines
        finally:
            server.terminate()
            print(server.stdout.read(), end="")


def _show(port: int) -> None:
    text = f"""
Look at
  http://127.0.0.1:{port}/            targets, newest results, throughput over latency, objectives
  http://127.0.0.1:{port}/metrics     histograms (the first probes take a few seconds)
  http://127.0.0.1:{port}/-/ready     200 when every target had its first attempt
  http://127.0.0.1:{port}/config      the configuration in force
Stop with Ctrl-C.
"""
    # The reader may have left, as in `tgi-probe demo | head`. The demo goes on until it is stopped.
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)
