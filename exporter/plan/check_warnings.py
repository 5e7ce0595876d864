"""Warnings of `tgi-probe check` about targets and workloads. Pure."""

from exporter.config import notation
from exporter.config.secrets import is_secret
from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.plan.safety import NEEDS_LIMIT, excess
from exporter.plan.targets import plans


def without_limit(settings: Settings) -> list[str]:
    """A line for every shard that is not probed if it is paged, because a limit is missing."""
    return [
        f"target {target.name}: kv_cache: exclusive without max_batch_tokens: if this shard keeps a paged KV cache, as "
        f"nearly every one on a GPU does, no probe is sent to it; set {NEEDS_LIMIT}"
        for target in settings.targets
        if target.kv_cache == "exclusive" and target.max_batch_tokens is None
    ]


# A chat template alone often adds 20 to 40 tokens to a prompt.
SHORT_FOR_A_CHAT = 64


def too_short(settings: Settings) -> list[str]:
    """A line for every workload whose prompts a chat template may make longer than its sequence_length."""
    return [
        f"target {plan.target.name}, workload {workload.name}: sequence_length {workload.sequence_length} is short for "
        "api: chat, where it includes what the chat template adds, often 20 to 40 tokens; choose "
        f"{SHORT_FOR_A_CHAT} or more"
        for plan in plans(settings).values()
        if plan.target.kind == "http" and plan.target.api == "chat"
        for workload in plan.workloads
        if workload.sequence_length < SHORT_FOR_A_CHAT
    ]


# A fast server: seconds of one decoding step, and its prefill throughput.
SECONDS_PER_STEP, PROMPT_TOKENS_PER_SECOND = 0.008, 20_000
SLOWDOWN = 3


def too_frequent(settings: Settings) -> list[str]:
    """A line for every target whose probes would exceed `max_duty_cycle` when a fast server becomes a slow one."""
    found = []
    for plan in plans(settings).values():
        paced = [
            (workload, series.batch_size)
            for series, workload in plan.batches.series()
            if workload.interval and excess(plan.target, workload, series.batch_size) is None
        ]
        per_second = sum(1 / workload.interval for workload, _ in paced)
        share = sum(seconds_when_fast(workload, size) / workload.interval for workload, size in paced)
        over = SLOWDOWN * share / plan.max_duty_cycle
        if over > 1:
            found.append(
                f"target {plan.target.name}: its intervals, batch sizes and max_duty_cycle leave "
                f"{plan.max_duty_cycle / per_second:.2g} s for a probe on average. A fast server "
                f"({SECONDS_PER_STEP * 1000:g} ms per token) takes about {share / per_second:.2g} s; on one that is "
                f"{SLOWDOWN} times slower some probes will be skipped. Mend: intervals {over + 0.05:.1f} times as "
                "long, fewer batch sizes or shorter answers"
            )
    return found


def seconds_when_fast(workload: Workload, batch_size: int) -> float:
    prompts = batch_size * workload.sequence_length
    return workload.decode_length * SECONDS_PER_STEP + prompts / PROMPT_TOKENS_PER_SECOND


def sent_in_the_open(settings: Settings) -> list[str]:
    """A line for every bearer token and secret-like header that goes over a network unencrypted."""
    return [
        f"target {target.name}: its {what} goes unencrypted to {target.address}; {mend}"
        for target in settings.targets
        for what in _secrets_of(target)
        if (mend := _encrypt(target)) is not None
    ]


def _secrets_of(target: Target) -> list[str]:
    token = target.bearer_token_env is not None or target.bearer_token_file is not None
    return [*(["bearer token"] if token else []), *(f"header {name}" for name in target.headers if is_secret(name))]


def _encrypt(target: Target) -> str | None:
    """What to change; None where nothing is sent over a network, or it is encrypted."""
    if target.kind != "http":
        host = target.address.rpartition(":")[0].strip("[]")
        local = target.address.startswith("unix:") or notation.is_loopback(host)
        return None if target.tls is not None or local else "set tls: {}"
    url = notation.split_url(target.address)
    open_network = url.scheme == "http" and not notation.is_loopback(url.hostname or "")
    return "use an address with https://" if open_network else None
