"""What the server itself measured: one entry per call or request, to check a probe's numbers against."""

import json
import os
import threading
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar


@dataclass(frozen=True)
class ServedCall:
    """One call on one rank. `*_ns` instants are of the server's perf_counter, the three durations as reported.

    `received_ns` is when the call reached the server, `started_ns` when the rank began it. A call that expired before
    that has code "NOT_RUN". `tokens` counts prompt tokens for Prefill and new tokens for Decode, over all ranks.
    `text_tokens` counts those that a Prefill had to make of its texts before it truncated them.
    """

    rank: int
    method: str
    code: str
    batch_id: int | None
    size: int
    tokens: int
    received_ns: int
    started_ns: int
    finished_ns: int
    forward_ns: int = 0
    decode_ns: int = 0
    total_ns: int = 0
    text_tokens: int = 0


@dataclass(frozen=True)
class AnsweredRequest:
    """One request to a router. `*_ns` instants are of the server's perf_counter.

    `received_ns` is when the whole request had arrived, `queued_ns` when it joined the queue, `started_ns` when its
    prefill began (0 = never). `token_ns` has the instant of each token, just before its bytes are given to the socket
    (or to the gRPC library): tokens that are sent together share one. `finished_ns` is when the answer was complete or
    abandoned. `code` is the status that the client got, "CANCELLED" when it left first. `prompt_start` is the beginning
    of the prompt, `correlation` the client's id of the request.
    """

    id: int
    method: str
    code: str
    prompt_start: str
    correlation: str
    prompt_tokens: int
    cached_tokens: int
    max_new_tokens: int
    received_ns: int
    queued_ns: int
    started_ns: int
    finished_ns: int
    token_ns: tuple[int, ...] = ()


Entry = TypeVar("Entry", ServedCall, AnsweredRequest)


def _private(file: Path) -> int:
    """A descriptor to append to the file, which only its owner can read: entries hold the beginnings of prompts."""
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class Record(Generic[Entry]):
    """The newest `limit` entries in memory, and all of them as JSON lines in `file` if there is one."""

    def __init__(self, limit: int, file: Path | None) -> None:
        self._lock = threading.Lock()
        self._newest: deque[Entry] = deque(maxlen=limit)
        self._file = os.fdopen(_private(file), "a", encoding="utf-8") if file else None

    def add(self, served: Entry) -> None:
        with self._lock:
            self._newest.append(served)
            if self._file and not self._file.closed:
                self._file.write(json.dumps(asdict(served)) + "\n")
                self._file.flush()

    def newest(self) -> list[Entry]:
        with self._lock:
            return list(self._newest)

    def close(self) -> None:
        with self._lock:
            if self._file:
                self._file.close()
