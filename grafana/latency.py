"""Where does the time go? The durations that the server reports, beside those measured from outside."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import colours, frame, promql
from grafana.frame import BATCH_SIZE, TARGET, WORKLOAD, Row
from grafana.histograms import buckets
from grafana.panels import lines
from grafana.style import Panel, Query, Text

UID = "tgi-probe-latency"
TTFT = "tgi_probe_time_to_first_token_seconds"
TOKEN = "tgi_probe_inter_token_latency_seconds"
SERVER = "tgi_probe_server_duration_seconds"
OVERHEAD = "tgi_probe_overhead_seconds"
SHAPE = "workload, batch_size"
NO_TIMES = "These targets do not tell their own times: only shards do"
NO_ROUTER_TARGET = "None of these targets is probed through a router"
NO_ROUTER = "No router metrics: let this Prometheus scrape the /metrics of TGI's router too (or no user came)"


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


def parts() -> list[Panel]:
    return [
        lines(
            Text(
                "Where a prefill's time goes",
                "The largest colour is what to work on: forward is the model, decode is sampling, overhead is "
                "queueing and transport.",
                "s",
                empty=NO_TIMES,
            ),
            account("prefill"),
            stacked=True,
            colour=colours.PARTS,
            height=9,
        ),
        lines(
            Text(
                "Where a decode step's time goes",
                "Overhead that grows while forward stays flat means that the server is waited for, not that it is "
                "slow.",
                "s",
                empty=NO_TIMES,
            ),
            account("decode"),
            stacked=True,
            colour=colours.PARTS,
            height=9,
        ),
    ]


def outside() -> list[Panel]:
    return [
        buckets(
            Text(
                "Time to first token",
                "Each band is a batch size or a workload; choose one above, and a second band is a queue.",
                "s",
            ),
            promql.buckets(TTFT, promql.RATE),
            height=10,
        ),
        buckets(
            Text(
                "Token latency",
                "The band is the server's pace; cells above it are stalls, such as another batch's prefill in between.",
                "s",
            ),
            promql.buckets(TOKEN, promql.RATE),
            height=10,
        ),
    ]


def overhead() -> list[Panel]:
    def queries(method: str) -> list[Query]:
        where = f'{promql.CHOSEN}, method="{method}"'
        return [
            Query(promql.quantile(q, OVERHEAD, "", promql.RATE, where), name)
            for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
        ]

    return [
        lines(
            Text(
                f"Overhead of a {call}",
                "Wall time minus the server's own total: tens of milliseconds mean that calls wait behind others, or "
                "a slow network.",
                "s",
                empty=NO_TIMES,
            ),
            queries(method),
            colour=colours.QUANTILES,
        )
        for method, call in (("prefill", "prefill"), ("decode", "decode step"))
    ]


def through_routers() -> list[Panel]:
    setup, spread = "tgi_probe_connection_setup_seconds", "tgi_probe_start_spread_seconds"

    # Connections are kept for days: over any time range, most targets opened none.
    def part(name: str) -> str:
        classic = f'sum by (target) ({setup}_{name}{{target=~"$target"}})'
        return f'(histogram_{name}(sum by (target) ({setup}{{target=~"$target"}})) or {classic})'

    since_start = f"{part('sum')} / ({part('count')} > 0)"
    return [
        lines(
            Text(
                "Opening a connection, average since the exporter's start",
                "TLS included, and never part of any other latency: hundreds of milliseconds are the network, or a "
                "busy server.",
                "s",
                empty=NO_ROUTER_TARGET,
            ),
            [Query(since_start, "{{target}}")],
        ),
        lines(
            Text(
                "Spread of a batch's sends, p90",
                "Through a router, a batch is requests sent at once: above a few milliseconds it was hardly one batch.",
                "s",
                empty=NO_ROUTER_TARGET,
            ),
            [Query(promql.quantile(0.9, spread, SHAPE, promql.RATE), "{{workload}} batch {{batch_size}}")],
            by_batch_size=True,
        ),
    ]


def by_batch_size() -> list[Panel]:
    def panel(text: Text, expr: str) -> Panel:
        return lines(text, [Query(expr, "{{workload}} batch {{batch_size}}")], width=8, by_batch_size=True)

    forward = f'{promql.CHOSEN}, method="decode", phase="forward"'
    return [
        panel(
            Text(
                "Time to first token, p90",
                "Lines that grow apart mean that the prefill no longer scales with the batch.",
                "s",
            ),
            promql.quantile(0.9, TTFT, SHAPE, promql.RATE),
        ),
        panel(
            Text("Token latency, p90", "Lines on top of each other: larger batches are free for the readers.", "s"),
            promql.quantile(0.9, TOKEN, SHAPE, promql.RATE),
        ),
        panel(
            Text(
                "Forward pass of a decode step, average",
                "As the server reports it: if it grows with the token latency, the model is the cause.",
                "s",
                empty=NO_TIMES,
            ),
            promql.mean_of_summary(SERVER, SHAPE, promql.RATE, forward),
        ),
    ]


def live() -> list[Panel]:
    """TGI's own router metrics, from any scrape job: they have none of our labels."""

    def gauge(title: str, description: str, name: str) -> Panel:
        text = Text(title, description, empty=NO_ROUTER)
        return lines(text, [Query(f"sum by (instance) ({name})", "{{instance}}")], width=8, most=1)

    def duration(title: str, description: str, name: str, by: str = "") -> Panel:
        edges = f"sum by (le{by and ', ' + by}) (rate({name}_bucket[{promql.RATE}]))"
        legend = f" {{{{{by}}}}}" if by else ""
        queries = [Query(f"histogram_quantile({q}, {edges}) >= 0", f"p{q * 100:g}{legend}") for q in (0.5, 0.99)]
        return lines(Text(title, description, "s", empty=NO_ROUTER), queries, width=8, colour=colours.QUANTILES)

    return [
        gauge(
            "Requests waiting in the router",
            "Above 0 for long: users wait before any work begins, and the probes' overhead rises with it.",
            "tgi_queue_size",
        ),
        gauge(
            "Requests in the running batch",
            "Compare it with the batch size that the Batch sizes dashboard recommends.",
            "tgi_batch_current_size",
        ),
        duration(
            "Users' time in the queue",
            "What is high here and low in the probes of a shard is the router's queue, not the model.",
            "tgi_request_queue_duration",
        ),
        duration(
            "Users' inference time",
            "From leaving the queue to the last token, as the router sees it; moves with the users' answer lengths.",
            "tgi_request_inference_duration",
        ),
        duration(
            "Users' mean time per token",
            "The router's mean per request, which hides stutter; the probes' token latency above does not.",
            "tgi_request_mean_time_per_token_duration",
        ),
        duration(
            "Batch inference by method",
            "The router's own prefill and decode times: far above the probes' means larger batches than those probed.",
            "tgi_batch_inference_duration",
            "method",
        ),
    ]


def build() -> Dashboard:
    return frame.build(
        UID,
        "Latency in depth",
        "Where does the time go?",
        [TARGET, WORKLOAD, BATCH_SIZE],
        [
            Row("Parts of the time, as the server reports them", parts()),
            Row("Seen from outside", outside()),
            Row("Queueing and transport", [*overhead(), *through_routers()]),
            Row("By batch size", by_batch_size()),
            Row("Live traffic beside it (needs TGI's router metrics)", live(), folded=True),
        ],
    )
