"""The parts of a rule file: recordings, alerts, groups, and the options of `tgi-probe rules`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.alerting.burn_rates import DAY, HOUR, MINUTE

# Labels of the alert, as its texts name them.
TARGET, WORKLOAD, BATCH_SIZE = "{{ $labels.target }}", "{{ $labels.workload }}", "{{ $labels.batch_size }}"
INSTANCE, JOB = "{{ $labels.instance }}", "{{ $labels.job }}"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `tgi-probe rules`. Times in seconds; `time_scale` shortens all windows and waits."""

    scrape_interval: float = 15.0
    time_scale: float = 1.0
    drop_labels: tuple[str, ...] = ()
    runbooks: str = "docs/runbooks.md"
    regression_factor: float = 1.5
    # As long as the sidecar's startupProbe lets TGI load a model.
    startup_grace: float = 900.0

    def dropped(self, *labels: str) -> str:
        """A list for `sum without (…)`: these labels and those that the user drops."""
        return ", ".join((*labels, *self.drop_labels))

    def on(self, *labels: str) -> str:
        """A list for `on (…)`: these labels and those of the daemon."""
        return ", ".join((*labels, *(label for label in ("job", "instance") if label not in self.drop_labels)))

    @property
    def grace(self) -> float:
        return self.startup_grace * self.time_scale

    def minutes(self, count: float) -> float:
        return count * MINUTE * self.time_scale

    def hours(self, count: float) -> float:
        return count * HOUR * self.time_scale

    def days(self, count: float) -> float:
        return count * DAY * self.time_scale


@dataclass(frozen=True, slots=True)
class Recording:
    record: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """`wait`: seconds for which it must hold before it fires. `severity`: page or ticket, a label."""

    name: str
    expr: str
    severity: str
    summary: str
    description: str
    wait: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules evaluated together and in order; `interval` in seconds, None = as Prometheus is set up."""

    name: str
    rules: tuple[Recording | Alert, ...]
    interval: float | None = None
