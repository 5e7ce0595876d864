"""Channels to every rank of one sharded model, and the debts: batches that a shard may still hold because of us."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc

from exporter.config.notation import counted
from exporter.observation import Failure, Outcome
from exporter.probes.interface import Occupied
from exporter.probes.quarantine import Quarantine
from exporter.probes.shard.batch import PROTOCOLS, parsed
from exporter.probes.shard.channel import failure, open_channel
from exporter.probes.shard.lock import ENDED, NoLock, ShardLock, lock_path
from exporter.wire.delays import PROCESS, Delays, PendingCall

logger = logging.getLogger("tgi_probe")
CLEAR_SECONDS = 5.0

CALIBRATION_ENDED = (
    "the server ended after it was asked, with one small request, how many tokens our words have. It is not asked "
    "again, so prompts are longer than needed from now on, until its lock file (.NAME.tgi-probe) is deleted while no "
    "tgi-probe runs"
)

CUT_OFF = ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED")

# How often a call puts its thread to sleep by itself: seen are one or two.
SLEEPS = 3

# W3C trace context, the same for every call of a probe; None sends none.
Metadata = tuple[tuple[str, str], ...] | None


class RankAnswers(NamedTuple):
    """What came of one call: every rank's answer in rank order, not parsed, and the instants around it (seconds).

    Of the time between them this process was held up for at most `late`.
    """

    asked: float
    arrived: float
    answers: list[bytes]
    late: float


class Ranks:
    """Channels to every rank of one sharded model."""

    def __init__(
        self,
        addresses: Sequence[str],
        protocol: str,
        clock: Callable[[], float] = time.perf_counter,
        delays: Delays = PROCESS,
    ) -> None:
        self._clock = clock
        self._delays = delays
        self.addresses = tuple(addresses)
        self.protocol = protocol
        self._channels = [open_channel(address) for address in addresses]
        self._calls: dict[str, list[Any]] = {}
        self.unanswered: PendingCall | None = None  # the newest call, unless its answers are in

    def connection(self) -> tuple[int, ...]:
        """Changes when a server was gone between two calls: see `socket_files`."""
        return socket_files(self.addresses)

    def call(self, rpc: str, request: bytes, timeout: float, metadata: Metadata = None) -> RankAnswers:
        """Every rank's answer. Returns when the slowest is in. Raises Failure.

        It always waits for all: ranks compute together, and a call taken back from one of them would leave the others
        waiting for it.
        """
        calls = self._calls_of(rpc)
        # The first rank is called from this very thread: with one rank, nothing stands between socket and clock.
        first = partial(calls[0], request, timeout=timeout, metadata=metadata)
        answers: list[bytes] = []
        failures: list[Failure] = []
        before = self._delays.mark(len(calls) > 1)
        asked = arrived = self._clock()
        self.unanswered = PendingCall(before, before.at + timeout)
        others = [call.future(request, timeout=timeout, metadata=metadata) for call in calls[1:]]
        for wait, address in zip([first, *(other.result for other in others)], self.addresses, strict=True):
            try:
                answers.append(wait())
                arrived = self._clock()
            except grpc.RpcError as error:
                failures.append(failure(error, rpc, address, timeout))
            except ValueError:  # so says a channel that another thread has closed
                raise Failure(
                    Outcome.UNREACHABLE, "CANCELLED", f"{rpc} at {address}: we closed the connection"
                ) from None
        if failures:
            # When one rank fails the others are cut off: what the culprit said is worth more than their CANCELLED.
            raise min(failures, key=lambda failed: (failed.code in CUT_OFF, not failed.may_have_ended_server))
        self.unanswered = None
        late = self._delays.between(before, self._delays.mark(len(calls) > 1), SLEEPS)
        return RankAnswers(asked, arrived, answers, late)

    def call_first(self, rpc: str, request: bytes, timeout: float) -> bytes:
        """The first rank's answer alone: only for calls that no rank computes for. Raises Failure."""
        try:
            answer: bytes = self._calls_of(rpc)[0](request, timeout=timeout)
        except grpc.RpcError as error:
            raise failure(error, rpc, self.addresses[0], timeout) from None
        return answer

    def _calls_of(self, rpc: str) -> list[Any]:
        path = f"/{self.protocol}.TextGenerationService/{rpc}"
        calls = self._calls.get(path)
        if calls is None:
            calls = self._calls[path] = [channel.unary_unary(path) for channel in self._channels]
        return calls

    def moved_to(self, addresses: Sequence[str]) -> "Ranks":
        return Ranks(addresses, self.protocol, self._clock, self._delays)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def socket_files(addresses: Sequence[str]) -> tuple[int, ...]:
    """Which servers these are: a unix socket is another file after a restart (its owner and mode may change without).

    Over TCP nothing here tells (a real shard listens on unix sockets only); there a call that fails has to notice.
    """
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


