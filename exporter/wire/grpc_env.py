"""Environment variables that gRPC's core reads when it is loaded. This module must not import grpc."""

import os

ENV_DEFAULTS = {
    # Our own messages say what gRPC would write to standard error.
    "GRPC_VERBOSITY": "NONE",
    # Without the event engine the calling thread polls for itself: a shard of one rank answers sooner, for less CPU
    # time (`python -m benchmarks interpreter`). Only the next call then notices the end of an idle connection: see
    # `ShardProber.connect`.
    "GRPC_EXPERIMENTS": "-event_engine_client",
}


def prepare() -> None:
    """Call it before the first import of grpc. Variables that an operator has set stay."""
    for name, value in ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
