"""Probes a model shard over `generate.v3` (TGI 2.1 and later) or `generate.v2`, as its router would.

These rules always hold. Every call goes to every rank at once. Ids are random, in the upper half of uint64. A batch
that was sent is decoded to its end, or cleared by its id before the next probe; until then the shard is locked against
other probers. Every request is well formed: a malformed one can end a shard (see `batch`). One that is too large can
end it too; `exporter.plan.safety` holds back what is beyond the target's limits.
"""

import contextlib
import random
import time
from collections.abc import Callable

from exporter.config.notation import counted
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Step, Stream
from exporter.plan import shard_prompts
from exporter.plan.safety import cache_tokens, refusal
from exporter.plan.targets import Facts
from exporter.probes.crash_check import has_ended
from exporter.probes.deadline import DEADLINE_EXCEEDED, out_of_time
from exporter.probes.disturbed import mark_disturbed
from exporter.probes.interface import Abandoned, Occupied, Result
from exporter.probes.quarantine import Quarantine
from exporter.probes.shard.batch import PROTOCOLS, MergedAnswers, ShardBatch, believable, parsed
from exporter.probes.shard.calibration import CALIBRATION_SECONDS, Calibration
from exporter.probes.shard.error_hints import connection_ended, explained
from exporter.probes.shard.ranks import RankAnswers, Ranks, discovered, must_exist
from exporter.probes.shard.uncleared import UnclearedBatches
from exporter.wire.delays import PROCESS
from exporter.wire.trace_context import trace_headers

CLOSE_SECONDS = 5.0
RANKS_SECONDS = 1.0
# How often to try to lock. A daemon that probes back to back releases its lock for as long as two small calls last.
RESERVE_SECONDS = 0.002


