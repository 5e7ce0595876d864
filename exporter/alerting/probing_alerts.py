"""The alerts on targets and on the probing itself: down, not probed, skipped, late. Pure."""

from collections.abc import Iterator
from typing import Any

from exporter.alerting import already_paged, promql, startup_grace
from exporter.alerting.burn_rates import between_probes
from exporter.alerting.observed import NO_FAILURES, Observed
from exporter.alerting.rule_types import BATCH_SIZE, INSTANCE, JOB, TARGET, WORKLOAD, Options, Rule, group
from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import NOT_JUDGED, Outcome

STALE_INTERVALS = 3
SKIPPED_SHARE = 0.25
# Reasons to skip a probe that do not mean a failure of the target. `backoff` does: it follows failures.
HARMLESS_SKIPS = "busy|duty_cycle|unsafe"
# Outcomes that explain why no probe succeeds. `disturbed` does not: such an attempt says nothing about the server.
EXPLAINED = "|".join(sorted(NOT_JUDGED - {Outcome.DISTURBED}))
# The share of attempts that may be disturbed.
DISTURBED_SHARE = 0.5
# The share of starts that may be later than this: seconds, an edge of the histogram's buckets.
LATE_SECONDS, LATE_SHARE = 0.1, 0.05
SERIES = ("target", "workload", "batch_size")


def rules(settings: Settings, options: Options) -> dict[str, Any]:
    found = (
        *startup_grace.recordings(options),
        *_absent(settings, options),
        _exporter_down(options),
        _target_down(options),
        *(rule for workload in settings.workloads for rule in _stale(workload, settings, options)),
        _refused(settings, options),
        _disturbed(settings, options),
        *_quarantined(settings, options),
        _skipped(settings, options),
        _late(settings, options),
        _reload_failed(options),
    )
    return group("tgi-probe-guards", found)


def _silent_exporters(options: Options) -> str:
    """Scrape targets that do not answer and were a tgi-probe in the last day, whatever their job is called."""
    same, before = options.on() or "job", promql.duration(options.days(1))
    return f"up == 0\nand on ({same})\ncount by ({same}) (last_over_time(tgi_probe_build_info[{before}]))"


def _absent(settings: Settings, options: Options) -> Iterator[Rule]:
    silent = _silent_exporters(options).replace("\n", " ")
    which = f"{{{{ range query `{silent}` }}}} tgi-probe at {{{{ .Labels.instance }}}} does not answer.{{{{ end }}}}"
    for target in settings.targets:
        yield options.alert(
            "TgiProbeAbsent",
            f'absent(tgi_probe_target_up{{target="{target.name}"}})',
            "page",
            summary=f"Prometheus has no data about {target.name}",
            description=(
                f"Prometheus has had no data about target {target.name} for {promql.duration(options.minutes(5))}."
                f"{which} Check that tgi-probe runs, that Prometheus scrapes it, and that its configuration has this "
                "target. Until then no SLO of this target can alert."
            ),
            wait=options.minutes(5),
            labels={"target": target.name},  # absent() has it anyway; by it promtool tells these alerts apart
        )


def _exporter_down(options: Options) -> Rule:
    return options.alert(
        "TgiProbeExporterDown",
        _silent_exporters(options),
        "ticket",
        summary=f"tgi-probe at {INSTANCE} does not answer Prometheus",
        description=(
            f"Scrapes of {INSTANCE} (job {JOB}) have failed for {promql.duration(options.minutes(5))}. Check that it "
            "runs and that Prometheus reaches it. Until then no SLO of its targets can alert."
        ),
        wait=options.minutes(5),
    )


def _target_down(options: Options) -> Rule:
    """With labels dropped: when no daemon reaches the target. It has the labels by which Alertmanager inhibits the
    other alerts of the target.
    """
    observed = Observed(options, options.minutes(5), ("target",))
    up = "tgi_probe_target_up"
    up = f"max without ({options.dropped()}) ({up})" if options.drop_labels else up
    return options.alert(
        already_paged.DOWN,
        f"{up} == 0{startup_grace.unless_starting(options)}",
        "page",
        summary=f"{TARGET} is not reachable or rejects every probe",
        description=(
            f"{TARGET} has not been reachable, or has rejected every probe, for {promql.duration(options.minutes(2))} "
            f"(tgi_probe_target_up is 0). In the last {observed.span}:{observed.probes()}. "
            "The log of tgi-probe has the error. Check that the server runs."
        ),
        wait=options.minutes(2),
    )


def stale_after(workload: Workload, settings: Settings, options: Options) -> float:
    """Seconds without a success: three intervals, or a probe of `timeout` and the pause of max_duty_cycle after it."""
    wait = stale_wait(options)
    slowest = workload.timeout / settings.max_duty_cycle
    if interval := between_probes(workload):
        return max(STALE_INTERVALS * interval, slowest - wait, 4 * options.scrape_interval)
    return max(STALE_INTERVALS * slowest, options.minutes(5))


