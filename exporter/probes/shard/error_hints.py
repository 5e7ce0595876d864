"""Explains error messages of shards that a person would not understand."""

from exporter.observation import Failure, Outcome
from exporter.plan.targets import Facts
from exporter.probes.shard.channel import was_dropped

# Python's messages, which a shard passes on with INTERNAL.
NO_CACHE_YET = "list index out of range"
BEYOND_POSITIONS = "index out of range in self"


def connection_ended(failure: Failure) -> bool:
    """Whether a connection ended during a call."""
    return failure.code == "UNAVAILABLE" and was_dropped(failure.detail)


def explained(failure: Failure, facts: Facts, served_before: bool) -> Failure:
    """The failure, with its meaning and what to do. `served_before`: this server has answered a Prefill of ours."""
    if failure.code != "INTERNAL":
        return failure
    if NO_CACHE_YET in failure.detail and not facts.requires_padding and not served_before:
        mend = "the server has not been warmed up yet; its router does that at its start"
        return Failure(Outcome.NOT_READY, failure.code, f"{failure.detail}: {mend}")
    if BEYOND_POSITIONS in failure.detail:
        mend = (
            "sequence_length + decode_length is beyond the model's positions; make them shorter, and set "
            "max_total_tokens of the target to what the model can take"
        )
        may_have = failure.may_have_ended_server
        return Failure(failure.outcome, failure.code, f"{failure.detail}: {mend}", may_have_ended_server=may_have)
    return failure
