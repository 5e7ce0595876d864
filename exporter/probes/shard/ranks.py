"""Calls to every rank of one sharded model, and the discovery of the ranks."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import grpc

from exporter.observation import Failure, Outcome
from exporter.probes.shard.batch import PROTOCOLS, parsed
from exporter.probes.shard.channel import failure, open_channel
from exporter.wire.delays import PROCESS, PendingCall, worked

# When one rank fails, these are the codes of the others.
CUT_OFF = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")
# Each has a channel and a thread of ours.
MOST_RANKS = 64
# How often a call itself puts its thread to sleep: one or two times were seen.
SLEEPS = 3


# grpcio makes a deadline of the wall clock's time, so a call seems late where that jumps forward.
JUMP_SECONDS = 0.5


class RankAnswers(NamedTuple):
    """Every rank's answer to one call, in rank order, not parsed; the instants before and after it (seconds).

    We held it up for at most `late` seconds in between. `worked`: for how long of these a CPU did the work of the call.
    """

    asked: float
    arrived: float
    answers: list[bytes]
    late: float
    worked: float


class RankCall(NamedTuple):
    """One rank's answer, or what it failed with. The thread that called it was held up for at most `late` seconds, and
    ran for `worked` of them.
    """

    answer: bytes | Failure
    asked: float
    arrived: float
    late: float
    worked: float


class Ranks:
    """Channels to every rank of one sharded model."""

    def __init__(self, addresses: Sequence[str], protocol: str) -> None:
        self.addresses = tuple(addresses)
        self.protocol = protocol
        self._channels = [open_channel(address) for address in addresses]
        self._calls: dict[str, list[Any]] = {}
        # The first rank is called by the thread that probes: with one rank, nothing comes between socket and clock.
        self._threads = [RankThread() for _ in addresses[1:]]
        self.pending: PendingCall | None = None  # the newest call, until its answers are in

    def connection(self) -> tuple[int, ...]:
        """Changes when a server was gone between two calls: see `socket_files`."""
        return socket_files(self.addresses)

    def call(self, rpc: str, request: bytes, timeout: float, metadata: Sequence[tuple[str, str]] = ()) -> RankAnswers:
        """Every rank's answer. Returns when the slowest one is in. Raises Failure.

        It always waits for all ranks: they compute together, so cancelling one call would leave the others waiting.
        """
        calls = [
            partial(_call_rank, rpc, address, call, request, timeout, metadata)
            for address, call in zip(self.addresses, self._calls_of(rpc), strict=True)
        ]
        before = PROCESS.mark()
        self.pending = PendingCall(before, before.at + timeout)
        others = [thread.submit(call) for thread, call in zip(self._threads, calls[1:], strict=True)]
        ranks = [calls[0](), *(other.result() for other in others)]
        answers = [rank.answer for rank in ranks if isinstance(rank.answer, bytes)]
        failures = [rank.answer for rank in ranks if isinstance(rank.answer, Failure)]
        if failures:
            raise min(failures, key=lambda failed: (failed.code in CUT_OFF, not failed.may_have_ended_server))
        self.pending = None
        asked, arrived = min(rank.asked for rank in ranks), max(rank.arrived for rank in ranks)
        late = arrived - max(rank.arrived - rank.late for rank in ranks)
        # A rank that we asked late may have made all wait.
        asked_late = max(rank.asked for rank in ranks) - asked
        return RankAnswers(asked, arrived, answers, late + asked_late, min(rank.worked for rank in ranks))

    def call_first(self, rpc: str, request: bytes, timeout: float) -> bytes:
        """The first rank's answer alone: only for calls without computation. Raises Failure."""
        called = _call_rank(rpc, self.addresses[0], self._calls_of(rpc)[0], request, timeout, ())
        if isinstance(called.answer, Failure):
            raise called.answer
        return called.answer

    def _calls_of(self, rpc: str) -> list[Any]:
        path = f"/{self.protocol}.TextGenerationService/{rpc}"
        calls = self._calls.get(path)
        if calls is None:
            calls = self._calls[path] = [channel.unary_unary(path) for channel in self._channels]
        return calls

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        for thread in self._threads:
            thread.end()


