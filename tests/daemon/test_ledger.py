"""Where runners report to, once their target has left."""

from exporter.config.settings import Settings
from exporter.daemon.ledger import Recorder
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series
from exporter.plan.targets import Facts, plans

LOAD = {"name": "load", "load": {"mode": "closed", "users": 3}}


def settings(*targets: str, load: bool = False) -> Settings:
    return Settings.model_validate(
        {
            "targets": [{"name": name, "kind": "http", "address": "http://h:1"} for name in targets],
            "workloads": [{"name": "w", "batch_sizes": [1]}, *([LOAD] if load else [])],
        }
    )


def recorder(of: Settings) -> Recorder:
    metrics = Metrics(layout(of))
    metrics.configure(of)
    for plan in plans(of).values():
        metrics.announce(plan)
    return Recorder(metrics, of)


def test_requests_of_a_load_that_is_gone_are_not_in_flight() -> None:
    before, after = settings("a", load=True), settings("a")
    found = recorder(before)
    found.load_inflight("a", "load", 3)  # its thread hangs, and is left behind
    found.metrics.narrow(plans(after)["a"], plans(before)["a"])
    found.forget("a")
    found.settings = after
    found.inflight("a", 1)
    found.inflight("a", 0)
    assert found.metrics.families.in_flight.labels("a").value == 0


def test_what_a_thread_reports_of_a_target_that_has_left_is_nowhere() -> None:
    found = recorder(settings("a", "b"))
    found.metrics.forget("a")
    found.forget("a")
    found.settings = settings("b")
    found.record(Observation(Series("a", "w", 1), 0, 0, 1, Outcome.UNREACHABLE, "UNAVAILABLE", "late"))
    found.up("a", Facts("generate.v3", 1))
    found.inflight("a", 1)
    status = found.scoreboard.status(found.settings, None, "0", False)
    assert status.results == ()
    assert not found._states
    assert not found._inflight
