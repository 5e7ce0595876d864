"""Which replica is off? Targets compared with each other, and with themselves some time ago."""

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, TARGET, WORKLOAD, Row
from grafana.panels import lines, numbers
from grafana.style import TOKENS_PER_SECOND, Panel, Query, Text, judged, steps
from grafana.tables import Column, rows

UID = "tgi-probe-fleet"
TTFT = "tgi_probe_time_to_first_token_seconds"
TOKEN = "tgi_probe_inter_token_latency_seconds"
DECODE_RATE = "tgi_probe_decode_throughput_tokens_per_second"
ATTEMPTS = "tgi_probe_attempts_total"
UP = 'max by (target) (tgi_probe_target_up{target=~"$target"})'
SHAPE = "workload, batch_size"
SERIES = f"target, {SHAPE}"
# 1.1 is 10 % slower than the middle of the fleet.
SLOWER = ((None, colours.GOOD), (1.1, colours.WARNING), (1.25, colours.BAD))
BY_RATIO = steps(*SLOWER)
BY_THROUGHPUT_RATIO = steps((None, colours.BAD), (0.8, colours.WARNING), (0.9, colours.GOOD))
BY_FAILURES = steps((None, colours.GOOD), (0.001, colours.WARNING), (0.05, colours.BAD))
SENT = "workload, mode, prompt_cache, sequence_length, decode_length"
EARLIER = " offset $compare"
# How exactly the first sample of a target is looked for.
STEP, STEP_SECONDS = "10m", 600


def against_fleet(histogram: str, window: str) -> str:
    """A target's mean over the median of all, for the same workload and batch size; then the average of those."""
    mine = f"({promql.mean(histogram, SERIES, window)})"
    return f"avg by (target) ({mine} / on ({SHAPE}) group_left () quantile by ({SHAPE}) (0.5, {mine}))"


def newest(name: str) -> str:
    """The average of the newest value of each workload and batch size, so that a gap in one does not change the mix."""
    return f"avg by (target) (tgi_probe_last_{name}{{{promql.CHOSEN}}} >= 0)"


def even(histogram: str) -> str:
    """The average of the means of each workload and batch size, however often each was probed."""
    return f"avg by (target) ({promql.mean(histogram, SERIES)})"


def against_earlier(histogram: str) -> str:
    now = promql.mean(histogram, SERIES)
    return f"avg by (target) (({now}) / ({promql.mean(histogram, SERIES, offset=EARLIER)}))"


def comparable_from() -> str:
    """For each target that is younger than $compare, when it will be that old. Milliseconds since 1970."""
    seen = '(timestamp(tgi_probe_target_up) and on (target) tgi_probe_target_up{target=~"$target"})'
    first = f"(min by (target) (min_over_time({seen}[$compare:{STEP}])) or min by (target) ({seen}))"
    ago = f"scalar(min_over_time(vector(time())[$compare:{STEP}]))"
    return f"1000 * (({first} > {ago} + {2 * STEP_SECONDS}) + time() - {ago})"


def failures() -> str:
    bad = promql.increase(ATTEMPTS, "target", where=promql.FAILED)
    return f"{bad} / ({promql.increase(ATTEMPTS, 'target', where=promql.JUDGED)} > 0)"


def now() -> list[Panel]:
    latency = "/d/tgi-probe-latency?${__url_time_range}&var-datasource=${datasource}&var-target=${__value.text}"
    return [
        numbers(
            Text(
                "Slowest first token, against the middle of the fleet",
                "The target to look into when this is orange or worse; 1.00× is the middle, for the same work.",
                "suffix:×",
            ),
            [Query(f"topk(1, {against_fleet(TTFT, promql.RANGE)})", "{{target}}")],
            width=12,
            height=5,
            names=True,
            decimals=2,
            by=BY_RATIO,
        ),
        numbers(
            Text(
                "Targets now",
                "A target that is down is not measured: its numbers below are old.",
                "none",
            ),
            [Query(f"count({UP} == 0) or vector(0)", "down"), Query(f"count({UP} == 1) or vector(0)", "up")],
            width=12,
            height=5,
            names=True,
            own={
                "down": judged((None, colours.GREY), (1, colours.BAD)),
                "up": judged((None, colours.GREY), (1, colours.GOOD)),
            },
        ),
        rows(
            Text(
                "Targets, outliers first",
                "1.00 is the middle of the fleet for the same work; look into the first row when its time to first "
                "token is orange or worse.",
            ),
            [
                Query(UP),
                Query(against_fleet(TTFT, promql.RANGE)),
                Query(against_fleet(TOKEN, promql.RANGE)),
                Query(against_fleet(DECODE_RATE, promql.RANGE)),
                Query(failures()),
                Query(even(TTFT)),
                Query(even(TOKEN)),
                Query(even(DECODE_RATE)),
                Query(f"time() - max by (target) (tgi_probe_last_success_timestamp_seconds{{{promql.CHOSEN}}} > 0)"),
            ],
            [
                Column("target", "Target", link=latency),
                Column(
                    0,
                    "Now",
                    "none",
                    by=steps((None, colours.BAD), (1, colours.GOOD)),
                    texts=((0, "down"), (1, "up")),
                    width=70,
                ),
                Column(1, "First token ×", decimals=2, by=BY_RATIO, unit="none"),
                Column(2, "Token latency ×", decimals=2, by=BY_RATIO, unit="none"),
                Column(3, "Throughput ×", decimals=2, by=BY_THROUGHPUT_RATIO, unit="none"),
                Column(4, "Failed", "percentunit", decimals=1, by=BY_FAILURES),
                Column(5, "First token", "s", decimals=1),
                Column(6, "Token latency", "s", decimals=1),
                Column(7, "Throughput", TOKENS_PER_SECOND, decimals=0),
                Column(8, "Since last success", "s", decimals=0),
            ],
            height=8,
            min_width=100,
            sort=[("First token ×", True)],
        ),
    ]


