"""What may be sent to a target: when probing is refused, and which batches are too large. Pure."""

from collections.abc import Iterable

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.plan.targets import Facts, Plan

# Tokens per block of a v2 shard, which does not name it, and the largest size in use for other shards.
BLOCK_SIZES = {"generate.v2": 16}
LARGEST_BLOCK_SIZE = 256
NEEDS_LIMIT = (
    "max_batch_tokens to the number in TGI's log line 'Setting max batch total tokens to', which is also "
    "tgi_batch_max_total_tokens in its router's /metrics"
)
EXCLUSIVE = "set kv_cache: exclusive and max_batch_tokens if no router serves users here (not even in between)"


def refusal(target: Target, facts: Facts) -> str | None:
    """Why no Prefill may be sent to this shard, and what to do about it; None when probing is safe.

    A paged shard writes a probe's keys and values over those of live requests, and ends when they do not fit. It does
    not tell the size of its cache.
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
    """A warning about probing a shard of several ranks, with what to do about it; None where it has one rank, nothing
    is sent, or its operator has said that nobody else uses it.
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
    """Blocks that one request takes in a paged KV cache, which does not store the last generated token."""
    tokens = workload.sequence_length + workload.decode_length - 1 + facts.speculate
    return -(-tokens // block_size(facts))


def cache_tokens(facts: Facts, workload: Workload, batch_size: int) -> int:
    """Tokens of KV cache that a batch takes."""
    if facts.requires_padding:
        return batch_size * (workload.sequence_length + workload.decode_length)
    return batch_size * blocks(facts, workload) * block_size(facts)


def excess(target: Target, workload: Workload, batch_size: int, facts: Facts | None = None) -> str | None:
    """Why this batch is too large for the target's limits; None when it is not, or none is set.

    For a paged shard the limit counts blocks, which needs its `facts`.
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
    """Why the server would reject this workload's requests, by the limits that it names; None when it would not."""
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
    """A line for every series that is never sent because of the target's limits in the configuration."""
    return [
        f"target {plan.target.name}, workload {workload.name}, batch size {series.batch_size} is never sent: {why}"
        for plan in plans
        for series, workload in plan.series()
        if (why := excess(plan.target, workload, series.batch_size, facts)) is not None
    ]
