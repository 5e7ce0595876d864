"""The parts of a rule file as it is written: recordings, alerts, groups; and the options of `tgi-probe rules`. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.alerting import promql
from exporter.alerting.burn_rates import DAY, HOUR, MINUTE

# Labels of the alert, as its texts name them.
TARGET, WORKLOAD, BATCH_SIZE = "{{ $labels.target }}", "{{ $labels.workload }}", "{{ $labels.batch_size }}"
INSTANCE, JOB = "{{ $labels.instance }}", "{{ $labels.job }}"
NO_LABELS: Mapping[str, str] = {}
Rule = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `tgi-probe rules`. Times in seconds; `time_scale` shortens all windows and waits."""

    scrape_interval: float = 15.0
    time_scale: float = 1.0
    drop_labels: tuple[str, ...] = ()
    # Address of docs/runbooks.md; without one, alerts have no link.
    runbooks: str = ""
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

    def alert(
        self,
        name: str,
        expr: str,
        severity: str,
        *,
        summary: str,
        description: str,
        wait: float = 0.0,
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Rule:
        """`wait`: seconds for which it must hold before it fires. `severity`: page or ticket, a label."""
        return {
            "alert": name,
            "expr": expr,
            **({"for": promql.duration(wait)} if wait else {}),
            "labels": {"severity": severity, **labels},
            "annotations": {
                "summary": summary,
                "description": description,
                **({"runbook_url": f"{self.runbooks}#{name.lower()}"} if self.runbooks else {}),
            },
        }


def recording(record: str, expr: str, labels: Mapping[str, str] = NO_LABELS) -> Rule:
    return {"record": record, "expr": expr, **({"labels": dict(labels)} if labels else {})}


def group(name: str, rules: Iterable[Rule], interval: float | None = None) -> dict[str, Any]:
    """Rules evaluated together and in order; `interval` in seconds, None = as Prometheus is set up."""
    return {"name": name, **({"interval": promql.duration(interval)} if interval else {}), "rules": [*rules]}
