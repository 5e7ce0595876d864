"""A demo that has seen it all, scraped by Prometheus: a shard, a router, an outage, good and bad reloads."""

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest

from exporter.alerting.rule_file import rule_groups
from exporter.alerting.rule_types import Options
from exporter.config.settings import Settings
from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard
from tests.processes import ask, free_port, wait_until
from tests.prometheus_server import PrometheusServer, prometheus_scraping

QUICK = ("--speed", "20")
RULES = Options(time_scale=0.01, scrape_interval=1)
RELOADED = "tgi_probe_config_last_reload_successful"


@dataclass(frozen=True)
class Demo:
    daemon: Daemon
    prometheus: PrometheusServer
    native: PrometheusServer  # takes native histograms
    router: str
    others: str
    began: float

    def metrics_pages(self) -> list[str]:
        """What the exporter and the servers serve."""
        return [self.daemon.get("/metrics").text, *(ask(f"{one}/metrics").text for one in (self.router, self.others))]


def configuration(shard: str, router: str) -> dict[str, Any]:
    return {
        "targets": [{"name": "shard", "address": shard}, {"name": "router", "kind": "http", "address": router}],
        "workloads": [
            {
                "name": name,
                "sequence_length": length,
                "decode_length": 8,
                "batch_sizes": sizes,
                "interval": "500ms",
                "timeout": "5s",
            }
            for name, length, sizes in (("chat", 64, [1, 2, 4]), ("retrieval", 256, [1, 4]))
        ],
        "slos": [
            {"name": "chat-ttft", "workload": "chat", "batch_sizes": [1], "ttft": "200ms", "objective": 0.99},
            {"name": "chat-tokens", "workload": "chat", "inter_token_latency": "50ms", "objective": 0.95},
            {"name": "retrieval", "workload": "retrieval", "ttft": "1ms", "objective": 0.9},
        ],
        "max_duty_cycle": 1,
        "web": {"listen_address": "127.0.0.1:0"},
    }


@contextlib.contextmanager
def running_demo(folder: Path) -> Iterator[Demo]:
    door = free_port()
    began = time.time()
    config = folder / "config.yaml"
    with contextlib.ExitStack() as stack:
        router = f"http://127.0.0.1:{door}"
        first = stack.enter_context(simulated_shard(f"unix://{folder}/a", *QUICK, "--ranks", "2"))
        stack.enter_context(simulated_shard(f"unix://{folder}/b", *QUICK, "--router-http", f"127.0.0.1:{door}"))
        config.write_text(json.dumps(configuration(first.address, router)))
        daemon = stack.enter_context(daemon_running(config))
        rules = folder / "rules.json"
        groups = rule_groups(Settings.model_validate(configuration(first.address, router)), RULES)
        rules.write_text(json.dumps({"groups": [*groups, ALWAYS_FIRING]}))
        others = stack.enter_context(other_servers())
        ports, files = [daemon.port, door, others], [str(rules)]
        prometheus = stack.enter_context(prometheus_scraping(folder / "prometheus", ports, rule_files=files))
        native = stack.enter_context(prometheus_scraping(folder / "native", ports, native=True, rule_files=files))
        make_history(config, daemon, first, (prometheus, native))
        yield Demo(daemon, prometheus, native, router, f"http://127.0.0.1:{others}", began)


@contextlib.contextmanager
def other_servers() -> Iterator[int]:
    """The port of a page with the metrics of vLLM and SGLang that the dashboards use, as their documentation names
    them. Each scrape finds more requests.
    """
    registry = CollectorRegistry()
    gauges = [
        Gauge(name, name, registry=registry)
        for name in (
            *("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"),
            *("sglang:num_queue_reqs", "sglang:num_running_reqs", "sglang:token_usage"),
            "vllm:gpu_cache_usage_perc",  # before vLLM 0.9
        )
    ]
    histograms = [
        Histogram(f"{server}:{what}_seconds", what, registry=registry)
        for server in ("vllm", "sglang")
        for what in ("e2e_request_latency", "time_to_first_token")
    ]

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for gauge in gauges:
                gauge.set(0.5)
            for histogram in histograms:
                histogram.observe(0.2)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.end_headers()
            self.wfile.write(generate_latest(registry))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


ALWAYS_FIRING = {
    "name": "demo",
    "rules": [{"alert": "TgiProbeDemo", "expr": "vector(1)", "labels": {"severity": "ticket", "slo": "none"}}],
}


def make_history(
    config: Path, daemon: Daemon, shard: SimulatedShard, servers: tuple[PrometheusServer, PrometheusServer]
) -> None:
    """An outage, a refused reload and one that is taken, each long enough to be scraped."""

    def await_value(promql: str, value: float, what: str) -> None:
        wait_until(lambda: {server.value(promql) for server in servers} == {value}, what, daemon.process)

    document = config.read_text()
    await_value("min(tgi_probe_success)", 1, "probes")
    shard.command("fault?kind=unavailable")
    config.write_text("targets: []")
    daemon.process.send(signal.SIGHUP)
    await_value("min(tgi_probe_target_up)", 0, "the outage is scraped")
    await_value(RELOADED, 0, "the refusal is scraped")
    shard.command("fault?kind=none")
    config.write_text(document)
    daemon.process.send(signal.SIGHUP)
    await_value(RELOADED, 1, "the reload is scraped")
    await_value("min(tgi_probe_success)", 1, "probes again")


def exposed(pages: list[str]) -> dict[str, frozenset[str]]:
    """Name of every sample that the pages hold → the names of its labels. A native histogram has the family's name."""
    found: dict[str, set[str]] = {}
    for page in pages:
        histograms = set(re.findall(r"^# TYPE (\S+) histogram$", page, re.MULTILINE))
        for line in page.splitlines():
            if line and not line.startswith("#"):
                name = re.match(r"[a-zA-Z_:][a-zA-Z0-9_:]*", line)
                assert name, line
                labels = re.findall(r"[{,]([a-zA-Z_]\w*)=\"", line)
                found.setdefault(name[0], set()).update(labels)
                if (family := name[0].removesuffix("_count")) in histograms:
                    found.setdefault(family, set()).update(labels)
    return {name: frozenset(labels) for name, labels in found.items()}
