"""What a reload does to series that were already counting."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from exporter.config.settings import Settings
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, Step, Stream
from exporter.plan.targets import plans


def settings(batch_sizes: list[int], labels: dict[str, str] | None = None) -> Settings:
    return Settings.model_validate(
        {
            "targets": [
                {"name": name, "address": f"unix://{Path('/') / name}", "labels": labels or {}} for name in "ab"
            ],
            "workloads": [{"name": "w", "batch_sizes": batch_sizes}],
        }
    )


def counting(before: Settings) -> Metrics:
    metrics = Metrics(layout(before))
    metrics.configure(before)
    for plan in plans(before).values():
        metrics.announce(plan)
        for series, _ in plan.series():
            stream = Stream(series.batch_size, 10, 0.0, 0.1, (Step(0.0, 0.1, series.batch_size),))
            metrics.record(Observation(series, 0.0, 0.0, 0.1, Outcome.OK, "OK", streams=(stream,)))
    return metrics


def attempts(metrics: Metrics, series: Series) -> float | None:
    labels = {"target": series.target, "workload": series.workload, "batch_size": str(series.batch_size)}
    return metrics.registry.get_sample_value("tgi_probe_attempts_total", labels | {"outcome": "ok", "code": "OK"})


def test_a_changed_target_goes_on_counting_where_it_still_has_the_series() -> None:
    before = settings([1, 2])
    metrics = counting(before)
    after = settings([2, 4])
    metrics.narrow(plans(after)["a"], plans(before)["a"])
    metrics.announce(plans(after)["a"])
    assert [attempts(metrics, Series("a", "w", size)) for size in (1, 2, 4)] == [None, 1, 0]
    assert [attempts(metrics, Series("b", "w", size)) for size in (1, 2)] == [1, 1]


def test_a_target_with_other_labels_starts_again() -> None:
    before = settings([1])
    metrics = counting(before)
    after = settings([1], {"zone": "x"})
    metrics.narrow(plans(after)["a"], plans(before)["a"])
    metrics.announce(plans(after)["a"])
    labels = {"target": "a", "workload": "w", "batch_size": "1", "outcome": "ok", "code": "OK", "zone": "x"}
    assert metrics.registry.get_sample_value("tgi_probe_attempts_total", labels) == 0
    assert attempts(metrics, Series("a", "w", 1)) is None


def test_corrections_and_estimates_are_recorded_by_workload_and_leave_with_it() -> None:
    before = settings([1])
    metrics = counting(before)
    series = Series("a", "w", 1)
    stream = Stream(1, 10, 0.0, 0.1, (Step(0.0, 0.1, 1),), prompt_estimated=True)
    metrics.record(Observation(series, 0.0, 0.0, 0.1, Outcome.OK, "OK", streams=(stream,), corrections=3))
    metrics.record(Observation(series, 0.0, 0.0, 0.1, Outcome.REFUSED, "REFUSED", corrections=2))

    def read(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"target": "a", "workload": "w", **labels})

    assert read("tgi_probe_correction_requests_total") == 5
    assert read("tgi_probe_token_counts_estimated", count="prompt") == 1
    plan = plans(before)["a"]
    metrics.narrow(replace(plan, workloads=()), plan)
    assert read("tgi_probe_correction_requests_total") is None
    assert read("tgi_probe_token_counts_estimated", count="prompt") is None


def test_what_a_changed_target_keeps_is_asked_of_its_own_series_only() -> None:
    metrics = counting(settings([1, 2]))
    asked: list[str] = []

    def wanted(labels: Mapping[str, str]) -> bool:
        asked.append(labels["target"])
        return True

    metrics.families.success.keep(wanted, "a")
    metrics.families.success.keep(wanted, "of no series")
    assert asked == ["a", "a"]
