"""Whether slow or greedy clients at the HTTP side delay a probe: quiet and attacked phases in turns, at one target."""

import http.client
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.report import Part, Table, median, milliseconds
from tests.end_to_end.parts import Daemon, daemon_running, simulated_shard, write_config

LATENESS, TTFT = "tgi_probe_schedule_lateness_seconds", "tgi_probe_time_to_first_token_seconds"
SCRAPE_SECONDS = 2.0

Attack = Callable[[int, threading.Event], None]


def slowloris(port: int, stop: threading.Event) -> None:
    """200 connections that each send a byte a second and never finish."""
    with ExitStack() as stack:
        clients: list[socket.socket] = []
        while not stop.wait(0.005 * max(1, 200 - len(clients)) / 200):
            if len(clients) < 200:
                with suppress(OSError):
                    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 2))
                    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")
                    clients.append(client)
            for client in list(clients)[:: 10 + len(clients) // 10]:
                try:
                    client.send(b"a")
                except OSError:
                    clients.remove(client)
                    client.close()


def flood(port: int, stop: threading.Event) -> None:
    """As many health as it can, each on a new connection."""
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while client.recv(65536):
                pass


def scrape(client: http.client.HTTPConnection, stop: threading.Event, took: list[float]) -> None:
    """As Prometheus does: again and again on one connection, but for one that was lost."""
    while not stop.wait(SCRAPE_SECONDS):
        asked = time.monotonic()
        try:
            read_metrics(client)
        except (OSError, http.client.HTTPException):
            client.close()
        took.append(time.monotonic() - asked)


def read_metrics(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    client.getresponse().read()


def measure(daemon: Daemon, seconds: float, attack: Attack | None, clients: int) -> tuple[str, ...]:
    stop = threading.Event()
    scrapes: list[float] = []
    client = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    read_metrics(client)  # its connection is there before the crowd
    threads = [threading.Thread(target=scrape, args=(client, stop, scrapes))]
    threads += [threading.Thread(target=attack, args=(daemon.port, stop)) for _ in range(clients)] if attack else []
    for thread in threads:
        thread.start()
    try:
        time.sleep(1)
        before, start = daemon.samples(), time.monotonic()
        health = []
        while time.monotonic() - start < seconds:
            asked = time.monotonic()
            with suppress(OSError):
                daemon.get("/-/healthy")
            health.append(time.monotonic() - asked)
            time.sleep(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        client.close()
    after = daemon.samples()

    def grown(name: str) -> float:
        return sum(value - before.get(key, 0) for key, value in after.items() if key[0] == name)

    probes, edges = grown(f"{LATENESS}_count"), []
    for key, value in after.items():
        if key[0] == f"{LATENESS}_bucket" and value - before.get(key, 0) >= probes:
            edges.append(float(dict(key[1])["le"]))
    ttft = grown(f"{TTFT}_sum") / max(1.0, grown(f"{TTFT}_count"))
    return (
        f"{probes:.0f}",
        f"{grown('tgi_probe_skipped_total'):.0f}",
        milliseconds(grown(f"{LATENESS}_sum") / probes),
        milliseconds(min(edges), 0),
        milliseconds(ttft),
        milliseconds(median(health), 0),
        milliseconds(max(health), 0),
        milliseconds(max(scrapes), 0),
    )


def run(seconds: float) -> list[Table]:
    rows = []
    with tempfile.TemporaryDirectory() as folder, simulated_shard(f"unix://{folder}/shard") as shard:
        config = write_config(
            Path(folder) / "c.yaml", shard.address, interval="200ms", sequence_length=512, decode_length=2
        )
        with daemon_running(config) as daemon:
            for name, attack, clients in ATTACKS:
                rows.append((name, *measure(daemon, seconds / len(ATTACKS), attack, clients)))
    notes = (
        "The embedded shard, a probe each 200 ms; attackers, daemon and shard share this machine. Slow: 200 clients "
        "that send a byte now and then and never finish a request. Flood: 4 clients that scrape as often as they can, "
        "each time on a new connection; crowd: 64 of them. Beside them, "
        f"from the same address, /-/healthy is asked twice a second on new connections, and /metrics each "
        f"{SCRAPE_SECONDS:g} s on one that stays open, as Prometheus does.",
    )
    figures = ("probes", "skipped", "lateness, mean", "none later than", "TTFT, mean")
    columns = ("", *figures, "/-/healthy, median", "slowest", "slowest scrape")
    return [Table("Hostile clients", columns, tuple(rows), notes)]


ATTACKS: tuple[tuple[str, Attack | None, int], ...] = (
    ("quiet", None, 0),
    ("slow clients", slowloris, 1),
    ("quiet again", None, 0),
    ("flood", flood, 4),
    ("quiet again", None, 0),
    ("crowd", flood, 64),
    ("quiet again", None, 0),
)
PART = Part("hostile", "Hostile clients", run)