def side_by_side() -> list[Panel]:
    def panel(text: Text, expr: str) -> Panel:
        return lines(text, [Query(expr, "{{target}}")], width=8)

    return [
        panel(
            Text(
                "Time to first token",
                "One line that leaves the others is that replica; all together are the load or a release.",
                "s",
            ),
            newest("time_to_first_token_seconds"),
        ),
        panel(
            Text(
                "Token latency",
                "One line that leaves the others is that replica; all together are the load or a release.",
                "s",
            ),
            newest("inter_token_latency_seconds"),
        ),
        panel(
            Text("Decode throughput", "The lowest line bounds what users on that replica get.", TOKENS_PER_SECOND),
            newest("decode_throughput_tokens_per_second"),
        ),
        lines(
            Text(
                "Time to first token against the fleet",
                "For how long a replica is off: above the dashed line it is a quarter slower than the middle.",
                "suffix:×",
            ),
            [Query(against_fleet(TTFT, promql.RATE), "{{target}}")],
            limits=[1.25],
        ),
        lines(
            Text(
                "Failed probes",
                "Share of the probes of a target that failed; one target alone is that replica, all are the way to "
                "them.",
                "percentunit",
            ),
            [
                Query(
                    f"{promql.rate(ATTEMPTS, 'target', where=promql.FAILED)}"
                    f" / ({promql.rate(ATTEMPTS, 'target', where=promql.JUDGED)} > 0)",
                    "{{target}}",
                )
            ],
            most=0.1,
        ),
    ]


def then() -> Panel:
    return rows(
        Text(
            "Compared with $compare ago",
            "1.00 is as fast as then, above 1.10 a regression; a target that is younger is compared from the date in "
            "the last column on.",
        ),
        [
            Query(comparable_from()),
            Query(against_earlier(TTFT)),
            Query(against_earlier(TOKEN)),
            Query(against_earlier(DECODE_RATE)),
        ],
        [
            Column("target", "Target"),
            Column(1, "First token ×", "none", decimals=2, by=BY_RATIO),
            Column(2, "Token latency ×", "none", decimals=2, by=BY_RATIO),
            Column(3, "Throughput ×", "none", decimals=2, by=BY_THROUGHPUT_RATIO),
            Column(0, "Compared from", "dateTimeAsLocal", width=210),
        ],
        sort=[("First token ×", True)],
    )


def kinds() -> list[Panel]:
    return [
        rows(
            Text(
                "What runs where",
                "An outlier with another model, dtype, device, attention or number of ranks than its peers is "
                "explained by that.",
            ),
            [
                Query(
                    "max by (target, kind, protocol, model, dtype, device, attention, ranks) "
                    '(tgi_probe_target_info{target=~"$target"})'
                )
            ],
            [
                Column("target", "Target"),
                Column("kind", "Kind", width=60),
                Column("protocol", "Protocol"),
                Column("model", "Model", width=180),
                Column("dtype", "dtype"),
                Column("device", "Device", width=65),
                Column("attention", "Attention", width=85),
                Column("ranks", "Ranks", width=60),
            ],
            width=14,
            height=7,
            min_width=95,
            sort=[("Target", False)],
        ),
        rows(
            Text(
                "What is sent",
                "Only latencies of the same lengths, mode and prompt cache can be compared; here is what the "
                "workloads do.",
            ),
            [Query(f'max by ({SENT}) (tgi_probe_workload_info{{workload=~"$workload"}})')],
            [
                Column("workload", "Workload"),
                Column("sequence_length", "Prompt tokens", number=True),
                Column("decode_length", "Answer tokens", number=True),
                Column("mode", "Mode"),
                Column("prompt_cache", "Prompt cache"),
            ],
            width=10,
            height=7,
            min_width=112,
            sort=[("Workload", False)],
        ),
    ]


def compare() -> dashboard.CustomVariable:
    return (
        dashboard.CustomVariable("compare")
        .label("Compare with")
        .description("How long ago to compare with")
        .values("1w,1d,6h,1h")
        .current(models.VariableOption(text="1w", value="1w", selected=True))
        .multi(False)
        .include_all(False)
    )


def build() -> Dashboard:
    return frame.build(
        UID,
        "Fleet",
        "Which replica is off?",
        [TARGET, WORKLOAD, BATCH_SIZE],
        [
            Row("The answer", now()),
            Row("Side by side", side_by_side()),
            Row("Against $compare ago", [then()]),
            Row("What is compared", kinds()),
        ],
        more=[compare()],
    )