class UnclearedBatches:
    """Batches that were sent and not seen to end, each with the ranks that hold it. Paid by ClearCache with the id.

    As long as one is owed the shard is locked, so that no other prober's calls come in between, and its id stands in
    the file of the lock: where this process is killed, the next prober pays. `target` is its name, for the log. What
    ended the shard is kept in that file too.
    """

    def __init__(self, target: str, quarantine: Quarantine | None = None) -> None:
        self._target = target
        self._quarantine = quarantine
        self._owed: dict[int, tuple[tuple[str, ...], str]] = {}
        self._locks: dict[tuple[str, ...], ShardLock] = {}
        self._held: set[tuple[str, ...]] = set()
        self._kept = False
        self._said: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._owed)

    def add(self, batch_id: int, ranks: Ranks) -> None:
        """Raises Occupied where another prober has the shard, Failure where it is not safe to go on."""
        self._lock(ranks)
        self._owed[batch_id] = (ranks.addresses, ranks.protocol)
        self._note(ranks.addresses)

    def ended(self, batch_id: int) -> None:
        addresses, _ = self._owed.pop(batch_id, ((), ""))
        self._note(addresses)
        if not self._kept and not self._owed_by(addresses):
            self._release(addresses)

    def keep(self, ranks: Ranks) -> None:
        """Lock the shard from now on until `close`. Raises as `add`."""
        self._lock(ranks)
        self._kept = True

    def calibration_ended(self, ranks: Ranks) -> None:
        """Write down that the shard ended when it was asked for the tokens of our words, so that no prober asks again.

        Where another one has the shard now, it is written with the next batch.
        """
        if self._quarantine is None:
            return
        self._calibration_ended(self._quarantine)
        with contextlib.suppress(Occupied, Failure):
            self._lock(ranks)
            self._note(ranks.addresses)
            if not self._kept and not self._owed_by(ranks.addresses):
                self._release(ranks.addresses)

    def _calibration_ended(self, quarantine: Quarantine) -> None:
        if not quarantine.calibration_ended_server:
            quarantine.calibration_ended_server = True
            logger.warning("target %s: %s", self._target, CALIBRATION_ENDED)

    def inherit(self, ranks: Ranks) -> None:
        """At a new connection: clear what a prober that was killed has left, unless another one is at work.

        Raises Failure.
        """
        if ranks.addresses in self._held:
            return
        self._locks.pop(ranks.addresses, None)  # a link in the path may lead elsewhere now
        if os.path.exists(lock_path(ranks.addresses[0])):
            with contextlib.suppress(Occupied):
                self._lock(ranks)
                self._release(ranks.addresses)

    def close(self) -> None:
        """Let other probers at the shards. What is still owed stays written down for them, else no file stays."""
        for addresses, lock in list(self._locks.items()):
            self._note(addresses)
            self._release(addresses)
            with contextlib.suppress(Occupied, NoLock):
                lock.take()
                if not lock.owed:
                    lock.remove()
                lock.release()

    def pay(self, ranks: Ranks | None, timeout: float) -> None:
        """Clear every batch where it lies, over `ranks` where they are those. Raises Failure when some stay owed."""
        deadline = time.monotonic() + timeout
        trouble: Failure | None = None
        for batch_id, (addresses, protocol) in list(self._owed.items()):
            same = ranks is not None and (ranks.addresses, ranks.protocol) == (addresses, protocol)
            there = ranks if ranks is not None and same else Ranks(addresses, protocol)
            try:
                clear(batch_id, there, max(0.1, deadline - time.monotonic()))
                self.ended(batch_id)
            except Failure as error:
                if ranks is not None and not same and error.outcome is Outcome.UNREACHABLE:
                    self.ended(batch_id)  # the model runs elsewhere now, and the batch went with those ranks
                else:
                    trouble = error
            finally:
                if not same:
                    there.close()
        if trouble is not None:
            ids = ", ".join(map(str, self._owed))
            batches = counted(len(self._owed), "batch", "batches")
            raise Failure(trouble.outcome, trouble.code, f"{batches} not cleared ({ids}): {trouble.detail}")

    def _lock(self, ranks: Ranks) -> None:
        if ranks.addresses in self._held:
            return
        lock = self._locks.get(ranks.addresses)
        if lock is None:
            lock = self._locks[ranks.addresses] = ShardLock(ranks.addresses[0])
        try:
            lock.take()
        except NoLock as why:
            if len(ranks.addresses) > 1:
                mend = "give tgi-probe the right to read and write its directory"
                detail = f"a shard of several ranks must be locked against other probers, but {why}; {mend}"
                raise Failure(Outcome.REFUSED, "REFUSED", detail) from None
            self._say(f"other probers are not kept out: {why}")
            return
        self._held.add(ranks.addresses)
        if self._quarantine is not None:
            if self._quarantine.restore(lock.quarantine):
                logger.warning("target %s: %s", self._target, self._quarantine.reason())
            if lock.calibration:
                self._calibration_ended(self._quarantine)
        if lock.owed:
            try:
                self._clear_left_over(lock, ranks)
            except Failure:
                self._release(ranks.addresses)
                raise

    def _release(self, addresses: tuple[str, ...]) -> None:
        if addresses in self._held:
            self._held.discard(addresses)
            self._locks[addresses].release()

    def _clear_left_over(self, lock: ShardLock, ranks: Ranks) -> None:
        if lock.shard == ranks.connection():
            for batch_id in lock.owed:
                clear(batch_id, ranks, CLEAR_SECONDS)
            left = ", ".join(f"batch {batch_id}" for batch_id in lock.owed)
            logger.warning(
                "target %s: cleared what a prober that was killed had left in %s: %s",
                self._target,
                ranks.addresses[0],
                left,
            )
        with contextlib.suppress(OSError):
            lock.note((), ())

    def _owed_by(self, addresses: tuple[str, ...]) -> list[int]:
        return [batch_id for batch_id, (where, _) in self._owed.items() if where == addresses]

    def _note(self, addresses: tuple[str, ...]) -> None:
        if addresses not in self._held:
            return
        lock = self._locks[addresses]
        if self._quarantine is not None:
            lock.quarantine = self._quarantine.as_data(lock.quarantine)
            lock.calibration = ENDED if self._quarantine.calibration_ended_server else lock.calibration
        try:
            lock.note(self._owed_by(addresses), socket_files(addresses))
        except OSError as error:
            self._say(f"a batch could not be cleared if this process were killed, since it cannot be noted: {error}")

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("target %s: %s", self._target, what)


