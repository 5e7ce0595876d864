"""One file per protocol. A probe is a function that returns facts; `open_prober` holds the one exhaustive `match`."""

from typing import assert_never

from exporter.prober import Prober
from exporter.settings import Target


def open_prober(target: Target) -> Prober:
    """The prober for a target's kind. Nothing is connected yet; each protocol is imported only where it is used."""
    match target.kind:
        case "shard":
            from exporter.probes.shard import ShardProber

            return ShardProber(target)
        case _:
            assert_never(target.kind)
