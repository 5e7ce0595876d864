"""Prometheus and Alertmanager as they are installed, with the rules that `tgi-probe rules` prints."""

import contextlib
import http.client
import shutil
import subprocess
import time
from pathlib import Path

from exporter.alerting import rule_file
from exporter.alerting.rule_types import Options
from exporter.config.sources import load
from exporter.demo.children import Child, child, free_port

# An hour of the rules is 3 minutes.
RULES = Options(scrape_interval=2.0, time_scale=0.05, runbooks="docs/runbooks.md")
WHAT = {
    "Prometheus": "with the rules of `tgi-probe rules`, an hour made 3 minutes",
    "Alertmanager": "with the routes of deploy/alertmanager/; it sends nothing",
}
READY_SECONDS = 30.0
ROUTES = Path(__file__).with_name("alertmanager.yml")
PROMETHEUS_CONFIG = """\
global: {{scrape_interval: {interval:g}s, scrape_timeout: {interval:g}s, evaluation_interval: {interval:g}s}}
scrape_configs:
  - {{job_name: tgi-probe, static_configs: [{{targets: ["127.0.0.1:{daemon}"]}}]}}
rule_files: [rules.yml]
alerting:
  alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:{alertmanager}"]}}]}}]
"""


def start(stack: contextlib.ExitStack, folder: Path, config: Path, daemon: int) -> dict[str, int]:
    """The ports of those that could be started, until the end of `stack`. `config` and `daemon`: the daemon's file and
    port. Everything that they write is in `folder`.
    """
    prometheus, alertmanager = free_port(daemon + 2, "Prometheus"), free_port(daemon + 3, "Alertmanager")
    (folder / "rules.yml").write_text(rule_file.rule_file(load(config), RULES, []), "utf-8")
    text = PROMETHEUS_CONFIG.format(interval=RULES.scrape_interval, daemon=daemon, alertmanager=alertmanager)
    (folder / "prometheus.yml").write_text(text, "utf-8")
    started = {}
    options = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'prometheus'}")
    if _started(stack, folder / "prometheus.log", ["prometheus"], prometheus, *options):
        started["Prometheus"] = prometheus
        # Debian's name comes first: its `alertmanager` is another program.
        programs = ["prometheus-alertmanager", "alertmanager"]
        options = (f"--config.file={ROUTES}", f"--storage.path={folder / 'alertmanager'}")
        if _started(stack, folder / "alertmanager.log", programs, alertmanager, *options, "--cluster.listen-address="):
            started["Alertmanager"] = alertmanager
    return started


def _started(stack: contextlib.ExitStack, log: Path, programs: list[str], port: int, *options: str) -> bool:
    """Whether the first of these programs that is installed answers now. If not, a line says why."""
    program = next(filter(None, map(shutil.which, programs)), None)
    if program is None:
        print(f"{programs[0]} is not on the PATH: the demo goes on without (docs/tutorial.md: where to get it)")
        return False
    with log.open("w") as output:
        command = [program, *options, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        server = stack.enter_context(child(command, output, subprocess.STDOUT))
    if _answers(server, port):
        return True
    last_line = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
    print(f"{program} did not start: the demo goes on without. Its last line: {last_line}")
    return False


def _answers(server: Child, port: int) -> bool:
    """Whether it is ready, or will be in a few seconds."""
    deadline = time.monotonic() + READY_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)) as connection,
        ):
            connection.request("GET", "/-/ready")
            if connection.getresponse().status == http.client.OK:
                return True
        time.sleep(0.05)
    return False
