"""Whether slow or greedy HTTP clients delay a probe, a health check or a scrape: quiet and attacked phases in turns."""

import http.client
import re
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks import truth
from benchmarks.bare import BareClient
from benchmarks.processes import Process, Server, Subject, page, socket_address
from benchmarks.report import Part, Ratio, Table, median, milliseconds, quantile

SERVICE_SECONDS = 0.005
SCRAPE_SECONDS = 2.0
HEALTH_SECONDS = 0.2
BARE_SECONDS = 0.055
QUIET = "quiet"
# Phase, kind and number of attackers.
ATTACKS = (("slow clients", "slow", 200), ("flood", "greedy", 4), ("crowd", "greedy", 64))
# An answer during an attack beside one in quiet phases: the attackers keep both cores busy.
HEALTH_LIMIT, SCRAPE_LIMIT = 20.0, 30.0
SKIPPED = re.compile(r"^tgi_probe_skipped_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass(slots=True)
class Answers:
    """Seconds until health checks and scrapes were answered, in all phases of one name."""

    health: list[float] = field(default_factory=list)
    scrapes: list[float] = field(default_factory=list)


def run(seconds: float) -> list[Table]:
    order = [(QUIET, "", 0)]
    for attack in ATTACKS:
        order += [attack, (QUIET, "", 0)]
    answers = {name: Answers() for name, _, _ in order}
    phases = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(socket_address(folder), SERVICE_SECONDS) as server,
        BareClient(server.address, BARE_SECONDS) as bare,
        Subject(config(server.address)) as subject,
    ):
        time.sleep(3)  # starts and first connections
        for name, kind, count in order:
            phases.append(phase(subject.port, name, kind, count, seconds / len(order), answers[name]))
        observations = subject.observations()
        calls = bare.calls()
        skipped = sum(float(count) for count in SKIPPED.findall(page(subject.port)))
    return [probes(truth.by_phase(observations, calls, phases), skipped), answered(answers)]


def config(address: str) -> dict[str, Any]:
    workload = {"sequence_length": 128, "decode_length": 4, "interval": "200ms", "batch_sizes": [1], "warmups": 0}
    return {
        "targets": [{"name": "shard", "address": address}],
        "workloads": [{"name": "chat"} | workload],
        "log_level": "error",
        "web": {"listen_address": "127.0.0.1:0"},
    }


def phase(port: int, name: str, kind: str, count: int, seconds: float, answers: Answers) -> truth.Phase:
    """Health checks and scrapes beside `count` attackers; the first second is not measured."""
    stop = threading.Event()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    get(client, "/metrics")  # Prometheus' connection is open before the attack
    scraper = threading.Thread(target=scrape, args=(client, stop, answers.scrapes))
    with ExitStack() as stack:
        if count:
            stack.enter_context(Process(["-m", "benchmarks.attackers", kind, str(count), str(port)])).read()
        scraper.start()
        time.sleep(1)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            answers.health.append(health(port))
            time.sleep(HEALTH_SECONDS)
        end = time.perf_counter()
        stop.set()
        scraper.join()
    client.close()
    return truth.Phase(name, start, end)


def health(port: int) -> float:
    """Seconds until /-/healthy answered on a new connection."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    took = get(client, "/-/healthy")
    client.close()
    return took


def scrape(client: http.client.HTTPConnection, stop: threading.Event, took: list[float]) -> None:
    """As Prometheus does: on one connection, opened again when it was lost."""
    while not stop.wait(SCRAPE_SECONDS):
        took.append(get(client, "/metrics"))


def get(client: http.client.HTTPConnection, path: str) -> float:
    """Seconds until the answer was in, or until it was clear that none would come."""
    began = time.perf_counter()
    try:
        client.request("GET", path, headers={"Accept-Encoding": "gzip"})
        client.getresponse().read()
    except (OSError, http.client.HTTPException):
        with suppress(OSError):
            client.close()
    return time.perf_counter() - began


def probes(errors: dict[str, truth.Errors], skipped: float) -> Table:
    notes = (
        f"Reported minus the server's own record: one target, a probe each 200 ms, {SERVICE_SECONDS * 1e3:g} ms a "
        "token. Attackers, daemon, server and bare client share this machine. Slow clients: 200 requests that get a "
        "byte each second and never end. Flood: 4 clients that fetch pages one after the other, each on a new "
        f"connection; crowd: 64 of them. In all {skipped:.0f} probes were skipped.",
    )
    return Table("Probes beside hostile clients", truth.COLUMNS, truth.rows(errors), notes)


def answered(answers: dict[str, Answers]) -> Table:
    quiet = answers[QUIET]
    rows = []
    for name, of in answers.items():
        reach = (
            Ratio(median(of.health), median(quiet.health), HEALTH_LIMIT),
            Ratio(quantile(of.health, 0.99), quantile(quiet.health, 0.99), HEALTH_LIMIT),
            Ratio(median(of.scrapes), median(quiet.scrapes), SCRAPE_LIMIT),
        )
        cells = [text for one in reach for text in (milliseconds(one.figure), "" if of is quiet else str(one))]
        rows.append((name, *cells, milliseconds(max(of.scrapes))))
    notes = (
        f"From the attackers' address: /-/healthy each {HEALTH_SECONDS:g} s on new connections, and /metrics each "
        f"{SCRAPE_SECONDS:g} s on one that stays open, as Prometheus does. Ratios to the quiet phases of this run.",
    )
    columns = (
        *("", "/-/healthy p50", "ratio p50", "/-/healthy p99", "ratio p99"),
        *("scrape p50", "ratio of scrapes", "slowest scrape"),
    )
    return Table("Health checks and scrapes beside hostile clients", columns, tuple(rows), notes)


PART = Part("hostile", "Hostile clients", run)
