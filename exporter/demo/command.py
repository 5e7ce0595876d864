"""`tgi-probe demo`: the servers, Prometheus and Alertmanager in processes of their own, and the daemon in this one."""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from exporter.daemon import app
from exporter.demo import monitoring
from exporter.demo.children import child, free_port

# Exclusive is true: the demo's router has an engine of its own. Without it the demo would begin with a warning.
SHARD = '  - {{name: shard, address: "unix://{socket}-0", kv_cache: exclusive, max_batch_tokens: 100000}}'
ROUTER = '  - {{name: router, kind: http, address: "{router}", yield_to_users: true}}'
# The answers are short and the probes may take all the time, so that those of a shard that is slow still fit into their
# interval. If they did not, there would be fewer bad probes, and the page would come later.
CONFIG = """\
targets:
{targets}
workloads:
  - {{name: chat, sequence_length: 512, decode_length: 8, batch_sizes: [1, 2, 4, 8, 16], interval: 20s}}
slos:
  - {{name: chat-ttft, workload: chat, batch_sizes: [1], ttft: 200ms, objective: 0.99}}
  - {{name: chat-tokens, workload: chat, time_per_output_token: 50ms, objective: 0.95}}
max_duty_cycle: 1
web: {{listen_address: "127.0.0.1:{port}", enable_reload: true, enable_probe: true}}
"""
# At batch size 1 the shard takes 10 ms to the first token, and the SLO asks for 200 ms.
SLOWDOWN = 25
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(port: int) -> int:
    """Until Ctrl-C or SIGTERM; the exit code of the daemon. It listens on `port`, the others on the three after it."""
    # Until the daemon handles them: a Ctrl-C in the first seconds leaves no server behind.
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)
    port = port or free_port(0, "the daemon")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgi-probe-")))
        socket, admin = folder / "shard", f"127.0.0.1:{free_port(port + 1, 'the admin address of the shard')}"
        # They listen before the daemon starts. Otherwise the demo would begin with a failed probe.
        shard = ("--listen", f"unix://{socket}", "--ranks", "2", "--admin-address", admin)
        stack.enter_context(_simulated(*shard, lines=3))
        [line] = stack.enter_context(_simulated("--router-http", "127.0.0.1:0", "--ranks", "2", lines=1))
        targets = [SHARD.format(socket=socket), ROUTER.format(router=line.rpartition(" ")[2])]
        config = folder / "demo.yaml"
        config.write_text(CONFIG.format(targets="\n".join(targets), port=port))
        started = monitoring.start(stack, folder, config, port)
        return app.run(config, on_ready=partial(_show, admin, started))


def _leave(number: int, frame: object) -> None:
    app.ignore(*STOP_SIGNALS)  # a second Ctrl-C must not end the clearing up
    sys.exit(0)


@contextlib.contextmanager
def _simulated(*words: str, lines: int) -> Iterator[list[str]]:
    """A simulated server for the length of the block, and its first lines, which say where it listens."""
    with child([sys.executable, "-m", "exporter", "simulate", *words], subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            first_lines = [server.stdout.readline().strip() for _ in range(lines)]
            if not first_lines[-1]:
                sys.exit(1)  # it ended, and has said why
            print("\n".join(first_lines), flush=True)
            yield first_lines
        finally:
            server.terminate()
            print(server.stdout.read(), end="")


def _show(admin: str, started: dict[str, int], port: int) -> None:
    pages = {
        f"{port}/": "targets, newest results, throughput over latency, objectives",
        f"{port}/metrics": "histograms (the first probes take a few seconds)",
        f"{port}/-/ready": "200 when every target had its first attempt",
        f"{port}/config": "the configuration in force",
    }
    pages |= {f"{other}/": f"{name}, {monitoring.WHAT[name]}" for name, other in started.items()}
    looks = "\n".join(f"  {f'http://127.0.0.1:{page}':33} {what}" for page, what in pages.items())
    text = f"""
Look at
{looks}
Make the shard too slow for its SLO chat-ttft (a page in about a minute), and as fast as before
  curl -X POST 'http://{admin}/slowdown?factor={SLOWDOWN}'
  curl -X POST 'http://{admin}/slowdown?factor=1'
docs/tutorial.md goes through it step by step; docs/runbooks.md#tgiprobeerrorbudgetburn is about the page.
Stop with Ctrl-C.
"""
    # The reader may have left, as in `tgi-probe demo | head`. The demo goes on until it is stopped.
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)
