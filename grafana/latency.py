"""Where does the time go? The durations that the server reports, beside those measured from outside."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import ONE_BATCH_SIZE, ONE_TARGET, ONE_WORKLOAD, Row
from grafana.histograms import buckets
from grafana.panels import lines, numbers
from grafana.style import Panel, Query, Text

UID = "tgi-probe-latency"
TTFT = "tgi_probe_time_to_first_token_seconds"
TOKEN = "tgi_probe_inter_token_latency_seconds"
SERVER = "tgi_probe_server_duration_seconds"
OVERHEAD = "tgi_probe_overhead_seconds"
NO_TIMES = "This target does not tell its own times: only shards do"
NO_SERVER = "No metrics of the server: let this Prometheus scrape its /metrics too"


def account(method: str) -> list[Query]:
    """Mean seconds of a call, in parts that add up to what the client measures."""

    def part(phase: str) -> str:
        return promql.mean_of_summary(
            SERVER, "method", promql.RATE, f'{promql.CHOSEN}, method="{method}", phase="{phase}"'
        )

    parts = " - ".join(f"(({part(phase)}) or 0 * ({part('total')}))" for phase in ("forward", "decode", "concat"))
    overhead = promql.mean(OVERHEAD, "method", promql.RATE, f'{promql.CHOSEN}, method="{method}"')
    return [
        Query(part("forward"), "forward"),
        Query(part("decode"), "decode"),
        Query(f"({part('concat')}) or 0 * ({part('total')})", "concat"),
        Query(f"clamp_min(({part('total')}) - {parts}, 0)", "rest of the server"),
        Query(overhead, "overhead"),
    ]


def largest(method: str) -> Query:
    """The part that takes the largest share of a call, and that share."""
    parts = [promql.named(query.expr, "part", query.legend) for query in account(method)]
    together = " or ".join(parts)
    return Query(f"topk(1, ({together}) / on () group_left () sum({together}))", "{{part}}")


def answers() -> list[Panel]:
    def biggest(call: str, method: str) -> Panel:
        return numbers(
            Text(
                f"Largest part of {call}",
                "What to work on first: forward is the model, decode is sampling, overhead is queueing and transport.",
                "percentunit",
                empty=NO_TIMES,
            ),
            [largest(method)],
            width=7,
            height=5,
            names=True,
            decimals=0,
        )

    newest = (("first token", "time_to_first_token_seconds"), ("next token", "inter_token_latency_seconds"))
    shown = [
        Query(promql.newest_quantile(q, name, "target"), f"{what} {quantile}")
        for what, name in newest
        for q, quantile in ((0.5, "p50"), (0.99, "p99"))
    ]
    return [
        biggest("a prefill", "prefill"),
        biggest("a decode step", "decode"),
        numbers(
            Text(
                "What users wait for",
                "Measured from outside, over the probes of this batch size in the time range; a p99 far above the p50 "
                "is a queue or a stall.",
                "s",
            ),
            shown,
            width=10,
            height=5,
            names=True,
            decimals=1,
        ),
    ]


def parts() -> list[Panel]:
    def panel(call: str, method: str, sentence: str) -> Panel:
        text = Text(f"Where {call}'s time goes", sentence, "s", empty=NO_TIMES)
        return lines(text, account(method), stacked=True, colour=colours.PARTS, height=9)

    return [
        panel(
            "a prefill",
            "prefill",
            "The largest colour is what to work on: forward is the model, decode is sampling, overhead is queueing "
            "and transport.",
        ),
        panel(
            "a decode step",
            "decode",
            "Overhead that grows while forward stays flat means that the server is waited for, not that it is slow.",
        ),
    ]


def outside() -> list[Panel]:
    def overhead(method: str) -> str:
        return promql.mean(OVERHEAD, "method", promql.RATE, f'{promql.CHOSEN}, method="{method}"')

    return [
        buckets(
            Text(
                "Time to first token, every request",
                "One band is normal; a second band above it is a queue, a band that moves up a slower server.",
                "s",
            ),
            promql.buckets(TTFT, promql.RATE),
            width=8,
        ),
        buckets(
            Text(
                "Token latency, every token",
                "The band is the server's pace; cells above it are stalls, such as another batch's prefill in between.",
                "s",
            ),
            promql.buckets(TOKEN, promql.RATE),
            width=8,
        ),
        lines(
            Text(
                "Overhead of a call, on average",
                "Wall time minus the server's own total: tens of milliseconds mean that calls wait behind others, or "
                "a slow network.",
                "s",
                empty=NO_TIMES,
            ),
            [Query(overhead("prefill"), "prefill"), Query(overhead("decode"), "decode step")],
            width=8,
            height=9,
        ),
    ]


def live() -> list[Panel]:
    """The servers' own metrics of all users, from any scrape job: they have none of our labels."""

    def gauge(*names: str) -> str:
        return f"sum by (instance) ({' or '.join(names)})"

    def quantiles(*names: str) -> list[Query]:
        edges = " or ".join(f"rate({name}_bucket[{promql.RATE}])" for name in names)
        return [
            Query(f"histogram_quantile({q}, sum by (le, instance) ({edges})) >= 0", f"{{{{instance}}}} p{q * 100:g}")
            for q in (0.5, 0.99)
        ]

    return [
        lines(
            Text(
                "Users' requests, waiting and running",
                "Waiting above 0 for long: users wait before any work begins; compare running with the batch size "
                "that the Batch sizes dashboard recommends.",
                empty=NO_SERVER,
            ),
            [
                Query(
                    gauge("tgi_queue_size", "vllm:num_requests_waiting", "sglang:num_queue_reqs"),
                    "{{instance}} waiting",
                ),
                Query(
                    gauge("tgi_batch_current_size", "vllm:num_requests_running", "sglang:num_running_reqs"),
                    "{{instance}} running",
                ),
            ],
            width=6,
            most=1,
        ),
        lines(
            Text(
                "Users' request duration",
                "From arrival to the last token, as the server sees it; moves with the users' answer lengths, where "
                "the probes' numbers do not.",
                "s",
                empty=NO_SERVER,
            ),
            quantiles("tgi_request_duration", "vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
            width=6,
        ),
        lines(
            Text(
                "Users' time to first token",
                "High here and low in the probes: longer prompts, or a queue that the probes do not meet; TGI does "
                "not tell it.",
                "s",
                empty=f"{NO_SERVER}. TGI does not tell it",
            ),
            quantiles("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
            width=6,
        ),
        lines(
            Text(
                "KV cache in use",
                "Near 100 % requests wait or are put off, whatever the GPU could compute; TGI does not tell it.",
                "percentunit",
                empty=f"{NO_SERVER}. TGI does not tell it",
            ),
            [
                Query(
                    "max by (instance) (vllm:kv_cache_usage_perc or vllm:gpu_cache_usage_perc or sglang:token_usage)",
                    "{{instance}}",
                )
            ],
            width=6,
            most=1,
        ),
    ]


def build() -> Dashboard:
    return frame.build(
        UID,
        "Latency in depth",
        "Where does the time go?",
        [ONE_TARGET, ONE_WORKLOAD, ONE_BATCH_SIZE],
        [
            Row("The answer", answers()),
            Row("Parts of the time, as the server reports them", parts()),
            Row("Seen from outside", outside()),
            Row("Live traffic of users (the metrics of TGI's router, vLLM or SGLang)", live()),
        ],
    )