def _call_rank(
    rpc: str, address: str, call: Any, request: bytes, timeout: float, metadata: Sequence[tuple[str, str]]
) -> RankCall:
    answer: bytes | Failure
    before = PROCESS.mark()
    wall_clock = time.time()
    asked = time.perf_counter()
    try:
        answer = call(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        answer = failure(error, rpc, address, timeout)
        jump = time.time() - wall_clock - (time.perf_counter() - asked)
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and jump > JUMP_SECONDS:
            detail = f"{rpc} at {address}: the wall clock jumped by {jump:.3g} s, and gRPC's deadlines go by it"
            answer = Failure(Outcome.DISTURBED, "OK", detail)
    except ValueError:  # gRPC's error for a channel that another thread has closed
        answer = Failure(Outcome.UNREACHABLE, "CANCELLED", f"{rpc} at {address}: we closed the connection")
    arrived = time.perf_counter()
    after = PROCESS.mark()
    return RankCall(answer, asked, arrived, PROCESS.between(before, after, SLEEPS), worked(before, after))


class RankThread(threading.Thread):
    """Makes one rank's calls beside those of the others, in a thread that waits for nothing else.

    gRPC's own way to make calls at once, futures, hands an answer through several threads. How long those wait for a
    CPU adds up to more than an answer may be late. No pool of the library: it would keep the process alive until a
    hung call ends.
    """

    def __init__(self) -> None:
        super().__init__(name="rank", daemon=True)
        self._jobs: SimpleQueue[tuple[Future[RankCall], Callable[[], RankCall]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False
        self.start()

    def submit(self, call: Callable[[], RankCall]) -> "Future[RankCall]":
        """After `end` the caller makes the call: it fails at once, since the channel is closed."""
        result: Future[RankCall] = Future()
        with self._lock:
            if not self._ended:
                self._jobs.put((result, call))
                return result
        result.set_result(call())
        return result

    def end(self) -> None:
        """After the calls that were submitted."""
        with self._lock:
            self._ended = True
            self._jobs.put(None)

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, call = job
            try:
                result.set_result(call())
            except BaseException as error:
                result.set_exception(error)


def socket_files(addresses: Sequence[str]) -> tuple[int, ...]:
    """Identifies the servers: after a restart a unix socket is another file. Empty over TCP."""
    found: list[int] = []
    for address in addresses:
        if address.startswith("unix:"):
            try:
                file = os.stat(path_of(address))
            except OSError:
                found.append(0)
            else:
                found += (file.st_ino, file.st_mtime_ns)
    return tuple(found)


def discovered(ranks: Ranks, address: str, timeout: float) -> Ranks:
    """The same ranks, or those that the server names. Settles the protocol: v3, or v2 where the server has no v3.

    `address` is the configured one. `ranks` is closed where others come back. Raises Failure.
    """
    for protocol in sorted(PROTOCOLS, key=lambda name: name != ranks.protocol):  # the known one first
        ranks.protocol = protocol
        try:
            answer = ranks.call_first("ServiceDiscovery", b"", timeout)
        except Failure as error:
            if "http1.x server" in error.detail:
                hint = "it answers, but speaks no gRPC; is it the router's HTTP port? Then kind: http"
                raise Failure(Outcome.REJECTED, "UNAVAILABLE", f"{address}: {hint}") from None
            if not address.startswith("unix:") and hung_up(error.detail):
                hint = "does it speak TLS? Then it is a router: kind: fmaas with tls: {}, or kind: http with https://…"
                raise Failure(error.outcome, error.code, f"{error.detail}; {hint}") from None
            if error.code != "UNIMPLEMENTED":
                raise
            continue
        found = parsed(PROTOCOLS[protocol].ServiceDiscoveryResponse, answer, "ServiceDiscovery", address)
        if len(found.urls) > MOST_RANKS:
            what = f"{len(found.urls)} ranks, and no model has more than {MOST_RANKS}"
            raise Failure(Outcome.MALFORMED, "OK", f"ServiceDiscovery at {address}: {what}")
        addresses = reachable(address, list(found.urls))
        for other in addresses:
            must_exist(other)
        if addresses == ranks.addresses:
            return ranks
        ranks.close()
        return Ranks(addresses, protocol)
    hint = "it answers, but not as a TGI shard; is it the router? Then kind: fmaas"
    raise Failure(Outcome.REJECTED, "UNIMPLEMENTED", f"{address}: {hint}")


def hung_up(detail: str) -> bool:
    """Whether the server took the connection and then spoke no HTTP/2, in gRPC's words."""
    return "Expected SETTINGS frame" in detail or ("failed to connect" in detail and "Socket closed" in detail)


def must_exist(address: str) -> None:
    """Raises Failure where a unix socket is missing: gRPC's own message would not say that."""
    if address.startswith("unix:") and not os.path.exists(path_of(address)):
        first = f"{address}-0"
        hint = "is the server up, and its directory shared with this container?"
        if os.path.exists(path_of(first)):
            hint = f"there is {first}, the first rank's"
        raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{address}: no such socket; {hint}")


def reachable(address: str, urls: list[str]) -> tuple[str, ...]:
    """The ranks' addresses as seen from here: the server may have its socket directory at another path.

    They are always where `address` is, in its directory or on its host: a server must not send us elsewhere.
    """
    if len(urls) <= 1:
        return (address,)
    if address.startswith("unix:"):
        here = os.path.dirname(path_of(address))
        return tuple(f"unix://{os.path.join(here, os.path.basename(url))}" for url in urls)
    if any(url.startswith("unix:") for url in urls):
        detail = f"{address}: its {len(urls)} ranks listen on unix sockets only; give the target a socket ({urls[0]})"
        raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", detail)
    host = address.rpartition(":")[0]
    ports = [url.rpartition(":")[2] for url in urls]
    if not all(port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536 for port in ports):
        raise Failure(Outcome.MALFORMED, "OK", f"ServiceDiscovery at {address}: a rank without a port")
    return tuple(f"{host}:{port}" for port in ports)


def path_of(address: str) -> str:
    return address.removeprefix("unix://").removeprefix("unix:")
