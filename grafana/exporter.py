"""Can I believe it? Whether probes started on time or were skipped, and whether the daemon has enough CPU."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, INSTANCE, TARGET, WORKLOAD, Row
from grafana.panels import lines, numbers
from grafana.style import Panel, Query, Text, judged, steps
from grafana.tables import Column, rows

UID = "tgi-probe-exporter"
LATENESS = "tgi_probe_schedule_lateness_seconds"
ATTEMPTS = "tgi_probe_attempts_total"
SKIPS = "tgi_probe_skipped_total"
OURS = 'instance=~"$instance"'
CHOSEN = f"{OURS}, {promql.CHOSEN}"
TARGETS = f'{OURS}, target=~"$target"'
# A start is late after so many seconds, and very late. The share of late ones from where on care is needed, and that of
# very late ones from where on the latencies are not to be believed.
LATE, VERY_LATE = 0.01, 0.1
LATE_SHARE, VERY_LATE_SHARE = 0.01, 0.05
# Of the others: the share from where on care is needed, and from where on the latencies are not to be believed.
DISTURBED = (0.05, 0.5)
SKIPPED = (0.05, 0.25)
YES, WITH_CARE, NO = range(3)


def late(seconds: float) -> str:
    return promql.share_above(seconds, LATENESS, "", promql.RANGE, TARGETS)


def disturbed() -> str:
    """The share of the attempts whose values say nothing, because this process was held up."""
    attempts = f"sum(increase({ATTEMPTS}{{{CHOSEN}}}[{promql.RANGE}]))"
    held_up = f'sum(increase({ATTEMPTS}{{{CHOSEN}, outcome="disturbed"}}[{promql.RANGE}]))'
    return f"{held_up} / ({attempts} > 0)"


def skipped() -> str:
    """The share of the due probes that were not sent."""
    skips, attempts = (f"sum(increase({name}{{{CHOSEN}}}[{promql.RANGE}]))" for name in (SKIPS, ATTEMPTS))
    return f"{skips} / ({skips} + {attempts} > 0)"


def verdict() -> str:
    """The worst of the three."""
    limits = (
        (late(LATE), LATE_SHARE, late(VERY_LATE), VERY_LATE_SHARE),
        *((share, care, share, no) for share, (care, no) in ((disturbed(), DISTURBED), (skipped(), SKIPPED))),
    )
    degrees = (f"sum(({some}) > bool {care:g}) + sum(({much}) > bool {no:g})" for some, care, much, no in limits)
    reasons = (promql.named(degree, "reason", str(number)) for number, degree in enumerate(degrees))
    return f"max({' or '.join(reasons)})"


def answers() -> list[Panel]:
    def degrees(limits: tuple[float, float]) -> tuple[tuple[float | None, str], ...]:
        care, no = limits
        return ((None, colours.GOOD), (care, colours.WARNING), (no, colours.BAD))

    texts = ("started over 10 ms late", "disturbed", "skipped")
    return [
        numbers(
            Text(
                "Can the latencies be believed?",
                "Yes: they are the server's; with care: compare only large changes; no: give tgi-probe more CPU first.",
                "none",
            ),
            [Query(verdict())],
            width=8,
            height=5,
            by=steps((None, colours.GOOD), (WITH_CARE, colours.WARNING), (NO, colours.BAD)),
            texts=((YES, "yes"), (WITH_CARE, "with care"), (NO, "no")),
        ),
        numbers(
            Text(
                "Why: probes that were …",
                "Late and disturbed: the machine that runs tgi-probe is too busy, and values of disturbed probes are "
                "not used; skipped: there is less data than configured.",
                "percentunit",
            ),
            [Query(late(LATE), texts[0]), Query(disturbed(), texts[1]), Query(skipped(), texts[2])],
            width=16,
            height=5,
            names=True,
            decimals=1,
            own={
                texts[0]: judged((None, colours.GOOD), (LATE_SHARE, colours.WARNING)),
                texts[1]: judged(*degrees(DISTURBED)),
                texts[2]: judged(*degrees(SKIPPED)),
            },
        ),
    ]


def daemons() -> Panel:
    def each(metric: str, function: str = "max") -> str:
        return f"{function} by (instance) ({metric}{{{OURS}}})"

    return rows(
        Text(
            "Daemons",
            "A start that you did not expect is a crash; refused: the daemon still runs with the configuration "
            "before, and its log says why.",
        ),
        [
            Query(f"group by (instance, version, python_version) (tgi_probe_build_info{{{OURS}}})"),
            Query(each("up", "min")),
            Query(f"1000 * {each('process_start_time_seconds')}"),
            Query(f"1000 * {each('tgi_probe_config_last_reload_success_timestamp_seconds')}"),
            Query(each("tgi_probe_config_last_reload_successful", "min")),
            Query(f"count by (instance) (tgi_probe_target_up{{{OURS}}})"),
            Query(f"count by (instance) (tgi_probe_target_up{{{OURS}}} == 1)"),
            Query(each("scrape_samples_scraped")),
        ],
        [
            Column("instance", "Exporter", width=160),
            Column(
                1,
                "Scraped",
                "none",
                by=steps((None, colours.BAD), (1, colours.GOOD)),
                texts=((0, "fails"), (1, "yes")),
                width=80,
            ),
            Column("version", "Version", width=80),
            Column("python_version", "Python", width=80),
            Column(2, "Started", "dateTimeFromNow"),
            Column(3, "Configuration taken", "dateTimeFromNow"),
            Column(
                4,
                "Newest reload",
                "none",
                by=steps((None, colours.BAD), (1, colours.GOOD)),
                texts=((0, "refused"), (1, "taken")),
            ),
            Column(6, "Targets up", "locale", decimals=0),
            Column(5, "Targets", "locale", decimals=0),
            Column(7, "Samples per scrape", "locale", decimals=0),
        ],
        height=6,
        sort=[("Exporter", False)],
    )


def punctual() -> list[Panel]:
    return [
        lines(
            Text(
                "Probes that start late",
                "A rise of both lines: mistrust the latencies of that time, because the daemon's machine was busy.",
                "percentunit",
            ),
            [
                Query(promql.share_above(seconds, LATENESS, "", promql.RATE, TARGETS), f"over {seconds * 1000:g} ms")
                for seconds in (LATE, VERY_LATE)
            ],
            width=8,
            most=0.05,
        ),
        lines(
            Text(
                "Probes per minute, by outcome",
                "Latencies come from the ok probes: with few of them a p99 is a guess; disturbed ones say nothing "
                "about the server.",
                "short",
            ),
            [Query(f"60 * {promql.rate(ATTEMPTS, 'outcome', where=CHOSEN)} > 0", "{{outcome}}")],
            width=8,
            colour=colours.OUTCOMES,
            most=1,
        ),
        lines(
            Text(
                "Skipped probes per minute, by reason",
                "Busy: the interval is too short for this server; backoff: it fails; duty_cycle: it would take too "
                "much of it; unsafe: see the log.",
                "short",
            ),
            [Query(f"60 * {promql.rate(SKIPS, 'reason', where=CHOSEN)}", "{{reason}}")],
            width=8,
            colour=colours.REASONS,
            most=1,
        ),
    ]


def through_routers() -> list[Panel]:
    no_router = "None of these targets is probed through a router"
    setup, spread = "tgi_probe_connection_setup_seconds", "tgi_probe_start_spread_seconds"

    # Connections are kept for days: over any time range, most targets opened none.
    def part(name: str) -> str:
        classic = f'sum by (target) ({setup}_{name}{{target=~"$target"}})'
        return f'(histogram_{name}(sum by (target) ({setup}{{target=~"$target"}})) or {classic})'

    since_start = f"{part('sum')} / ({part('count')} > 0)"
    return [
        lines(
            Text(
                "Spread of a batch's sends, on average",
                "Through a router, a batch is requests sent at once: above a few milliseconds it was hardly one batch.",
                "s",
                empty=no_router,
            ),
            [Query(promql.mean(spread, "target", promql.RATE), "{{target}}")],
            width=8,
        ),
        lines(
            Text(
                "Opening a connection, on average",
                "Since the exporter's start; TLS included, and never part of any other latency: hundreds of "
                "milliseconds are the network, or a busy server.",
                "s",
                empty=no_router,
            ),
            [Query(since_start, "{{target}}")],
            width=8,
        ),
        lines(
            Text(
                "Tokens sent and generated, per second",
                "What the probing itself costs the servers; lower interval or batch sizes if it is too much.",
                "short",
            ),
            [
                Query(f"sum(rate(tgi_probe_prompt_tokens_total{{{CHOSEN}}}[{promql.RATE}]))", "prompt tokens"),
                Query(f"sum(rate(tgi_probe_generated_tokens_total{{{CHOSEN}}}[{promql.RATE}]))", "generated tokens"),
            ],
            width=8,
        ),
    ]


def resources() -> list[Panel]:
    return [
        lines(
            Text("CPU", "Share of one core; near 100 % the daemon itself delays what it measures.", "percentunit"),
            [Query(f"sum by (instance) (rate(process_cpu_seconds_total{{{OURS}}}[{promql.RATE}]))", "{{instance}}")],
            width=8,
            most=0.5,
        ),
        lines(
            Text("Memory", "Must be flat over days: growth is a leak, please report it.", "bytes"),
            [Query(f"sum by (instance) (process_resident_memory_bytes{{{OURS}}})", "{{instance}}")],
            width=8,
        ),
        lines(
            Text(
                "Scrape time",
                "Grows with targets times batch sizes; above a second, give the daemon more CPU or probe less.",
                "s",
            ),
            [Query(f"max by (instance) (scrape_duration_seconds{{{OURS}}})", "{{instance}}")],
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
            Row("The answer", [*answers(), daemons()]),
            Row("On time and complete", punctual()),
            Row("Through routers, and what probing costs", through_routers()),
            Row("The daemon itself", resources()),
        ],
    )
