"""A small HTTP server that shows the state of a simulated server and switches faults on, to see alerts fire.

GET /state, GET /record, POST /slowdown?factor=, POST /restart?seconds=,
POST /fault?kind=&seconds=&count=&method=&at=&rank=.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, urlsplit

from exporter.simulator.faults import FAULT_KINDS, Fault, FaultKind
from exporter.simulator.listen_errors import cannot_listen
from exporter.simulator.options import host_and_port
from exporter.simulator.record import AnsweredRequest, ServedCall

_POLL_SECONDS = 0.05  # how soon it notices that it must stop


class Controlled(Protocol):
    """A simulated server, as this page controls it. `fault_kinds` are those that it can simulate."""

    @property
    def fault_kinds(self) -> tuple[FaultKind, ...]: ...
    def state(self) -> dict[str, Any]: ...
    def record(self) -> Sequence[ServedCall | AnsweredRequest]: ...
    def slow_down(self, factor: float) -> None: ...
    def fault(self, fault: Fault | None) -> None: ...
    def restart(self, seconds: float = 0.0) -> None: ...


class ServerGroup:
    """Several servers that get every command together."""

    def __init__(self, servers: Mapping[str, Controlled]) -> None:
        self._servers = servers

    @property
    def fault_kinds(self) -> tuple[FaultKind, ...]:
        """Those that every one of them knows."""
        known = [set(server.fault_kinds) for server in self._servers.values()]
        return tuple(kind for kind in FAULT_KINDS if all(kind in kinds for kinds in known))

    def state(self) -> dict[str, Any]:
        return {name: server.state() for name, server in self._servers.items()}

    def record(self) -> list[ServedCall | AnsweredRequest]:
        return [entry for server in self._servers.values() for entry in server.record()]

    def slow_down(self, factor: float) -> None:
        for server in self._servers.values():
            server.slow_down(factor)

    def fault(self, fault: Fault | None) -> None:
        for server in self._servers.values():
            server.fault(fault)

    def restart(self, seconds: float = 0.0) -> None:
        """One after the other, each away for `seconds`."""
        for server in self._servers.values():
            server.restart(seconds)


class Admin:
    """The HTTP server in its own threads: `with Admin(shard, "127.0.0.1:0") as admin: ... admin.address`."""

    def __init__(self, controlled: Controlled, listen: str) -> None:
        """Binds at once: OSError if the address is taken."""
        handler = type("AdminHandler", (_Handler,), {"controlled": controlled})
        try:
            self._server = ThreadingHTTPServer(host_and_port(listen), handler)
        except OSError as error:
            raise cannot_listen(listen, error) from None
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="admin", daemon=True
        )
        host, port = self._server.server_address[:2]
        self.address = f"{host!s}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    controlled: Controlled

    def do_GET(self) -> None:
        self._route({"/state": _state, "/record": _record})

    def do_POST(self) -> None:
        self._route(
            {
                "/slowdown?factor=": _slowdown,
                "/fault?kind=&seconds=&count=&method=&at=&rank=": _fault,
                "/restart?seconds=": _restart,
            }
        )

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the terminal belongs to the listening addresses."""

    def _route(self, actions: dict[str, Callable[[Controlled, dict[str, str]], str]]) -> None:
        """`actions` by their path, each with the parameters that it takes."""
        url = urlsplit(self.path)
        action = next((action for form, action in actions.items() if urlsplit(form).path == url.path), None)
        if action is None:
            self._reply(404, "known here: " + ", ".join(f"{self.command} {form}" for form in actions))
            return
        try:
            reply = action(self.controlled, {name: values[-1] for name, values in parse_qs(url.query).items()})
        except ValueError as error:
            self._reply(400, str(error))
        except OSError as error:
            self._reply(500, str(error))
        else:
            self._reply(200, reply)

    def _reply(self, status: int, text: str) -> None:
        body = text.encode() + b"\n" if text else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _state(controlled: Controlled, query: dict[str, str]) -> str:
    return json.dumps(controlled.state())


def _record(controlled: Controlled, query: dict[str, str]) -> str:
    return "\n".join(json.dumps(asdict(served)) for served in controlled.record())


def _slowdown(controlled: Controlled, query: dict[str, str]) -> str:
    factor = _number(query, "factor")
    if factor is None or factor == 0:
        raise ValueError("factor: expected a number above 0, such as /slowdown?factor=2")
    controlled.slow_down(factor)
    return f"every pass now takes {factor:g} times as long"


def _fault(controlled: Controlled, query: dict[str, str]) -> str:
    kind = query.get("kind")
    if kind == "none":
        controlled.fault(None)
        return "no fault"
    if kind not in FAULT_KINDS:
        raise ValueError("kind: expected one of none, " + ", ".join(controlled.fault_kinds))
    seconds = _number(query, "seconds")
    controlled.fault(
        Fault(
            kind,
            until=None if seconds is None else time.monotonic() + seconds,
            count=_whole(query, "count"),
            method=query.get("method"),
            at=_whole(query, "at"),
            rank=_whole(query, "rank"),
        )
    )
    return f"fault {kind} is on"


def _restart(controlled: Controlled, query: dict[str, str]) -> str:
    controlled.restart(_number(query, "seconds") or 0.0)
    return "restarted"


def _whole(query: dict[str, str], name: str) -> int | None:
    value = _number(query, name)
    return None if value is None else int(value)


def _number(query: dict[str, str], name: str) -> float | None:
    if name not in query:
        return None
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number from 0")
    return value
