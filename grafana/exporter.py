"""Can I believe it? Whether probes started on time or were skipped, and whether the daemon has enough CPU."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, INSTANCE, TARGET, WORKLOAD, Row
from grafana.histograms import buckets
from grafana.panels import lines, numbers
from grafana.style import Panel, Query, Text, steps

UID = "tgi-probe-exporter"
LATENESS = "tgi_probe_schedule_lateness_seconds"
ATTEMPTS = "tgi_probe_attempts_total"
SKIPS = "tgi_probe_skipped_total"
OURS = 'instance=~"$instance"'
CHOSEN = f"{OURS}, {promql.CHOSEN}"
TARGETS = f'{OURS}, target=~"$target"'
# A start that is later than this is not on time.
LATE_SECONDS = 0.01


def verdicts() -> list[Panel]:
    due = (
        f"({promql.increase(ATTEMPTS, 'instance', where=CHOSEN)} + {promql.increase(SKIPS, 'instance', where=CHOSEN)})"
    )
    late = promql.quantile(0.99, LATENESS, where=TARGETS)
    return [
        numbers(
            Text(
                "Started late, p99",
                "Under 10 ms the latencies are the server's; above, the machine that runs tgi-probe is too busy.",
                "s",
            ),
            [Query(late)],
            by=steps((None, colours.GOOD), (LATE_SECONDS, colours.WARNING), (0.1, colours.BAD)),
            decimals=1,
        ),
        numbers(
            Text(
                "Probes skipped",
                "Share of the due probes that were not sent; above a few per cent there is less data than configured.",
                "percentunit",
            ),
            [Query(f"{promql.increase(SKIPS, 'instance', where=CHOSEN)} / ({due} > 0)", "{{instance}}")],
            by=steps((None, colours.GOOD), (0.05, colours.WARNING), (0.25, colours.BAD)),
            decimals=1,
        ),
    ]


def daemon() -> list[Panel]:
    return [
        numbers(
            Text(
                "Newest reload",
                "Refused: the daemon still runs with the configuration before; its log says why.",
                "none",
            ),
            [Query(f"min(tgi_probe_config_last_reload_successful{{{OURS}}})")],
            by=steps((None, colours.BAD), (1, colours.GOOD)),
            texts=((0, "refused"), (1, "taken")),
        ),
        numbers(
            Text(
                "Configuration since",
                "When the configuration in force was taken; compare it with your last change.",
                "dateTimeFromNow",
            ),
            [Query(f"1000 * max(tgi_probe_config_last_reload_success_timestamp_seconds{{{OURS}}})")],
        ),
        numbers(
            Text("Version", "The running version; there are several during a roll-out.", "none"),
            [
                Query(
                    f"count by (version, python_version) (tgi_probe_build_info{{{OURS}}})",
                    "{{version}} on Python {{python_version}}",
                )
            ],
            words_only=True,
        ),
        numbers(
            Text("Targets up", "Fewer than configured: see the Fleet dashboard for which one is down.", "none"),
            [
                Query(f"sum(tgi_probe_target_up{{{TARGETS}}})", "up"),
                Query(f"count(tgi_probe_target_up{{{TARGETS}}})", "of"),
            ],
            names=True,
        ),
        numbers(
            Text(
                "Running since",
                "A start that you did not expect is a crash or a deployment; counters began again then.",
                "dateTimeFromNow",
            ),
            [Query(f"1000 * max(process_start_time_seconds{{{OURS}}})")],
        ),
        numbers(
            Text(
                "Scrape time",
                "Above a second, give the daemon more CPU, or probe fewer batch sizes; Prometheus gives up at its "
                "scrape_timeout.",
                "s",
            ),
            [Query(f"max(scrape_duration_seconds{{{OURS}}})")],
            by=steps((None, colours.GOOD), (1, colours.WARNING), (5, colours.BAD)),
            decimals=2,
        ),
    ]


def punctual() -> list[Panel]:
    return [
        lines(
            Text(
                "How late probes start",
                "Above the dashed line at 10 ms, mistrust the latencies of that time: the daemon's machine was busy.",
                "s",
            ),
            [
                Query(promql.quantile(q, LATENESS, "", promql.RATE, TARGETS), name)
                for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
            ],
            colour=colours.QUANTILES,
            limits=[LATE_SECONDS],
        ),
        buckets(
            Text(
                "How late probes start, all of them",
                "One band at the bottom: the daemon is on time; single cells above: its machine paused.",
                "s",
            ),
            promql.buckets(LATENESS, promql.RATE, TARGETS),
            height=8,
        ),
        lines(
            Text(
                "Skipped probes by reason",
                "Per minute; busy: the interval is too short for this server; backoff: it fails; duty_cycle: it "
                "would take too much of it; unsafe: see the log.",
                "short",
            ),
            [Query(f"60 * {promql.rate(SKIPS, 'reason', where=CHOSEN)}", "{{reason}}")],
            width=8,
            colour=colours.REASONS,
        ),
        lines(
            Text(
                "Probes by outcome",
                "Per minute; latencies come from the ok probes: with few of them a p99 is a guess.",
                "short",
            ),
            [Query(f"60 * {promql.rate(ATTEMPTS, 'outcome', where=CHOSEN)}", "{{outcome}}")],
            width=8,
            colour=colours.OUTCOMES,
        ),
        lines(
            Text(
                "Probes in flight",
                "At most one for each target; a line that stays at 1 is a target whose probes hang or follow back to "
                "back.",
                "short",
            ),
            [Query(f"sum by (target) (avg_over_time(tgi_probe_inflight{{{TARGETS}}}[{promql.RATE}]))", "{{target}}")],
            width=8,
            most=1,
        ),
    ]


def resources() -> list[Panel]:
    return [
        lines(
            Text("CPU", "Share of one core; near 100 % the daemon itself delays what it measures.", "percentunit"),
            [Query(f"sum by (instance) (rate(process_cpu_seconds_total{{{OURS}}}[{promql.RATE}]))", "{{instance}}")],
            width=6,
            most=0.5,
        ),
        lines(
            Text("Memory", "Must be flat over days: growth is a leak, please report it.", "bytes"),
            [Query(f"sum by (instance) (process_resident_memory_bytes{{{OURS}}})", "{{instance}}")],
            width=6,
        ),
        lines(
            Text(
                "Open files",
                "Must be flat over days; at the limit of the system, connections are refused.",
                "short",
            ),
            [Query(f"sum by (instance) (process_open_fds{{{OURS}}})", "{{instance}}")],
            width=6,
        ),
        lines(
            Text("Scrape time", "What a scrape of /metrics costs; grows with targets times batch sizes.", "s"),
            [Query(f"max by (instance) (scrape_duration_seconds{{{OURS}}})", "{{instance}}")],
            width=6,
        ),
    ]


def served() -> list[Panel]:
    return [
        lines(
            Text(
                "Series served",
                "Samples in a scrape; jumps when targets, workloads or batch sizes come and go.",
                "short",
            ),
            [Query(f"max by (instance) (scrape_samples_scraped{{{OURS}}})", "{{instance}}")],
            width=8,
        ),
        lines(
            Text(
                "Reachable for Prometheus",
                "0: Prometheus could not scrape the daemon, so every panel has a gap there.",
                "short",
            ),
            [Query(f"min by (instance) (up{{{OURS}}})", "{{instance}}")],
            width=8,
            stepped=True,
            most=1,
        ),
        lines(
            Text(
                "Tokens sent and generated",
                "Per second: what the probing itself costs the servers; lower interval or batch sizes if it is too "
                "much.",
                "short",
            ),
            [
                Query(f"sum(rate(tgi_probe_prompt_tokens_total{{{CHOSEN}}}[{promql.RATE}]))", "prompt tokens"),
                Query(f"sum(rate(tgi_probe_generated_tokens_total{{{CHOSEN}}}[{promql.RATE}]))", "generated tokens"),
            ],
            width=8,
        ),
    ]


def build() -> Dashboard:
    return frame.build(
        UID,
        "Exporter",
        "Can I believe it?",
        [INSTANCE, TARGET, WORKLOAD, BATCH_SIZE],
        [
            Row("Verdict", [*verdicts(), *daemon()]),
            Row("On time and complete", punctual()),
            Row("The daemon itself", [*resources(), *served()]),
        ],
    )