class ShardProber:
    """See `Prober`. The file beside the socket keeps the `quarantine`."""

    def __init__(self, target: Target, quarantine: Quarantine | None = None) -> None:
        self._target = target
        self._random = random.Random()
        self._ranks: Ranks | None = None
        self.quarantine = quarantine or Quarantine(target)
        self._uncleared = UnclearedBatches(self.quarantine)
        self._lost_connections = 0
        self._facts: Facts | None = None
        self._calibration = Calibration()
        # The connection of a server that failed when it was asked for tokens, and of the newest answered Prefill.
        self._suspected: tuple[int, ...] | None = None
        self._served: tuple[int, ...] | None = None

    def connect(self, timeout: float) -> Facts:
        """Ask for the ranks and their Info each time: a server that restarts may have more ranks."""
        ranks = self._ranks
        try:
            facts = self._connect(timeout)
        except Failure as failure:
            if failure.outcome is Outcome.UNREACHABLE and self._suspected is not None and ranks is not None:
                self._calibration_ended(ranks)
            raise
        if self._suspected not in (None, facts.connection) and self._ranks is not None:
            self._calibration_ended(self._ranks)
        return facts

    def _connect(self, timeout: float) -> Facts:
        """A connection that was closed while idle fails only at the next call. Then a new one is tried once."""
        deadline = time.perf_counter() + timeout
        known = self._ranks is not None
        try:
            return self._ask(timeout)
        except Failure as failure:
            left = deadline - time.perf_counter()
            if not known or failure.outcome is not Outcome.UNREACHABLE or left <= 0:
                raise
        self._lost_connections += 1
        return self._ask(left)

    def _ask(self, timeout: float) -> Facts:
        """A failure closes the channels: gRPC's own pause between attempts would be too long."""
        address = self._target.address
        try:
            if self._ranks is None:
                must_exist(address)
                self._ranks = Ranks([address], "")
            self._ranks = ranks = discovered(self._ranks, address, timeout)
            answers = ranks.call("Info", b"", timeout).answers
        except Failure:
            self._disconnect()
            raise
        info = parsed(PROTOCOLS[ranks.protocol].InfoResponse, answers[0], "Info", ranks.addresses[0])
        paged = not info.requires_padding
        facts = Facts(
            protocol=ranks.protocol,
            ranks=len(ranks.addresses),
            dtype=info.dtype,
            device=info.device_type,
            attention=(getattr(info, "attention_impl", "") or "paged") if paged else "padded",
            requires_padding=info.requires_padding,
            block_size=getattr(info, "block_size", 0),
            speculate=info.speculate,
            connection=(self._lost_connections, *ranks.connection()),
        )
        if facts != self._facts:
            self._calibration.forget()
            with contextlib.suppress(Failure):  # tried again before the first batch
                self._uncleared.clear_leftovers(ranks)
        self._facts = facts
        return facts

    def _disconnect(self) -> None:
        self._calibration.forget()
        ranks, self._ranks = self._ranks, None
        if ranks is not None:
            ranks.close()

    def users_wait(self) -> bool:
        """A shard does not know its users; its target has no yield_to_users."""
        return False

    def refusal(self, facts: Facts) -> str | None:
        return refusal(self._target, facts)

    # --- probing

    def probe(self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str = "") -> Result:
        with PROCESS.watch() as watch:
            try:
                return mark_disturbed(self._calibrated_probe(workload, batch_size, stopping, trace_id), watch)
            except Failure as failure:
                pending = None if self._ranks is None else self._ranks.pending
                raise watch.excused(failure, workload.timeout, True, pending) from None

    def _calibrated_probe(
        self, workload: Workload, batch_size: int, stopping: Callable[[], bool], trace_id: str
    ) -> Result:
        """Ask once for the tokens of our words, then Prefill, then Decode to the end."""
        if self._ranks is None or self._facts is None:
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", f"{self._target.address}: not connected")
        steps: list[Step] = []
        calibrated = False
        try:
            self._calibrate(self._ranks, self._facts, workload)
            self._check_suspected(self._facts)
            calibrated = True
            return self._probe(self._ranks, self._facts, workload, batch_size, stopping, trace_id, steps)
        except Failure as failure:
            self._calibration.probe_failed(failure)
            if failure.code == DEADLINE_EXCEEDED and calibrated:
                call = failure.detail.partition(": ")[0]
                quiet = time.perf_counter() - steps[-1].arrived if steps else 0.0
                detail = out_of_time(workload, sum(step.tokens for step in steps) // batch_size, quiet)
                raise Failure(failure.outcome, failure.code, f"{call}: {detail}") from None
            if connection_ended(failure) and not self._target.address.startswith("unix:"):
                self._lost_connections += 1  # over TCP this alone shows that it may be another server now
            raise explained(failure, self._facts, self._facts.connection == self._served) from None

    def _calibrate(self, ranks: Ranks, facts: Facts, workload: Workload) -> None:
        """Ask once which words are one token. Raises Failure where the server then hangs, is gone or another one."""
        words = self._calibration.words(workload, self._random)
        if words is None or not self._may_ask():
            return
        batch = ShardBatch.asking(PROTOCOLS[ranks.protocol], self._target, facts, workload, words, self._random)
        self._uncleared.add(batch.id, ranks)
        if not self._may_ask():  # another prober has written that down
            self._uncleared.remove(batch.id)
            return
        deadline = time.perf_counter() + min(workload.timeout, CALIBRATION_SECONDS)
        failed = not_cleared = None
        try:
            answers = ranks.call("Prefill", batch.prefill_request(), time_left(deadline, ranks)).answers
            if not batch.merge("Prefill", answers, ranks.addresses).unfinished:
                self._uncleared.remove(batch.id)
            self._calibration.learn(workload, words, batch.prompt_pieces(answers))
        except Failure as failure:
            self._calibration.failed(failure)
            failed = failure
        try:
            self.settle(RANKS_SECONDS)
        except Failure as failure:
            not_cleared = failure
        first = failed or not_cleared
        if first is None:
            return
        # A server that was told to stop, or was gone before the request, did not end because of it.
        away = failed is not None and failed.outcome is Outcome.UNREACHABLE and not failed.may_have_ended_server
        stopped = first.code == "CANCELLED"
        gone = not_cleared is not None and not_cleared.outcome is Outcome.UNREACHABLE
        another = connection_ended(first) or ranks.connection() != facts.connection[1:]
        if not (away or stopped) and (gone or (another and first.may_have_ended_server)):
            self._calibration_ended(ranks)
        elif first.may_have_ended_server:
            self._suspected = facts.connection
        if not_cleared is not None or another or stopped:
            # Without `may_have_ended_server`: the probe's own batch was not sent.
            raise Failure(first.outcome, first.code, first.detail)

    def _may_ask(self) -> bool:
        return self._suspected is None and not self.quarantine.calibration_ended_server

    def _calibration_ended(self, ranks: Ranks) -> None:
        self._suspected = None
        self._uncleared.calibration_ended(ranks)

    def _check_suspected(self, facts: Facts) -> None:
        """Wait for the end of a server that failed when it was asked for tokens: no batch must be blamed for it.

        Raises Failure.
        """
        if self._suspected is None:
            return
        address = self._target.address
        if has_ended(self, facts):  # which `connect` has written down
            detail = f"{address}: the server ended after it was asked for the tokens of our words"
            raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", detail)
        if self._ranks is None:
            detail = f"{address}: no answer after it had failed when it was asked for the tokens of our words"
            raise Failure(Outcome.TIMEOUT, DEADLINE_EXCEEDED, detail)
        self._suspected = None

    def _probe(
        self,
        ranks: Ranks,
        facts: Facts,
        workload: Workload,
        batch_size: int,
        stopping: Callable[[], bool],
        trace_id: str,
        steps: list[Step],
    ) -> Result:
        """Prefill, then Decode to the end. Adds to `steps` as they come."""
        texts = shard_prompts.prompts(batch_size, workload.sequence_length, self._random, self._calibration.vocabulary)
        batch = ShardBatch.build(PROTOCOLS[ranks.protocol], self._target, facts, workload, texts, self._random)
        self._uncleared.add(batch.id, ranks)
        if self.quarantine.holds(cache_tokens(facts, workload, batch_size)):  # another prober has written that down
            self._uncleared.remove(batch.id)
            raise Failure(Outcome.QUARANTINED, "QUARANTINED", self.quarantine.reason())
        prefill, decode = batch.prefill_request(), batch.decode_request()
        trace = trace_headers(trace_id)
        deadline = time.perf_counter() + workload.timeout
        called = ranks.call("Prefill", prefill, time_left(deadline, ranks), trace)
        self._served = facts.connection
        merged = batch.merge("Prefill", called.answers, ranks.addresses)
        steps.append(_step(called, merged))
        for _ in range(workload.decode_length + facts.speculate):
            if not merged.unfinished:
                break
            if stopping():
                raise Abandoned
            if merged.finished:
                # Finished requests would run past their cache, so they leave the batch, as with a router.
                ranks.call("FilterBatch", batch.filter_request(merged), time_left(deadline, ranks), trace)
            called = ranks.call("Decode", decode, time_left(deadline, ranks), trace)
            merged = batch.merge("Decode", called.answers, ranks.addresses)
            steps.append(_step(called, merged))
        time_left(deadline, ranks)
        if merged.unfinished:
            what = f"no end after {counted(len(steps), 'step')} for decode_length {workload.decode_length}"
            raise Failure(Outcome.MALFORMED, "OK", f"{ranks.addresses[0]}: {what}")
        self._uncleared.remove(batch.id)
        prompt_tokens = batch_size * workload.sequence_length
        late = max(step.late for step in steps)
        stream = Stream(batch_size, prompt_tokens, steps[0].asked, steps[-1].arrived, tuple(steps), read_delay=late)
        return Result((stream,))

    # --- leaving no trace

    def settle(self, timeout: float) -> None:
        if self._uncleared:
            self._uncleared.clear(self._ranks, timeout)

    def reserve(self, stopping: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Keep all other probers out until `close`, for a sweep. Waits until another prober has ended its probe.

        Call it after `connect`. Raises Failure, Abandoned.
        """
        shown = ""
        while self._ranks is not None:
            try:
                self._uncleared.keep_lock(self._ranks)
                return
            except Occupied as other:
                if str(other) != shown:
                    say(f"waiting: {other}")
                shown = str(other)
            if stopping():
                raise Abandoned
            time.sleep(RESERVE_SECONDS)

    def close(self) -> None:
        """Close, and clear all batches over new connections: a call may hang on the old ones."""
        self._disconnect()
        try:
            if self._uncleared:
                self._uncleared.clear(None, CLOSE_SECONDS)
        finally:
            self._uncleared.close()


def _step(called: RankAnswers, merged: MergedAnswers) -> Step:
    """We added no more than what is beyond the server's own total."""
    lasted = called.arrived - called.asked
    timings = believable(merged.timings, lasted)
    total = timings.total if timings is not None else None
    late = max(0.0, min(called.late, lasted - (total or 0.0)))
    return Step(
        called.asked,
        called.arrived,
        merged.tokens,
        timings,
        merged.answered,
        late,
        ranks=len(called.answers),
        worked=called.worked,
    )


def time_left(deadline: float, ranks: Ranks) -> float:
    """The seconds that are left for the next call of a probe. Raises Failure when none are.

    Several ranks get RANKS_SECONDS or more: a rank that computes would wait for ever for one whose call was cancelled.
    """
    left = deadline - time.perf_counter()
    if left <= 0:
        raise Failure(Outcome.TIMEOUT, DEADLINE_EXCEEDED, f"{ranks.addresses[0]}: the probe's timeout is over")
    return left if len(ranks.addresses) == 1 else max(left, RANKS_SECONDS)
