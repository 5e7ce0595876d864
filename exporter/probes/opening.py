"""One file per protocol. A probe is a function that returns facts; `open_prober` holds the one exhaustive `match`."""

from typing import TYPE_CHECKING, assert_never

from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.probes.interface import Background, OwnRequests, Prober
from exporter.probes.quarantine import Quarantine

if TYPE_CHECKING:  # a shard's sidecar has no HTTP libraries, and must not load them
    from exporter.probes.router.protocol import RouterProtocol


def open_prober(
    target: Target, own_requests: OwnRequests | None = None, quarantine: Quarantine | None = None
) -> Prober:
    """The prober for a target's kind. Nothing is connected yet; each protocol is imported only where it is used."""
    match target.kind:
        case "shard":
            from exporter.probes.shard.prober import ShardProber

            return ShardProber(target, quarantine=quarantine)
        case "fmaas" | "http":
            from exporter.probes.router.prober import StreamProber

            return StreamProber(target, _protocol(target), own_requests)
        case _:
            assert_never(target.kind)


def open_background(target: Target, workload: Workload, own_requests: OwnRequests | None = None) -> Background:
    """The client for a background load; the settings allow none on a shard. Nothing is connected yet."""
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
        case "shard":
            raise ValueError("a shard has no router protocol")
        case _:
            assert_never(target.kind)
