"""`tgi-probe check --connect`: sends one small request to each target, and says what to change where it fails.

A target is asked as the daemon would ask it. Where that fails, `identify` finds out which server answers.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from exporter.analysis import timeline
from exporter.config.notation import counted
from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import NOT_JUDGED, Failure, Outcome, Series
from exporter.plan.safety import cache_tokens, deadlock, excess, over_limits
from exporter.plan.targets import Facts, Plan, plans
from exporter.probes.crash_check import ended_by
from exporter.probes.interface import GiveWay, Prober, Result
from exporter.probes.opening import open_prober
from exporter.probes.quarantine import Quarantine
from exporter.wire.delays import PROCESS

if TYPE_CHECKING:  # loads the HTTP libraries
    from exporter.probes.identify import FoundServer

TARGET_SECONDS = 10.0
AT_ONCE = 8
# Tokens that the request asks for at most.
ANSWER_TOKENS = 8
SHORTEST = 0.1
# How often to ask where this process was held up.
TRIES = 10
NOT_LET_IN = ("UNAUTHORIZED", "UNAUTHENTICATED", "FORBIDDEN", "PERMISSION_DENIED")
# These outcomes come from the right server, so it is not identified.
RIGHT_SERVER = (Outcome.TIMEOUT, Outcome.OVERLOADED, *NOT_JUDGED)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    kind: Literal["ok", "note", "problem", "mend"]
    text: str


def run(settings: Settings, say: Callable[[str], object] = print) -> int:
    """Check every target, several at once. Returns the exit code: 1 where one has a problem."""
    wrong = 0
    asked = list(plans(settings).values())
    with ThreadPoolExecutor(AT_ONCE, "connect") as threads:
        for plan, findings in zip(asked, threads.map(examine, asked), strict=True):
            target = plan.target
            api = f", api {target.api}" if target.kind == "http" else ""
            say(f"{target.name}: kind {target.kind}{api}, {target.address}")
            for finding in findings:
                say(f"  {finding.kind:8} {finding.text}")
            wrong += any(finding.kind == "problem" for finding in findings)
    say(f"{counted(len(asked), 'target')}: {'all well' if not wrong else f'{wrong} with a problem'}")
    return 1 if wrong else 0


def examine(plan: Plan) -> list[Finding]:
    quarantine = Quarantine(plan.target)
    prober = open_prober(plan.target, quarantine=quarantine)
    findings: list[Finding] = []
    try:
        findings += Examination(plan, prober, quarantine).findings()
    finally:
        try:
            prober.close()
        except Failure as failure:
            findings.append(Finding("problem", f"something of ours may be left in the server: {failure.detail}"))
    return findings


class Examination:
    """The check of one target, within TARGET_SECONDS."""

    def __init__(self, plan: Plan, prober: Prober, quarantine: Quarantine) -> None:
        self._plan, self._target, self._prober, self._quarantine = plan, plan.target, prober, quarantine
        self._until = time.perf_counter() + TARGET_SECONDS

    def findings(self) -> Iterator[Finding]:
        left = self._left()
        try:
            facts = PROCESS.excusing(lambda: self._prober.connect(left), left)
        except Failure as failure:
            yield from self._failed(failure)
            return
        yield Finding("ok", who_answers(facts))
        why = self._prober.refusal(facts) or deadlock(self._target, facts)
        if why is not None:
            yield Finding("problem", f"nothing was sent: {why}")
            return
        yield from self._limits(facts)
        if self._quarantine.death is not None:
            yield Finding("problem", self._quarantine.reason())
        workload = min(self._fitting(facts), key=lambda one: (one.sequence_length, one.decode_length), default=None)
        if workload is None:
            yield Finding("problem", "nothing was sent: no workload that could be sent is for this target")
            return
        yield from self._probed(workload, facts)
        yield from self._queue()

    def _left(self) -> float:
        return max(SHORTEST, self._until - time.perf_counter())

    def _fitting(self, facts: Facts) -> Iterator[Workload]:
        for workload in self._plan.workloads:
            unsafe = over_limits(facts, workload) or excess(self._target, workload, 1, facts)
            if unsafe is None and not self._quarantine.holds(cache_tokens(facts, workload, 1)):
                yield workload

    def _limits(self, facts: Facts) -> Iterator[Finding]:
        for series, workload in self._plan.series():
            why = excess(self._target, workload, series.batch_size, facts)
            if why is not None:
                yield Finding("note", f"workload {workload.name}, batch size {series.batch_size} is never sent: {why}")
        for workload in self._plan.workloads:
            why = over_limits(facts, workload)
            if why is not None:
                yield Finding("problem", f"workload {workload.name}: {why}")

    def _probed(self, workload: Workload, facts: Facts) -> Iterator[Finding]:
        short = workload.model_copy(update={"decode_length": min(workload.decode_length, ANSWER_TOKENS)})
        try:
            result = self._result(short)
        except GiveWay as why:
            yield Finding("ok", f"nothing was sent: {why}")
            return
        except Failure as failure:
            series = Series(self._target.name, workload.name, 1)
            shard = self._target.kind == "shard"
            if shard and ended_by(failure, self._prober, self._quarantine, series, short, facts):
                yield Finding("problem", self._quarantine.reason())
            else:
                yield from self._failed(failure)
            return
        yield from answered(self._target, workload, result)

    def _result(self, workload: Workload) -> Result:
        """Ask again where this process was held up, as long as there is time. Raises Failure, GiveWay."""
        tries = 0
        while True:
            tries += 1
            try:
                result = self._prober.probe(workload.model_copy(update={"timeout": self._left()}), 1, lambda: False)
                if result.outcome is Outcome.OK:
                    return result
                raise Failure(result.outcome, result.code, result.detail)
            except Failure as failure:
                if failure.outcome is not Outcome.DISTURBED or tries == TRIES or self._left() <= SHORTEST:
                    raise
                self._prober.settle(self._left())

    def _queue(self) -> Iterator[Finding]:
        if not self._target.yield_to_users:
            return
        try:
            wait = self._prober.users_wait()
        except Failure as failure:
            yield Finding("problem", f"yield_to_users: the queue cannot be read: {failure.detail}")
            yield Finding("mend", "set metrics_url to the page with the router's own metrics, or remove yield_to_users")
            return
        yield Finding("ok", f"yield_to_users: the queue can be read; users {'wait' if wait else 'do not wait'} now")

    def _failed(self, failure: Failure) -> Iterator[Finding]:
        if failure.outcome is Outcome.DISTURBED:
            yield Finding("ok", f"no answer of it can be judged, for this machine is too busy: {failure.detail}")
            return
        yield Finding("problem", f"{failure.outcome} ({failure.code}): {failure.detail}")
        if failure.outcome in RIGHT_SERVER:
            return
        # The check may have used up its time already.
        until = max(self._until, time.perf_counter() + TARGET_SECONDS / 2)
        from exporter.probes.identify import identify

        server = identify(self._target, until)
        yield from (Finding("mend", mend) for mend in mends(self._target, failure, server))


def who_answers(facts: Facts) -> str:
    """What the server says of itself."""
    parts = [facts.protocol]
    parts += [f"{name} {value}" for name, value in (("model", facts.model), ("dtype", facts.dtype)) if value]
    if facts.protocol.startswith("generate"):
        parts += [counted(facts.ranks, "rank"), "padded" if facts.requires_padding else "paged"]
        parts += [f"block size {facts.block_size}"] if not facts.requires_padding and facts.block_size else []
    limits = (("max_input_tokens", facts.max_input_tokens), ("max_total_tokens", facts.max_total_tokens))
    parts += [f"{name} {limit}" for name, limit in limits if limit is not None]
    silence = {"read": "", "refused": "which says nothing of itself", "silent": "whose page of facts gives no answer"}
    parts += [silence[facts.page]] if facts.page != "read" else []
    return "reachable: " + ", ".join(parts)


def answered(target: Target, workload: Workload, result: Result) -> Iterator[Finding]:
    """The findings of a good answer."""
    [stream] = result.streams
    first = timeline.time_to_first_token(stream)
    tokens = sum(step.tokens for step in stream.steps)
    within = f", the first after {first * 1000:.0f} ms" if first is not None else ""
    how = {True: "estimated: the server counts none", False: "as the server counts them"}
    yield Finding(
        "ok",
        f"workload {workload.name}: {counted(tokens, 'token')} generated{within} ({how[stream.generated_estimated]})",
    )
    wanted = f"wanted {workload.sequence_length} ({how[stream.prompt_estimated]})"
    yield Finding("ok", f"prompt: {stream.prompt_tokens} tokens, {wanted}")
    for key in ("bearer_token_env", "bearer_token_file"):
        if name := getattr(target, key):
            yield Finding("ok", f"the token of {key}: {name} is accepted")


def mends(target: Target, failure: Failure, server: "FoundServer | None") -> Iterator[str]:
    """What to change, by what the server is."""
    if server is not None and server.kind is None:
        yield f"this is {server.what}; look for the right port, or for a base path"
        return
    changes = list(_changes(target, server)) if server is not None else []
    if server is not None and changes:
        yield f"this is {server.what}: {'; '.join(changes)}"
    if failure.code in NOT_LET_IN or (server is not None and server.wants_token):
        key = next((key for key in ("bearer_token_env", "bearer_token_file") if getattr(target, key)), None)
        if key:
            yield f"the server does not accept the token of {key}: {getattr(target, key)}; put the right one there"
        elif target.kind == "http":
            yield "the server wants a token: set bearer_token_env or bearer_token_file"
    elif server is not None and server.models and target.model not in (None, *server.models):
        yield f"set model: one of {', '.join(server.models[:10])}"


def _changes(target: Target, server: "FoundServer") -> Iterator[str]:
    """The keys to change, so that the target says what the server is."""
    if target.kind != server.kind:
        yield f"set kind: {server.kind}"
    ours = target.address.rstrip("/")
    if ours != server.address.rstrip("/"):
        rest = ours.removeprefix(server.address) if ours.startswith(server.address) else ""
        yield f"set address: {server.address}" + (f" (leave {rest} out)" if rest else "")
    if server.apis and target.api not in server.apis:
        yield f"set api: {' or '.join(server.apis)}"
    if server.kind not in ("http", "shard") and server.secure and target.tls is None:
        yield "set tls: {}"
    if not server.secure and target.tls is not None:
        yield "remove tls"