def clear(batch_id: int, ranks: Ranks, timeout: float) -> None:
    """Free one batch on every rank; one that is not there any more is no error. Raises Failure."""
    request = PROTOCOLS[ranks.protocol].ClearCacheRequest(id=batch_id)
    ranks.call("ClearCache", request.SerializeToString(), timeout)


def discovered(ranks: Ranks, address: str, timeout: float) -> Ranks:
    """The same ranks, or those that the server names. Settles the protocol: v3, or v2 when v3 is not known.

    `address` is the configured one. Raises Failure; `ranks` is closed where others come back.
    """
    first = [ranks.protocol] if ranks.protocol else []
    for protocol in [*first, *(other for other in PROTOCOLS if other not in first)]:
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
        addresses = reachable(address, list(found.urls))
        for other in addresses:
            must_exist(other)
        if addresses == ranks.addresses:
            return ranks
        ranks.close()
        return ranks.moved_to(addresses)
    hint = "it answers, but not as a TGI shard; is it the router? Then kind: fmaas"
    raise Failure(Outcome.REJECTED, "UNIMPLEMENTED", f"{address}: {hint}")


def hung_up(said: str) -> bool:
    """Whether gRPC says that the server took the connection and then spoke no HTTP/2. One that is down refuses it."""
    return "Expected SETTINGS frame" in said or ("failed to connect" in said and "Socket closed" in said)


def must_exist(address: str) -> None:
    """Raises Failure where a unix socket is missing, which gRPC would say in riddles."""
    if address.startswith("unix:") and not os.path.exists(path_of(address)):
        first = f"{address}-0"
        hint = "is the server up, and its directory shared with this container?"
        if os.path.exists(path_of(first)):
            hint = f"there is {first}, the first rank's"
        raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{address}: no such socket; {hint}")


def reachable(address: str, urls: list[str]) -> tuple[str, ...]:
    """The ranks' addresses as seen from here: a socket directory may be mounted at another place than in the server."""
    if not urls:
        return (address,)
    if not address.startswith("unix:"):
        if len(urls) == 1:
            return (address,)
        if any(url.startswith("unix:") for url in urls):
            raise Failure(
                Outcome.UNREACHABLE,
                "UNAVAILABLE",
                f"{address}: its {len(urls)} ranks listen on unix sockets only; give the target a socket ({urls[0]})",
            )
        return tuple(urls)
    if len(urls) == 1:
        return (address,)
    here = os.path.dirname(path_of(address))
    moved = [f"unix://{os.path.join(here, os.path.basename(url))}" for url in urls]
    return tuple(moved)


def path_of(address: str) -> str:
    return address.removeprefix("unix://").removeprefix("unix:")
