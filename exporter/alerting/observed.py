"""What was observed, for the texts of alerts: templates whose queries Prometheus runs when it sends the alert. Pure."""

from dataclasses import dataclass

from exporter.alerting import promql
from exporter.alerting.rule_types import Options
from exporter.observation import NOT_JUDGED, Outcome, SkipReason

UNJUDGED = "|".join(sorted(NOT_JUDGED))
# Outcomes that are no failure.
NO_FAILURES = f"{Outcome.OK}|{UNJUDGED}"
SKIP_TEXTS = {
    SkipReason.BUSY: "the target was busy",
    SkipReason.DUTY_CYCLE: "others had used up max_duty_cycle",
    SkipReason.BACKOFF: "others had failed before",
    SkipReason.UNSAFE: "they exceed its limits",
}


@dataclass(frozen=True, slots=True)
class Observed:
    """The probes that an alert is about, in the last `window` seconds.

    They have the alert's values of `labels` and of the daemon's labels, and they fit the `matchers`.
    """

    options: Options
    window: float
    labels: tuple[str, ...]
    matchers: str = ""

    @property
    def span(self) -> str:
        return promql.duration(self.window)

    def selector(self, metric: str, matchers: str = "") -> str:
        """Only for `query`, which puts in the values of the alert's labels."""
        own = ",".join(f"{label}=%[{number}]q" for number, label in enumerate(self._own(), 1))
        return f"{metric}{{{','.join(part for part in (own, self.matchers, matchers) if part)}}}"

    def increase(self, counter: str, matchers: str = "") -> str:
        return f"increase({self.selector(counter, matchers)}[{self.span}])"

    def query(self, expr: str) -> str:
        """A query inside a template."""
        return f"query (printf `{expr}` {' '.join(f'$labels.{label}' for label in self._own())})"

    def number(self, expr: str) -> str:
        """The value of a query, as a whole number."""
        return f'{{{{ with {self.query(expr)} }}}}{{{{ . | first | value | printf "%.0f" }}}}{{{{ end }}}}'

    def _own(self) -> tuple[str, ...]:
        return (*self.labels, *(label for label in ("job", "instance") if label not in self.options.drop_labels))

    def probes(self) -> str:
        """How many ended with each outcome, and how many were skipped for which reason; without a full stop."""
        return (
            f"{{{{ range {self.query(self._counted(promql.ATTEMPTS, 'outcome'))} }}}} "
            '{{ printf "%.0f" .Value }} ended as {{ .Labels.outcome }};{{ else }} none was started;{{ end }}'
            f"{self.skipped()}"
        )

    def skipped(self) -> str:
        reasons = "{{ else ".join(
            f'if eq .Labels.reason "{reason}" }}}}{words}' for reason, words in SKIP_TEXTS.items()
        )
        skips = self.query(self._counted("tgi_probe_skipped_total", "reason"))
        return (
            f"{{{{ range $i, $_ := {skips} }}}}{{{{ if $i }}}},{{{{ end }}}} "
            f'{{{{ printf "%.0f" .Value }}}} were skipped because {{{{ {reasons}{{{{ end }}}}'
            "{{ else }} none was skipped{{ end }}"
        )

    def _counted(self, counter: str, by: str) -> str:
        """Largest first."""
        return f"sort_desc(sum by ({by}) ({self.increase(counter)}) > 0.5)"


def slow_requests(slo: str, workload: str, window: float, options: Options) -> str:
    """The number of bad requests in probes that succeeded: all bad ones less those in failed probes, whose share of the
    requests is their share of the probes.
    """
    span = promql.duration(window)

    def increase(counter: str, matchers: str, *dropped: str) -> str:
        return f"sum without ({options.dropped(*dropped)}) (increase({counter}{{{matchers}}}[{span}]))"

    def requests(matchers: str) -> str:
        return increase(promql.REQUESTS, f'slo="{slo}"{matchers}', "slo", "verdict")

    def probes(but: str) -> str:
        return increase(promql.ATTEMPTS, f'workload="{workload}",outcome!~"{but}"', "outcome", "code")

    bad = requests(',verdict="bad"')
    return (
        f"sum without (workload, batch_size) (\n  {bad}\n  - {requests('')}\n"
        f"  * {probes(NO_FAILURES)}\n  / ({probes(UNJUDGED)} > 0)\n)"
    )
