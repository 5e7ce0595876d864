"""The batches that a shard may still hold because of us. ClearCache with a batch's id frees it."""

import contextlib
import logging
import os
import time

from exporter.config.notation import counted
from exporter.observation import Failure, Outcome
from exporter.probes.interface import Occupied
from exporter.probes.quarantine import Quarantine
from exporter.probes.shard.batch import PROTOCOLS
from exporter.probes.shard.lock import ENDED, NoLock, ShardLock, lock_path
from exporter.probes.shard.ranks import Ranks, socket_files

logger = logging.getLogger("tgi_probe")
CLEAR_SECONDS = 5.0
CALIBRATION_ENDED = (
    "the server ended after it was asked, with one small request, how many tokens our words have. It is not asked "
    "again, so prompts are longer than needed from now on, until its lock file (.NAME.tgi-probe) is deleted while no "
    "tgi-probe runs"
)


class UnclearedBatches:
    """Batches that were sent and have not ended, each with the ranks that hold it.

    While there is one, the shard is locked against other probers, and the lock's file holds its id: if this process is
    killed, the next prober clears it. The file also keeps what ended the shard.
    """

    def __init__(self, quarantine: Quarantine) -> None:
        self._target = quarantine.target.name  # for the log
        self._quarantine = quarantine
        self._batches: dict[int, tuple[tuple[str, ...], str]] = {}  # the addresses and the protocol of each id
        self._locks: dict[tuple[str, ...], ShardLock] = {}
        self._locked: set[tuple[str, ...]] = set()
        self._keeps_lock = False
        self._warned: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def add(self, batch_id: int, ranks: Ranks) -> None:
        """Raises Occupied where another prober has the shard, Failure where it is not safe to go on."""
        self._lock(ranks)
        self._batches[batch_id] = (ranks.addresses, ranks.protocol)
        self._write(ranks.addresses)

    def remove(self, batch_id: int) -> None:
        """The batch has ended."""
        addresses, _ = self._batches.pop(batch_id, ((), ""))
        self._write(addresses)
        self._release_unused(addresses)

    def keep_lock(self, ranks: Ranks) -> None:
        """Lock the shard from now on until `close`. Raises as `add`."""
        self._lock(ranks)
        self._keeps_lock = True

    def calibration_ended(self, ranks: Ranks) -> None:
        """Write down that the shard ended when it was asked for the tokens of our words: no prober asks again.

        Where another prober has the shard now, the next batch writes it.
        """
        self._note_calibration()
        with contextlib.suppress(Occupied, Failure):
            self._lock(ranks)
            self._write(ranks.addresses)
            self._release_unused(ranks.addresses)

    def _note_calibration(self) -> None:
        if not self._quarantine.calibration_ended_server:
            self._quarantine.calibration_ended_server = True
            logger.warning("target %s: %s", self._target, CALIBRATION_ENDED)

    def clear_leftovers(self, ranks: Ranks) -> None:
        """Clear what a killed prober has left, unless another one is at work. Raises Failure."""
        if ranks.addresses in self._locked:
            return
        self._locks.pop(ranks.addresses, None)  # a link in the path may lead elsewhere now
        if os.path.exists(lock_path(ranks.addresses[0])):
            with contextlib.suppress(Occupied):
                self._lock(ranks)
                self._release(ranks.addresses)

    def clear(self, ranks: Ranks | None, timeout: float) -> None:
        """Clear every batch, over `ranks` where they hold it. Raises Failure where some stay uncleared."""
        deadline = time.monotonic() + timeout
        newest: Failure | None = None
        for batch_id, (addresses, protocol) in list(self._batches.items()):
            same = ranks is not None and (ranks.addresses, ranks.protocol) == (addresses, protocol)
            holders = ranks if ranks is not None and same else Ranks(addresses, protocol)
            try:
                clear(batch_id, holders, max(0.1, deadline - time.monotonic()))
                self.remove(batch_id)
            except Failure as failure:
                if ranks is not None and not same and failure.outcome is Outcome.UNREACHABLE:
                    self.remove(batch_id)  # the model runs elsewhere now, so the batch is gone
                else:
                    newest = failure
            finally:
                if not same:
                    holders.close()
        if newest is not None:
            ids = ", ".join(map(str, self._batches))
            batches = counted(len(self._batches), "batch", "batches")
            raise Failure(newest.outcome, newest.code, f"{batches} not cleared ({ids}): {newest.detail}")

    def close(self) -> None:
        """Let other probers at the shards. A lock file stays only where it names uncleared batches or a quarantine."""
        for addresses, lock in list(self._locks.items()):
            self._write(addresses)
            self._release(addresses)
            with contextlib.suppress(Occupied, NoLock):
                lock.take()
                if not lock.uncleared:
                    lock.remove()
                lock.release()

    def _lock(self, ranks: Ranks) -> None:
        if ranks.addresses in self._locked:
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
            self._warn_once(f"other probers are not kept out: {why}")
            return
        self._locked.add(ranks.addresses)
        if self._quarantine.restore(lock.quarantine):
            logger.warning("target %s: %s", self._target, self._quarantine.reason())
        if lock.calibration:
            self._note_calibration()
        if lock.uncleared:
            try:
                self._clear_leftovers_of(lock, ranks)
            except Failure:
                self._release(ranks.addresses)
                raise

    def _clear_leftovers_of(self, lock: ShardLock, ranks: Ranks) -> None:
        if lock.shard == ranks.connection():
            for batch_id in lock.uncleared:
                clear(batch_id, ranks, CLEAR_SECONDS)
            logger.warning(
                "target %s: cleared what a prober that was killed had left in %s: %s",
                self._target,
                ranks.addresses[0],
                ", ".join(f"batch {batch_id}" for batch_id in lock.uncleared),
            )
        with contextlib.suppress(OSError):
            lock.write((), ())

    def _release(self, addresses: tuple[str, ...]) -> None:
        if addresses in self._locked:
            self._locked.discard(addresses)
            self._locks[addresses].release()

    def _release_unused(self, addresses: tuple[str, ...]) -> None:
        if not self._keeps_lock and not self._ids_at(addresses):
            self._release(addresses)

    def _ids_at(self, addresses: tuple[str, ...]) -> list[int]:
        return [batch_id for batch_id, (where, _) in self._batches.items() if where == addresses]

    def _write(self, addresses: tuple[str, ...]) -> None:
        if addresses not in self._locked:
            return
        lock = self._locks[addresses]
        lock.quarantine = self._quarantine.as_data(lock.quarantine)
        lock.calibration = ENDED if self._quarantine.calibration_ended_server else lock.calibration
        try:
            lock.write(self._ids_at(addresses), socket_files(addresses))
        except OSError as error:
            what = "a batch could not be cleared if this process were killed, since it cannot be noted"
            self._warn_once(f"{what}: {error}")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("target %s: %s", self._target, text)


def clear(batch_id: int, ranks: Ranks, timeout: float) -> None:
    """Free one batch on every rank. A rank without it answers as well. Raises Failure."""
    request = PROTOCOLS[ranks.protocol].ClearCacheRequest(id=batch_id)
    ranks.call("ClearCache", request.SerializeToString(), timeout)