def stale_wait(options: Options) -> float:
    """Seconds from then on until the page."""
    return options.minutes(2)


def _unexplained(workload: Workload, settings: Settings, options: Options) -> str:
    """An expression for the batch sizes without a success that skips or refusals do not explain. They explain it only
    where no probe failed: when a server hangs, there are failures and skips.
    """
    # The wait, and one more for the back-off between two failures.
    window = promql.duration(stale_after(workload, settings, options) + 2 * stale_wait(options))
    own = f'workload="{workload.name}"'
    newest = f"tgi_probe_last_success_timestamp_seconds{{{own}}}"
    same = options.on("target", "batch_size")
    skips = f'increase(tgi_probe_skipped_total{{{own},reason=~"{HARMLESS_SKIPS}"}}[{window}]) > 0'
    refusals = f'increase(tgi_probe_attempts_total{{{own},outcome=~"{EXPLAINED}"}}[{window}]) > 0'
    failures = f'increase(tgi_probe_attempts_total{{{own},outcome!~"{NO_FAILURES}"}}[{window}]) > 0'
    return f"{newest}\n  unless on ({same}) ((\n    {skips}\n    or {refusals}\n  ) unless on ({same}) {failures})"


def _stale(workload: Workload, settings: Settings, options: Options) -> Iterator[Rule]:
    """A page when no batch size has had a success, a ticket for a single one. A target that is new to the daemon gets
    the same time for its first success.

    It is no page where skips or refusals explain it: the target is busy, or probing is not known to be safe.
    """
    after = stale_after(workload, settings, options)
    limit, wait = promql.number(after), stale_wait(options)
    newest = f'tgi_probe_last_success_timestamp_seconds{{workload="{workload.name}"}}'
    same = options.on()
    grace = f"and on ({same}) time() - tgi_probe_config_last_reload_success_timestamp_seconds > {limit}"
    not_starting = startup_grace.unless_starting(options)
    # A target that is reached again gets the same time for its first success as a new one.
    not_down = already_paged.unless_paged(options, after, f'alertname="{already_paged.DOWN}"')
    since = "{{ if gt $value 1e9 }}since the daemon started{{ else }}for {{ $value | humanizeDuration }}{{ end }}"
    unexplained = f"and on ({options.on('target')}) (\n  {_unexplained(workload, settings, options)}\n)"
    interval = between_probes(workload)
    due = f"One is due every {promql.duration(interval)}." if interval else "They are sent as fast as it answers."
    window = after + 2 * wait
    every_size, one_size = Observed(options, window, ("target", "workload")), Observed(options, window, SERIES)
    yield options.alert(
        already_paged.STALE,
        f"time() - max without ({options.dropped('batch_size')}) ({newest}) > {limit}\n{grace}\n{unexplained}"
        f"{not_starting}{not_down}",
        "page",
        summary=f"{TARGET}: no probe of workload {workload.name} has succeeded {since}",
        description=(
            f"Of workload {workload.name} on {TARGET} no probe of any batch size has succeeded {since} "
            f"({promql.duration(after)} may pass). {due} "
            f"In the last {every_size.span}:{every_size.probes()}."
        ),
        wait=wait,
    )
    each = f"max without ({options.dropped()}) ({newest})" if options.drop_labels else newest
    yield options.alert(
        "TgiProbeBatchSizeStale",
        f"time() - {each} > {limit}\n{grace}{not_starting}",
        "ticket",
        summary=f"{TARGET}: no probe of batch size {BATCH_SIZE} of workload {workload.name} has succeeded {since}",
        description=(
            f"Of workload {workload.name} on {TARGET} no probe of batch size {BATCH_SIZE} has succeeded {since} "
            f"({promql.duration(after)} may pass). {due} "
            f"In the last {one_size.span}:{one_size.probes()}."
        ),
        # By then, a ticket that says why (skipped, refused, quarantined) or a page has come, which holds this one back.
        wait=options.hours(1),
    )


def _window(settings: Settings, least: float, intervals: int) -> float:
    """Long enough for some probes of every workload."""
    return max(least, intervals * max((between_probes(workload) for workload in settings.workloads), default=0.0))


def _refused(settings: Settings, options: Options) -> Rule:
    window = promql.duration(_window(settings, options.minutes(15), 3))
    dropped = options.dropped("batch_size", "outcome", "code")
    return options.alert(
        "TgiProbeRefused",
        f'sum without ({dropped}) (increase(tgi_probe_attempts_total{{outcome="refused"}}[{window}])) > 0',
        "ticket",
        summary=f"tgi-probe refuses to send workload {WORKLOAD} to {TARGET}",
        description=(
            f'{{{{ printf "%.0f" $value }}}} probes of workload {WORKLOAD} in the last {window} were not sent, because '
            f"probing {TARGET} is not known to be safe, or it cannot take prompts of that length. The log of tgi-probe "
            "says which, and what to set. Refused probes are not judged, so no SLO of this workload can alert."
        ),
        wait=options.minutes(5),
    )


