"""From a server that slows down to the message on somebody's phone: every part real, every window a hundredth."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.alerting.pager import Alertmanager, Inbox, alertmanager_running, inbox_listening
from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard
from tests.processes import TGI_PROBE, wait_until
from tests.prometheus_server import PrometheusServer, prometheus_scraping

pytestmark = pytest.mark.slow

INTERVAL = "500ms"
BURN, DOWN, ABSENT, STALE = "TgiProbeErrorBudgetBurn", "TgiProbeTargetDown", "TgiProbeAbsent", "TgiProbeStale"


@dataclass(frozen=True, slots=True)
class Watch:
    shard: SimulatedShard
    daemon: Daemon
    prometheus: PrometheusServer
    alertmanager: Alertmanager
    inbox: Inbox

    def await_message(self, receiver: str, status: str, alertname: str) -> dict[str, str]:
        """The labels of the first such message."""
        what = f"{receiver} gets {alertname} {status}"
        found = wait_until(
            lambda: self.inbox.labels_of(receiver, status, alertname),
            what,
            self.prometheus.process,
            self.alertmanager.process,
        )
        return found[0]

    def slo(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`tgi-probe slo` in a process of its own."""
        command = [*TGI_PROBE, "slo", "--prometheus", self.prometheus.url, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with simulated_shard("127.0.0.1:0") as shard, inbox_listening() as (inbox, webhook_port):
        config = tmp_path / "probe.yaml"
        document = {
            "targets": [{"name": "llama", "address": shard.address, "kv_cache": "exclusive", "labels": {"zone": "a"}}],
            "workloads": [
                {
                    "name": "chat",
                    "sequence_length": 64,
                    "decode_length": 2,
                    "batch_sizes": [1],
                    "interval": INTERVAL,
                    "timeout": "3s",
                }
            ],
            "slos": [{"name": "chat-ttft", "workload": "chat", "ttft": "250ms", "objective": 0.99}],
            "max_duty_cycle": 1,
            "web": {"listen_address": "127.0.0.1:0"},
        }
        config.write_text(json.dumps(document))
        options = ("--config", str(config), "--scrape-interval", INTERVAL, "--time-scale", "0.01")
        rules = subprocess.run([*TGI_PROBE, "rules", *options], capture_output=True, text=True, timeout=120, check=True)
        (tmp_path / "rules.yml").write_text(rules.stdout)
        with daemon_running(config) as daemon, alertmanager_running(tmp_path / "am", webhook_port) as alertmanager:
            alerting = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]}]}
            with prometheus_scraping(
                tmp_path / "prometheus",
                [daemon.port],
                INTERVAL,
                rule_files=[str(tmp_path / "rules.yml")],
                alerting=alerting,
            ) as prometheus:
                yield Watch(shard, daemon, prometheus, alertmanager, inbox)


def test_a_slow_server_pages_and_recovers_and_a_dead_daemon_is_noticed(watch: Watch) -> None:
    # All is well, and said to be.
    wait_until(lambda: watch.slo().returncode == 0, "the SLO is met", watch.prometheus.process)
    assert " met " in watch.slo().stdout
    assert watch.inbox.messages == []

    # The server slows down: somebody is paged, and told what and where.
    watch.shard.command("slowdown?factor=40")
    page = watch.await_message("page", "firing", BURN)
    labels = {"slo": "chat-ttft", "target": "llama", "workload": "chat", "severity": "page", "zone": "a"}
    assert labels.items() <= page.items()
    assert page["job"] == "tgi-probe"
    assert watch.prometheus.value('sum(tgi_probe_attempts_total{outcome!~"ok|disturbed"})') == 0  # slow is enough
    missed = watch.slo("--format", "json")
    assert missed.returncode == 1, missed.stdout + missed.stderr
    [answer] = json.loads(missed.stdout)
    assert (answer["slo"], answer["target"], answer["verdict"]) == ("chat-ttft", "llama", "missed")
    assert f"{BURN} (page)" in answer["alerts"]
    # The ticket for the same burn is held back: whoever is paged needs none.
    wait_until(
        lambda: watch.alertmanager.states().get((BURN, "ticket")) == "suppressed",
        "the ticket is held back",
        watch.alertmanager.process,
    )

    # It recovers, and the page ends by itself.
    watch.shard.command("slowdown?factor=1")
    watch.await_message("page", "resolved", BURN)

    # It goes away: one page, and its symptoms are held back.
    watch.shard.process.end()
    assert watch.await_message("page", "firing", DOWN)["target"] == "llama"
    wait_until(
        lambda: watch.alertmanager.states().get((STALE, "page")) == "suppressed",
        "staleness is held back",
        watch.alertmanager.process,
    )
    assert not watch.inbox.labels_of("page", "firing", STALE)

    # The daemon dies: its silence is noticed.
    watch.daemon.process.end()
    assert watch.await_message("page", "firing", ABSENT)["target"] == "llama"
    assert watch.await_message("ticket", "firing", "TgiProbeExporterDown")["job"] == "tgi-probe"
