"""Failures that are switched on by command, to test alerts and dashboards."""

import threading
from dataclasses import dataclass
from typing import Literal, get_args

FaultKind = Literal["unavailable", "hang", "internal", "cut"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
# A shard answers whole batches: it has no streams to cut.
SHARD_FAULT_KINDS: tuple[FaultKind, ...] = tuple(kind for kind in FAULT_KINDS if kind != "cut")


@dataclass(frozen=True)
class Fault:
    """`unavailable` and `internal` answer that status, `hang` holds the rank's only thread, or the router's engine.
    `cut` ends a router's streams after their first token: over gRPC with INTERNAL, over HTTP with an error event or,
    where the router's errors are statuses, without an end.

    It ends at the monotonic instant `until` (seconds), or after `count` calls, or never; `method` None hits every call.
    """

    kind: FaultKind
    until: float | None = None
    count: int | None = None
    method: str | None = None


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

    def meet(self, method: str, now: float) -> Fault | None:
        """The fault that applies to this call, if any. The call counts as one of `count`."""
        with self._lock:
            fault = self._fault
            if fault is None or fault.method not in (None, method) or self._left == 0:
                return None
            if fault.until is not None and now >= fault.until:
                return None
            if self._left is not None:
                self._left -= 1
            return fault

    def holds(self, fault: Fault, now: float) -> bool:
        """Whether a call that hangs because of this fault must go on hanging."""
        with self._lock:
            return self._fault is fault and (fault.until is None or now < fault.until)
