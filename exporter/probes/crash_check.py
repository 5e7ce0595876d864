"""Whether a server has ended after a call of ours that failed."""

import time

from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Series
from exporter.plan.targets import Facts
from exporter.probes.interface import Prober
from exporter.probes.quarantine import END_SECONDS, Death, Quarantine

# How often to look within END_SECONDS.
END_CHECKS = 4


def has_ended(prober: Prober, before: Facts) -> bool:
    """Whether the server is gone, or is another one than `before`. Waits for a server that needs a moment to end."""
    for _ in range(END_CHECKS):
        try:
            if prober.connect(END_SECONDS).connection != before.connection:
                return True
        except Failure as failure:
            return failure.outcome is Outcome.UNREACHABLE
        time.sleep(END_SECONDS / END_CHECKS)
    return False


def ended_by(
    failure: Failure, prober: Prober, quarantine: Quarantine, series: Series, workload: Workload, facts: Facts
) -> bool:
    """Whether the server ended during the failed probe. Then it is in the quarantine, which the prober writes down at
    `close`.
    """
    if not failure.may_have_ended_server or not has_ended(prober, facts):
        return False
    death = Death.of(series, workload, facts, time.time(), failure.detail)
    quarantine.suspect(death, facts.connection, time.perf_counter())
    return quarantine.server_is_gone()