def _disturbed(settings: Settings, options: Options) -> Rule:
    window = promql.duration(_window(settings, options.minutes(15), 10))
    dropped = options.dropped("workload", "batch_size", "outcome", "code")

    def attempts(matcher: str) -> str:
        return f"sum without ({dropped}) (increase(tgi_probe_attempts_total{matcher}[{window}]))"

    disturbed = f'{{outcome="{Outcome.DISTURBED}"}}'
    return options.alert(
        "TgiProbeDisturbed",
        f"{attempts(disturbed)}\n/\n({attempts('')} > 0)\n> {DISTURBED_SHARE:g}",
        "ticket",
        summary=f"tgi-probe was stopped or lacked CPU during most probes of {TARGET}",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the probes of {TARGET} in the last {window} were disturbed "
            f"({promql.percent(DISTURBED_SHARE)} may be): the process or its machine was stopped, or lacked CPU, while "
            "they ran. Give tgi-probe more CPU. Disturbed probes are not judged, so the SLOs have little data."
        ),
        wait=options.minutes(15),
    )


def _quarantined(settings: Settings, options: Options) -> Iterator[Rule]:
    """For shards only: a router rejects what is too large for its server."""
    if all(target.kind != "shard" for target in settings.targets):
        return
    yield options.alert(
        "TgiProbeQuarantined",
        f"sum without ({options.dropped('batch_size')}) (tgi_probe_quarantined) > 0",
        "ticket",
        summary=f"{TARGET} ended during a probe: workload {WORKLOAD} is not sent to it as configured",
        description=(
            f"Batch sizes of workload {WORKLOAD} that are not sent to {TARGET}: {{{{ $value | humanize }}}}, because "
            "it ended during a probe of such a batch or of a smaller one. The log of tgi-probe says which and when. "
            f"They are not measured, and not judged by an SLO, until one of {', '.join(Target.LIMITS)} "
            "of the target is changed. Set it to what the server can take."
        ),
        wait=options.minutes(1),
    )


def _skipped(settings: Settings, options: Options) -> Rule:
    """Without `backoff`, which follows failures: those have alerts of their own."""
    seconds = _window(settings, options.hours(1), 10)
    window = promql.duration(seconds)
    skips = f'increase(tgi_probe_skipped_total{{reason!="backoff"}}[{window}])'
    skipped = f"sum without ({options.dropped('reason')}) ({skips})"
    attempted = f"sum without ({options.dropped('outcome', 'code')}) (increase(tgi_probe_attempts_total[{window}]))"
    return options.alert(
        "TgiProbeSkipped",
        f"{skipped}\n/\n(\n  {skipped}\n  + {attempted}\n  > 0\n)\n> {SKIPPED_SHARE:g}",
        "ticket",
        summary=f"{TARGET}: too many probes of batch size {BATCH_SIZE} are skipped",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the probes of workload {WORKLOAD}, batch size {BATCH_SIZE}, "
            f"that were due in the last {window} were skipped ({promql.percent(SKIPPED_SHARE)} may be), so the SLOs "
            f"have less data than they need:{Observed(options, seconds, SERIES).skipped()}. "
            "Probe less often, with fewer batch sizes or shorter answers."
        ),
        wait=options.minutes(15),
    )


def _late(settings: Settings, options: Options) -> Rule:
    window = promql.duration(_window(settings, options.minutes(15), 10))
    lateness = "tgi_probe_schedule_lateness_seconds"
    buckets = f'sum without ({options.dropped("le")}) (increase({lateness}_bucket{{le="%s"}}[{window}]))'
    started, on_time = buckets % "+Inf", buckets % f"{LATE_SECONDS:g}"
    native = f"sum without ({options.dropped()}) (increase({lateness}[{window}]))"
    number, share = f"histogram_count({native})", f"histogram_fraction({LATE_SECONDS:g}, +Inf, {native})"
    return options.alert(
        "TgiProbeLate",
        f"({share}\n  * {number} > 1.5)\n/\n{number}\n> {LATE_SHARE:g}\n"
        f"or\n({started}\n  - {on_time} > 1.5)\n/\n{started}\n> {LATE_SHARE:g}",
        "ticket",
        summary=f"tgi-probe starts probes of {TARGET} late",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the probes of {TARGET} in the last {window} were started "
            f"more than {promql.duration(LATE_SECONDS)} late ({promql.percent(LATE_SHARE)} may be), so a part of the "
            "latencies may be tgi-probe's own. Check whether it lacks CPU: give it more, or fewer targets."
        ),
        wait=options.minutes(15),
    )


def _reload_failed(options: Options) -> Rule:
    return options.alert(
        "TgiProbeReloadFailed",
        "tgi_probe_config_last_reload_successful == 0",
        "ticket",
        summary=f"tgi-probe at {INSTANCE} refused its new configuration",
        description=(
            "The newest reload failed. The configuration from before has stayed in force for "
            f"{promql.duration(options.minutes(5))}. A restart would fail. The log of tgi-probe names each error; "
            "correct them and reload."
        ),
        wait=options.minutes(5),
    )
