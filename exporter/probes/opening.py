"""Opens the prober for a target: the one place with an exhaustive `match` on kinds."""

from typing import TYPE_CHECKING, assert_never

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.probes.interface import Background, OwnRequests, Prober
from exporter.probes.quarantine import Quarantine

if TYPE_CHECKING:  # loads the HTTP libraries, which a shard's sidecar does not need
    from exporter.probes.router.protocol import RouterProtocol


def open_prober(
    target: Target, own_requests: OwnRequests | None = None, quarantine: Quarantine | None = None
) -> Prober:
    """The prober for a target's kind, not yet connected. It imports only that kind's libraries."""
    match target.kind:
        case "shard":
            from exporter.probes.shard.prober import ShardProber

            return ShardProber(target, quarantine=quarantine)
        case "fmaas" | "http" | "vllm" | "sglang":
            from exporter.probes.router.prober import StreamProber

            return StreamProber(target, _protocol(target), own_requests)
        case _:
            assert_never(target.kind)


def open_background(target: Target, workload: Workload, own_requests: OwnRequests | None = None) -> Background:
    """The client of a background load, not yet connected. The settings allow no load on a shard."""
    from exporter.probes.router.background import StreamBackground

    return StreamBackground(target, workload, _protocol(target), own_requests)


def _protocol(target: Target) -> "RouterProtocol":
    match target.kind:
        case "fmaas":
            from exporter.probes.router.fmaas_protocol import FmaasProtocol

            return FmaasProtocol(target)
        case "http":
            from exporter.probes.router.http_protocol import HttpProtocol

            return HttpProtocol(target)
        case "vllm" | "sglang":
            from exporter.probes.router.engine_protocol import EngineProtocol

            return EngineProtocol(target)
        case "shard":
            raise ValueError("a shard has no router protocol")
        case _:
            assert_never(target.kind)
