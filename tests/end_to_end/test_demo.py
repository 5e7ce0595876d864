"""`tgi-probe demo`, as a newcomer starts it."""

import contextlib
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from exporter.config.sources import load
from exporter.demo import monitoring
from exporter.demo.command import CONFIG, ROUTER, SHARD, SLOWDOWN
from exporter.simulator import Roofline
from tests import real_parts
from tests.alerting.pager import COMMITTED
from tests.processes import TGI_PROBE, Process, ask, free_port, running, wait_until

ENDED = ["requests in flight: 0", "batches left: 0"]


def test_the_demo_probes_a_shard_and_a_router_also_without_a_prometheus(tmp_path: Path) -> None:
    with demo_running({"PATH": str(tmp_path)}) as demo:
        page = look_at(demo, "targets, newest results")
        wait_until(lambda: successes(page) == {"shard", "router"}, "a success on both", demo)
        demo.send(signal.SIGINT)
        assert demo.wait() == 0
    warnings = [line for line in demo.stderr.splitlines() if "WARNING" in line]
    # This machine may be busy.
    busy = ("WARNING probe neither judged nor measured: ", "this machine was busy")
    assert all(any(words in line for words in busy) for line in warnings), warnings
    assert "prometheus is not on the PATH" in demo.stdout
    assert "Alertmanager" not in demo.stdout
    assert demo.stdout.splitlines()[-2:] == ENDED


def test_the_demo_starts_prometheus_and_alertmanager_and_leaves_nothing_behind() -> None:
    real_parts.prometheus(), real_parts.alertmanager()
    with demo_running() as demo:
        prometheus, alertmanager = look_at(demo, "Prometheus, "), look_at(demo, "Alertmanager, ")
        scraped = f"{prometheus}api/v1/query?query=tgi_probe_target_up==1"
        wait_until(lambda: len(ask(scraped).json()["data"]["result"]) == 2, "the scrape of both targets", demo)
        known = f"{prometheus}api/v1/alertmanagers"
        told = [{"url": f"{alertmanager}api/v2/alerts"}]
        wait_until(lambda: ask(known).json()["data"]["activeAlertmanagers"] == told, "Prometheus knows it", demo)
        slow_down, back = re.findall(r"curl -X POST '(.+)'", demo.stdout)
        assert ask(slow_down, "POST").text == f"every pass now takes {SLOWDOWN} times as long\n"
        assert ask(back, "POST").text == "every pass now takes 1 times as long\n"
        demo.terminate()
        assert demo.wait() == 0
    for page in (prometheus, alertmanager):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(page.rstrip("/").rpartition(":")[2])))
    [folder] = set(re.findall(r"unix://(/\S+)/shard", demo.stdout))
    assert not Path(folder).exists()
    assert demo.stdout.splitlines()[-2:] == ENDED


def taken_behind(other: socket.socket) -> int:
    """A port that is free, while the socket has the next one. Other tests take ports meanwhile."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError):
            other.bind(("127.0.0.1", port + 1))
            other.listen()
            return port


def test_the_demo_goes_on_with_other_ports_and_without_a_prometheus_that_ends(tmp_path: Path) -> None:
    program = tmp_path / "prometheus"
    program.write_text("#!/bin/sh\necho it lacks memory\nexit 1\n")
    program.chmod(0o755)
    with socket.socket() as other:
        port = taken_behind(other)
        with demo_running({"PATH": str(tmp_path)}, port) as demo:
            look_at(demo, "targets, newest results")
            demo.terminate()
            assert demo.wait() == 0
    assert f"port {port + 1} is taken: the admin address of the shard gets port " in demo.stdout
    assert f"{program} did not start: the demo goes on without. Its last line: it lacks memory" in demo.stdout


def test_nobody_waits_for_a_demo_that_is_stopped_while_it_starts() -> None:
    with demo_running() as demo:
        wait_until(lambda: "rank 0 listens" in demo.stdout, "the shard is there", demo)
        demo.terminate()
        assert demo.wait() == 0
    assert "batches left: 0" in demo.stdout


def test_the_slowdown_breaks_the_slo_and_the_slow_probes_fit_into_their_interval(tmp_path: Path) -> None:
    file = tmp_path / "demo.yaml"
    targets = "\n".join([SHARD.format(socket="/tmp/shard"), ROUTER.format(router="http://h:1")])
    file.write_text(CONFIG.format(targets=targets, port=9477))
    settings = load(file)
    [workload], [ttft, _] = settings.workloads, settings.slos
    slow, length = Roofline(ranks=2, slowdown=SLOWDOWN), workload.sequence_length
    assert ttft.threshold is not None
    assert slow.prefill_seconds(1, length) > 1.1 * ttft.threshold > 10 * Roofline(ranks=2).prefill_seconds(1, length)
    lasts = (
        slow.prefill_seconds(size, length) + (workload.decode_length - 1) * slow.decode_seconds(size, size * length)
        for size in workload.batch_sizes
    )
    assert sum(lasts) < settings.max_duty_cycle * workload.interval
    assert f"slowdown?factor={SLOWDOWN}'" in (COMMITTED.parents[2] / "README.md").read_text("utf-8")


def test_the_demos_alertmanager_has_the_routes_of_deploy_and_sends_nothing() -> None:
    demo, shipped = (yaml.safe_load(file.read_text("utf-8")) for file in (monitoring.ROUTES, COMMITTED))
    receivers = [{"name": one["name"]} for one in shipped["receivers"]]
    assert demo == shipped | {"receivers": receivers}


@contextlib.contextmanager
def demo_running(environment: Mapping[str, str] | None = None, port: int | None = None) -> Iterator[Process]:
    with running([*TGI_PROBE, "demo", "--port", str(port or free_port())], environment) as demo:
        yield demo


def look_at(demo: Process, what: str) -> str:
    """The page that the demo says has this."""
    wait_until(lambda: "Stop with Ctrl-C." in demo.stdout, "the demo says where to look", demo)
    [page] = re.findall(rf"^  (http://\S+) +{what}", demo.stdout, re.MULTILINE)
    return str(page)


def successes(page: str) -> set[str]:
    """The targets that answered a probe."""
    return {
        target
        for line in ask(f"{page}metrics").text.splitlines()
        for target in ("shard", "router")
        if line.startswith("tgi_probe_attempts_total{")
        if f'target="{target}"' in line and 'outcome="ok"' in line and not line.endswith(" 0.0")
    }
