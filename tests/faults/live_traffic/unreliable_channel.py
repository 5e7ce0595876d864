"""gRPC channels of our probes to the shared shard, without sockets: between two calls users go on, and calls fail.

What may fail is what fails on real unix sockets: a call that is never served, an answer that is lost after it was
served, errors of the server, garbage, a restart of the server, a kill of our own process at any instant.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from exporter.simulator import messages
from tests.faults.live_traffic.shared_shard import CallFailed, SharedShard


class Killed(BaseException):
    """Our daemon was killed. No code of it may run after that, so nothing of it may catch this."""


class RpcFailed(grpc.RpcError):
    """As gRPC raises it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self._code, self._detail = grpc.StatusCode[code], detail

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._detail


# How often each fault meets a call, in thousandths, and gRPC's error where the client gets one.
NOT_SERVED = {
    "expired in the queue": (8, "DEADLINE_EXCEEDED", "Deadline Exceeded"),
    "refused": (5, "UNAVAILABLE", "failed to connect to all addresses"),
    "exhausted": (3, "RESOURCE_EXHAUSTED", "Too many requests"),
    "server error": (5, "INTERNAL", "CUDA error"),
    "cancelled": (3, "CANCELLED", "The server stops"),
}
ANSWER_LOST = {
    "timeout": (10, "DEADLINE_EXCEEDED", "Deadline Exceeded"),
    "connection lost": (5, "UNAVAILABLE", "Stream removed (Socket closed)"),
    "unknown": (3, "UNKNOWN", "Stream removed"),
}
GARBLED = {"garbage": 4, "other requests": 3, "missing generation": 3}
KILLED_BEFORE, KILLED_AFTER, RESTARTED = 2, 3, 2


class UnreliableChannel:
    """Stands in for `grpc.Channel`. `users` lets the users' router make some calls, `faults` says whether any fail."""

    def __init__(
        self,
        shard: SharedShard,
        users: Callable[[], None],
        rng: random.Random,
        seen: Counter[str],
        faults: Callable[[], bool],
    ) -> None:
        self._shard, self._users, self._random, self._seen, self._faults = shard, users, rng, seen, faults
        self._closed = False

    def unary_unary(self, path: str) -> Callable[..., bytes]:
        protocol, _, method = path.strip("/").rpartition("/")

        def call(request: bytes, timeout: float, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
            if self._closed:
                raise ValueError("Cannot invoke RPC on closed channel!")
            if protocol != f"generate.{self._shard.config.protocol}.TextGenerationService":
                raise RpcFailed("UNIMPLEMENTED", "Method not found!")
            return self._meet(method, request)

        return call

    def close(self) -> None:
        self._closed = True

    def _meet(self, method: str, request: bytes) -> bytes:
        self._users()
        chance = self._random.randrange(1000) if self._faults() else 1000
        for fault, (share, code, detail) in NOT_SERVED.items():
            if (chance := chance - share) < 0:
                self._seen[fault] += 1
                raise RpcFailed(code, detail)
        if (chance := chance - RESTARTED) < 0:
            self._seen["server restarted"] += 1
            self._shard.restart()
            raise RpcFailed("UNAVAILABLE", "Stream removed (Socket closed)")
        if (chance := chance - KILLED_BEFORE) < 0:
            self._seen["killed before a call"] += 1
            raise Killed
        answer = self._served(method, request)
        self._users()
        if (chance := chance - KILLED_AFTER) < 0:
            self._seen["killed after a call"] += 1
            raise Killed
        for fault, (share, code, detail) in ANSWER_LOST.items():
            if (chance := chance - share) < 0:
                self._seen[fault] += 1
                raise RpcFailed(code, detail)
        for fault, share in GARBLED.items():
            if (chance := chance - share) < 0:
                self._seen[fault] += 1
                return self._garbled(fault, method, answer)
        self._seen["answered"] += 1
        return answer

    def _served(self, method: str, request: bytes) -> bytes:
        try:
            return self._shard.probe(method, request)
        except CallFailed as failure:
            self._seen["error"] += 1
            raise RpcFailed(failure.code, failure.detail) from None

    def _garbled(self, fault: str, method: str, answer: bytes) -> bytes:
        if method not in ("Prefill", "Decode"):
            return answer
        if fault == "garbage":
            return self._random.randbytes(20)
        wire: Any = messages.module_of(self._shard.config.protocol)
        message = getattr(wire, f"{method}Response").FromString(answer)
        if fault == "missing generation":
            del message.generations[0]
        else:
            for generation in message.generations:
                generation.request_id = self._random.randrange(20)  # ids that users have
        data: bytes = message.SerializeToString()
        return data
