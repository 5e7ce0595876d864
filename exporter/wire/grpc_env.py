"""What gRPC's core reads from the environment when it is loaded. No import of grpc in here: it must not come first."""

import os

ENV_DEFAULTS = {
    # It writes lines of its own to standard error; what they say, our own messages say too.
    "GRPC_VERBOSITY": "NONE",
    # Its event engine hands each call through a pool of threads. When the calling thread polls for itself, a shard of
    # one rank answers sooner, for less CPU time (measured: `python -m benchmarks interpreter`); with many ranks it is
    # all the same. What an idle connection brings, such as its end, is then read by the next call only: see
    # `ShardProber.connect`. A core that no longer knows the word ignores it.
    "GRPC_EXPERIMENTS": "-event_engine_client",
}


def prepare() -> None:
    """Before the first import of grpc. What an operator has set stays."""
    for name, value in ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
