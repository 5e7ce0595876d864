"""Whether a server has ended after a call of ours that failed."""

import time

from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Series
from exporter.plan.targets import Facts
from exporter.probes.interface import Prober
from exporter.probes.quarantine import END_SECONDS, Death, Quarantine

# How often it is looked, within END_SECONDS.
END_LOOKS = 4


def has_ended(prober: Prober, before: Facts) -> bool:
    """Whether the server is gone or another one after a call that failed: a server that ends needs a moment for it."""
    for _ in range(END_LOOKS):
        try:
            if prober.connect(END_SECONDS).connection != before.connection:
                return True
        except Failure as failure:
            return failure.outcome is Outcome.UNREACHABLE
        time.sleep(END_SECONDS / END_LOOKS)
    return False


def ended_by(
    failure: Failure, prober: Prober, quarantine: Quarantine, series: Series, workload: Workload, facts: Facts
) -> bool:
    """Whether the server ended during the probe that failed. Then the quarantine knows it, and the prober writes it
    down when it is closed.
    """
    if not failure.may_have_ended_server or not has_ended(prober, facts):
        return False
    quarantine.suspect(
        Death.of(series, workload, facts, time.time(), failure.detail), facts.connection, time.perf_counter()
    )
    return quarantine.server_is_gone()
