"""From a server in trouble to the message on somebody's phone: every part real, every window a hundredth."""

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.alerting.pager import Alertmanager, Inbox, alertmanager_running, inbox_listening
from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard
from tests.processes import TGI_PROBE, wait_until
from tests.prometheus_server import PrometheusServer, prometheus_scraping

pytestmark = pytest.mark.slow

INTERVAL = "500ms"
BURN, DOWN, STALE = "TgiProbeErrorBudgetBurn", "TgiProbeTargetDown", "TgiProbeStale"
ABSENT, EXPORTER_DOWN = "TgiProbeAbsent", "TgiProbeExporterDown"


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

    def await_held_back(self, alertname: str, severity: str) -> None:
        wait_until(
            lambda: self.alertmanager.states().get((alertname, severity)) == "suppressed",
            f"{alertname} ({severity}) is held back",
            self.alertmanager.process,
        )

    def await_clean_windows(self) -> None:
        """Until no window by which a burn pages holds a bad probe any more."""
        windows = " and ".join(f"slo:sli_error:ratio_rate{window} == 0" for window in ("3s", "18s"))
        wait_until(lambda: self.prometheus.query(windows), "the short windows are clean", self.prometheus.process)

    def slo(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`tgi-probe slo` in a process of its own."""
        command = [*TGI_PROBE, "slo", "--prometheus", self.prometheus.url, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@contextlib.contextmanager
def watching(folder: Path, shards: Sequence[SimulatedShard]) -> Iterator[Watch]:
    """Targets llama, mistral."""
    targets = [
        {"name": name, "address": shard.address, "kv_cache": "exclusive", "labels": {"zone": "a"}}
        for name, shard in zip(("llama", "mistral"), shards, strict=False)
    ]
    document = {
        "targets": targets,
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
    config = folder / "probe.yaml"
    config.write_text(json.dumps(document))
    options = ("--config", str(config), "--scrape-interval", INTERVAL, "--time-scale", "0.01")
    rules = subprocess.run([*TGI_PROBE, "rules", *options], capture_output=True, text=True, timeout=120, check=True)
    (folder / "rules.yml").write_text(rules.stdout)
    with (
        inbox_listening() as (inbox, webhook_port),
        daemon_running(config) as daemon,
        alertmanager_running(folder / "am", webhook_port) as alertmanager,
    ):
        alerting = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]}]}
        with prometheus_scraping(
            folder / "prometheus",
            [daemon.port],
            INTERVAL,
            rule_files=[str(folder / "rules.yml")],
            alerting=alerting,
        ) as prometheus:
            watch = Watch(shards[0], daemon, prometheus, alertmanager, inbox)
            # All is well, and said to be.
            wait_until(lambda: watch.slo().returncode == 0, "the SLO is met", prometheus.process)
            assert " met " in watch.slo().stdout
            assert inbox.messages == []
            yield watch


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    with simulated_shard("127.0.0.1:0") as shard, watching(tmp_path, [shard]) as found:
        yield found


def test_a_slow_server_pages_once_says_how_slow_it_is_and_recovers(watch: Watch) -> None:
    watch.shard.command("slowdown?factor=40")
    page = watch.await_message("page", "firing", BURN)
    labels = {"slo": "chat-ttft", "target": "llama", "workload": "chat", "severity": "page", "zone": "a"}
    assert labels.items() <= page.items()
    assert page["job"] == "tgi-probe"
    [texts] = [texts for to, status, _, texts in watch.inbox.messages if (to, status) == ("page", "firing")]
    assert texts["summary"] == "llama: probes of chat are too slow (SLO chat-ttft)"
    assert re.search(r"\d+ were slower than 250ms; newest [\d.]+m?s at batch size 1\.", texts["description"]), texts
    assert watch.prometheus.value('sum(tgi_probe_attempts_total{outcome!~"ok|disturbed"})') == 0  # slow is enough
    missed = watch.slo("--format", "json")
    assert missed.returncode == 1, missed.stdout + missed.stderr
    [answer] = json.loads(missed.stdout)
    assert (answer["slo"], answer["target"], answer["verdict"]) == ("chat-ttft", "llama", "missed")
    assert f"{BURN} (page)" in answer["alerts"]
    watch.await_held_back(BURN, "ticket")

    watch.shard.command("slowdown?factor=1")
    watch.await_message("page", "resolved", BURN)
    assert watch.inbox.told("page") == [("firing", BURN), ("resolved", BURN)]


def test_a_server_that_goes_away_pages_once_until_it_is_back_for_good(watch: Watch) -> None:
    watch.shard.process.end()
    assert watch.await_message("page", "firing", DOWN)["target"] == "llama"
    # Its share of bad requests is by now far above what pages.
    wait_until(
        lambda: watch.prometheus.query(
            "slo:sli_error:ratio_rate36s / 0.01 > 14.4 and slo:sli_error:ratio_rate18s > 0.5"
        ),
        "the outage fills the windows",
        watch.prometheus.process,
    )
    with simulated_shard(watch.shard.address):
        watch.await_message("page", "resolved", DOWN)
        watch.await_clean_windows()
        assert watch.inbox.told("page") == [("firing", DOWN), ("resolved", DOWN)]


def test_a_server_that_hangs_pages_once(watch: Watch) -> None:
    watch.shard.command("fault?kind=hang")
    [name] = wait_until(
        lambda: [name for _, name in watch.inbox.told("page")], "somebody is paged", watch.prometheus.process
    )
    assert name in (STALE, DOWN)
    watch.shard.command("fault?kind=none")
    watch.await_message("page", "resolved", name)
    watch.await_clean_windows()
    assert watch.inbox.told("page") == [("firing", name), ("resolved", name)]


def test_a_dead_exporter_pages_once_for_all_its_targets(tmp_path: Path) -> None:
    with (
        simulated_shard("127.0.0.1:0") as one,
        simulated_shard("127.0.0.1:0") as two,
        watching(tmp_path, [one, two]) as watch,
    ):
        watch.daemon.process.end()
        watch.await_held_back(EXPORTER_DOWN, "ticket")
        wait_until(lambda: len(watch.inbox.told("page")) >= 2, "both targets are in the page", watch.prometheus.process)
        # Each target has a rule, and Prometheus sends the alerts of each rule by themselves. Where this machine is busy
        # between the two, the short group_wait of this test is over: the one page is then sent again with the second.
        assert set(watch.inbox.told("page")) == {("firing", ABSENT)}
        assert watch.inbox.notifications in (["page"], ["page", "page"])
        assert watch.inbox.told("ticket") == []
