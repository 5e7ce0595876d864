"""Who is probed with what, and what may be sent to whom. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from exporter.config import notation
from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import LONGEST_DETAIL, LONGEST_FACT, Series, legible

# What a v2 shard allocates in, and the largest of the sizes in use where a shard does not say: round up by that.
BLOCK_SIZES = {"generate.v2": 16}
LARGEST_BLOCK_SIZE = 256
NEEDS_LIMIT = (
    "max_batch_tokens to the number in TGI's log line 'Setting max batch total tokens to', which is also "
    "tgi_batch_max_total_tokens in its router's /metrics"
)
EXCLUSIVE = "set kv_cache: exclusive and max_batch_tokens if no router serves users here (not even in between)"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything one target's runner needs to know. Two equal plans mean that a reload can leave the runner alone."""

    target: Target
    workloads: tuple[Workload, ...]
    max_duty_cycle: float

    @property
    def batches(self) -> "Plan":
        """The part that is probed in batches, one after the other."""
        return replace(self, workloads=tuple(workload for workload in self.workloads if not workload.is_load))

    def only(self, workload: Workload) -> "Plan":
        return replace(self, workloads=(workload,))

    @property
    def loads(self) -> tuple[Workload, ...]:
        """The part that runs beside them, request by request."""
        return tuple(workload for workload in self.workloads if workload.is_load)

    def series(self) -> Iterator[tuple[Series, Workload]]:
        for workload in self.workloads:
            for batch_size in workload.batch_sizes:
                yield Series(self.target.name, workload.name, batch_size), workload


@dataclass(frozen=True, slots=True)
class Facts:
    """What a target says of itself. Empty text and None where it does not say; `ranks` counts the shards of the model.

    `connection` says nothing by itself: another value means that the server was away in between. Texts become label
    values of metrics: they are made `legible` here.

    `page` is what became of the request for these facts, which a server need not answer: read, refused (it has other
    words for it), or silent (no answer in time, or a gateway's that its server gives none). `advice` is what a person
    should do about that, if anything.
    """

    protocol: str
    ranks: int
    model: str = ""
    dtype: str = ""
    device: str = ""
    attention: str = ""
    requires_padding: bool = True
    block_size: int = 0
    speculate: int = 0
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_new_tokens: int | None = None
    connection: tuple[int, ...] = ()
    page: Literal["read", "refused", "silent"] = field(default="read", compare=False)
    advice: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("model", "dtype", "device", "attention"):
            object.__setattr__(self, name, legible(getattr(self, name), LONGEST_FACT))
        object.__setattr__(self, "advice", legible(self.advice, LONGEST_DETAIL))


def plans(settings: Settings) -> dict[str, Plan]:
    """One plan for each target that has at least one workload, by name, in the order of the file."""
    found = {}
    for target in settings.targets:
        workloads = tuple(w for w in settings.workloads if w.targets is None or target.name in w.targets)
        found[target.name] = Plan(target, workloads, settings.max_duty_cycle)
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """What a reload does, by name: `leaving` targets stop, `arriving` ones start; a changed one does both."""

    leaving: tuple[str, ...]
    arriving: tuple[str, ...]


def change(old: Mapping[str, Plan], new: Mapping[str, Plan]) -> Change:
    return Change(
        leaving=tuple(name for name, plan in old.items() if new.get(name) != plan),
        arriving=tuple(name for name, plan in new.items() if old.get(name) != plan),
    )


def refusal(target: Target, facts: Facts) -> str | None:
    """Why not one Prefill may be sent to this shard, with what to do about it; None when probing is safe.

    A paged shard would write the probe's keys and values over those of live requests, and ends when they do not fit. It
    does not say how much fits.
    """
    if facts.requires_padding:
        return None
    if target.kv_cache == "exclusive":
        if target.max_batch_tokens is not None:
            return None
        return f"a batch that does not fit into the KV cache of this paged shard would end it; set {NEEDS_LIMIT}"
    if target.kv_cache == "reserved_block":
        if facts.block_size > 0:
            return None
        return (
            f"kv_cache: reserved_block needs a shard that names its block size, and this one ({facts.protocol}) does "
            f"not; {EXCLUSIVE}, or probe the router"
        )
    reserved = "set kv_cache: reserved_block, which keeps probes in the one block that no router gives to users"
    return (
        "this shard keeps a paged KV cache, and a probe would overwrite the cache of live requests; "
        + (f"{reserved}; or {EXCLUSIVE}" if facts.block_size > 0 and facts.ranks == 1 else EXCLUSIVE)
        + "; or probe the router"
    )


