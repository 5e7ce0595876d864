"""Failures that are switched on by command, to test alerts, dashboards and probes."""

import os
import signal
import threading
from dataclasses import dataclass
from typing import Literal, get_args

import grpc

StatusKind = Literal["unavailable", "internal", "cancelled", "unknown", "resource_exhausted"]
# Answers that cannot be true; see `lies`.
ShardLie = Literal["other_ids", "missing", "extra", "absurd_times", "no_tokens", "endless", "huge", "garbage"]
FaultKind = StatusKind | Literal["hang", "cut", "kill", "freeze", "crash"] | ShardLie

STATUS_KINDS: tuple[StatusKind, ...] = get_args(StatusKind)
FAULT_KINDS: tuple[FaultKind, ...] = (
    "unavailable",
    "hang",
    "internal",
    "cut",
    "cancelled",
    "unknown",
    "resource_exhausted",
    "kill",
    "freeze",
    "crash",
    *get_args(ShardLie),
)
# A shard answers whole batches: it has no streams to cut.
SHARD_FAULT_KINDS: tuple[FaultKind, ...] = tuple(kind for kind in FAULT_KINDS if kind != "cut")
# A router's answers name no ids and no times, and its process has no ranks.
ROUTER_FAULT_KINDS: tuple[FaultKind, ...] = tuple(
    kind for kind in FAULT_KINDS if kind not in ("crash", "other_ids", "missing", "absurd_times")
)


@dataclass(frozen=True)
class Fault:
    """A status (`unavailable`, `internal` …) is answered; `hang` holds the rank's only thread, or the router's engine.
    `cut` ends a router's streams after their first token: over gRPC with INTERNAL, over HTTP with an error event or,
    where the router's errors are statuses, without an end. `kill` and `freeze` send this process SIGKILL and SIGSTOP;
    `crash` ends a rank, and then, as the launcher does, the others. The rest are lies: see `lies`.

    It ends at the monotonic instant `until` (seconds), or after `count` calls, or never. `method` None hits every call;
    it may name several, with commas between them.
    `at` chooses the k-th Decode of a batch, or the instant after the k-th token of a stream; None is every Decode, and
    the beginning of a stream. `rank` None is every rank.
    """

    kind: FaultKind
    until: float | None = None
    count: int | None = None
    method: str | None = None
    at: int | None = None
    rank: int | None = None

    @property
    def status(self) -> grpc.StatusCode | None:
        """The gRPC status that it answers, None where it is of another kind."""
        return grpc.StatusCode[self.kind.upper()] if self.kind in STATUS_KINDS else None

    def signal_process(self) -> None:
        """End or stop this process, where it is of that kind."""
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)


class FailedByCommand(Exception):
    """A call hit a fault that is a status."""

    def __init__(self, kind: FaultKind, code: grpc.StatusCode) -> None:
        super().__init__(f"Fault by command: {kind}")
        self.code = code


class Faults:
    """The fault of one rank, set from one thread and met in another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._left: int | None = None

    def set(self, fault: Fault | None) -> None:
        with self._lock:
            self._fault = fault
            self._left = fault.count if fault else None

    def meet(self, method: str, now: float, number: int | None = None, named: bool = False) -> Fault | None:
        """The fault that applies to this call, if any. The call counts as one of `count`.

        `number`: which Decode of its batch it is; None where that is not asked. `named`: only a fault that names this
        method applies.
        """
        with self._lock:
            fault = self._fault
            if fault is None or self._left == 0 or (named and fault.method is None):
                return None
            if fault.method is not None and method not in fault.method.split(","):
                return None
            if fault.until is not None and now >= fault.until:
                return None
            if number is not None and fault.at not in (None, number):
                return None
            if self._left is not None:
                self._left -= 1
            return fault

    def holds(self, fault: Fault, now: float) -> bool:
        """Whether a call that hangs because of this fault must go on hanging."""
        with self._lock:
            return self._fault is fault and (fault.until is None or now < fault.until)
