"""A real Alertmanager with the committed routes, and the receiver of its messages."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests import real_parts
from tests.processes import Process, ask, free_port, running, wait_until

COMMITTED = Path(__file__).parents[2] / "deploy" / "alertmanager" / "alertmanager.yml"


@dataclass(slots=True)
class Inbox:
    """What the webhooks got, in order: (receiver, status, the alert's labels and annotations), and the receiver of each
    notification, which may hold several alerts.
    """

    messages: list[tuple[str, str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    notifications: list[str] = field(default_factory=list)

    def take(self, receiver: str, body: bytes) -> None:
        self.notifications.append(receiver)
        for alert in json.loads(body)["alerts"]:
            self.messages.append((receiver, alert["status"], alert["labels"], alert["annotations"]))

    def labels_of(self, receiver: str, status: str, alertname: str) -> list[dict[str, str]]:
        return [
            labels
            for to, how, labels, _ in list(self.messages)
            if (to, how, labels["alertname"]) == (receiver, status, alertname)
        ]

    def told(self, receiver: str) -> list[tuple[str, str]]:
        """Status and name of every alert that the receiver was told of, in order."""
        return [(status, labels["alertname"]) for to, status, labels, _ in list(self.messages) if to == receiver]


@contextlib.contextmanager
def inbox_listening() -> Iterator[tuple[Inbox, int]]:
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            inbox.take(self.path.strip("/"), self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield inbox, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, slots=True)
class Alertmanager:
    process: Process
    port: int

    def states(self) -> dict[tuple[str, str], str]:
        """`active` or `suppressed` of every alert, by name and severity."""
        alerts: list[dict[str, Any]] = ask(f"http://127.0.0.1:{self.port}/api/v2/alerts").json()
        return {(a["labels"]["alertname"], a["labels"]["severity"]): a["status"]["state"] for a in alerts}


@contextlib.contextmanager
def alertmanager_running(folder: Path, webhook_port: int) -> Iterator[Alertmanager]:
    """The committed routes and inhibitions; only the receivers' addresses and the waits are the test's."""
    config = yaml.safe_load(COMMITTED.read_text())
    # The first is a hundredth of the committed one, as all waits of the rules are.
    config["route"] |= {"group_wait": "300ms", "group_interval": "500ms"}
    for receiver in config["receivers"]:
        for webhook in receiver["webhook_configs"]:
            webhook["url"] = f"http://127.0.0.1:{webhook_port}/{receiver['name']}"
    folder.mkdir()
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        real_parts.alertmanager(),
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
        "--log.level=warn",
    ]
    with running(command) as process:
        wait_until(lambda: ask(f"http://127.0.0.1:{port}/-/ready").status == 200, "Alertmanager is ready", process)
        yield Alertmanager(process, port)