def deadlock(target: Target, facts: Facts) -> str | None:
    """The danger of probing a shard of several ranks, with what to do about it; None where there is none, nothing is
    sent, or its operator has said that nobody else uses it.
    """
    if facts.ranks == 1 or target.kv_cache == "exclusive" or refusal(target, facts) is not None:
        return None
    return (
        f"target {target.name} computes on {facts.ranks} ranks: never probe it beside a router. Calls of two clients "
        "may reach them in different order, and they then wait for each other until they die; set kv_cache: exclusive "
        "if no router serves users here (not even in between), or probe the router"
    )


def block_size(facts: Facts) -> int:
    """Tokens in one block of a paged shard's KV cache."""
    return facts.block_size or BLOCK_SIZES.get(facts.protocol, LARGEST_BLOCK_SIZE)


def blocks(facts: Facts, workload: Workload) -> int:
    """Blocks that one request takes in a paged KV cache. The last token generated needs no place in it."""
    tokens = workload.sequence_length + workload.decode_length - 1 + facts.speculate
    return -(-tokens // block_size(facts))


def cache_tokens(facts: Facts, workload: Workload, batch_size: int) -> int:
    """Tokens of KV cache that a batch takes."""
    if facts.requires_padding:
        return batch_size * (workload.sequence_length + workload.decode_length)
    return batch_size * blocks(facts, workload) * block_size(facts)


def excess(target: Target, workload: Workload, batch_size: int, facts: Facts | None = None) -> str | None:
    """Why this batch would be too large for the target's limits; None when it is within them or none is set.

    A paged shard counts blocks, which is known once it has said its `facts`.
    """
    tokens = workload.sequence_length + workload.decode_length
    if target.max_total_tokens is not None and tokens > target.max_total_tokens:
        return f"sequence_length + decode_length is {tokens}, over max_total_tokens {target.max_total_tokens}"
    if target.max_batch_tokens is not None and batch_size * tokens > target.max_batch_tokens:
        total = batch_size * tokens
        limit = target.max_batch_tokens
        return f"batch_size x (sequence_length + decode_length) is {total}, over max_batch_tokens {limit}"
    prompts = batch_size * workload.sequence_length
    if target.max_prefill_tokens is not None and prompts > target.max_prefill_tokens:
        return f"batch_size x sequence_length is {prompts}, over max_prefill_tokens {target.max_prefill_tokens}"
    if facts is None or facts.requires_padding or target.max_batch_tokens is None or target.kv_cache != "exclusive":
        return None
    there, wanted = target.max_batch_tokens // block_size(facts), batch_size * blocks(facts, workload)
    if wanted > there:
        return (
            f"it needs {wanted} blocks of KV cache ({blocks(facts, workload)} for each request, of "
            f"{block_size(facts)} tokens), and max_batch_tokens {target.max_batch_tokens} is {there} blocks"
        )
    return None


def over_limits(facts: Facts, workload: Workload) -> str | None:
    """Why the server would reject this workload's requests, by the limits that it names itself; None when it would
    not.
    """
    tokens = workload.sequence_length + workload.decode_length
    for what, value, name, limit in (
        ("sequence_length", workload.sequence_length, "max_input_tokens", facts.max_input_tokens),
        ("decode_length", workload.decode_length, "max_new_tokens", facts.max_new_tokens),
        ("sequence_length + decode_length", tokens, "max_total_tokens", facts.max_total_tokens),
    ):
        if limit and value > limit:  # 0 is no limit
            return f"{what} is {value}, over the server's {name} {limit}; make it shorter"
    return None


def too_large(plans: Iterable[Plan], facts: Facts | None = None) -> list[str]:
    """A line for every series that will never be sent, because the target's limits in the configuration forbid it."""
    return [
        f"target {plan.target.name}, workload {workload.name}, batch size {series.batch_size} is never sent: {why}"
        for plan in plans
        for series, workload in plan.series()
        if (why := excess(plan.target, workload, series.batch_size, facts)) is not None
    ]


def without_limit(settings: Settings) -> list[str]:
    """A line for every shard that gets no probe if it turns out to be paged, for want of a limit."""
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


# What a fast server needs: a step of decoding, and prefill.
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
    """A line for every target whose bearer token goes over a network unencrypted."""
    return [
        f"target {target.name}: its bearer token goes unencrypted to {target.address}; use an address with https://"
        for target in settings.targets
        if (target.bearer_token_env is not None or target.bearer_token_file is not None)
        and notation.split_url(target.address).scheme == "http"
        and not notation.is_loopback(notation.split_url(target.address).hostname or "")
    ]
