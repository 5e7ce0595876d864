"""The status page: one HTML document without scripts; it loads nothing from other addresses."""

import time
from collections.abc import Callable, Sequence
from html import escape
from urllib.parse import urlencode

from exporter.analysis.newest import MEDIAN_OF, Limit, NewestResult, NewestResults
from exporter.web import page_style, tables
from exporter.web.chart import Point, scatter
from exporter.web.tables import Column, table, with_message

STYLE = "nav a{margin-right:1rem}"
REFRESH_SECONDS = 15  # as often as most Prometheus servers look
# A curve of throughput over latency.
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M2 14 3 7Q4 3 14 3'"
    " fill='none' stroke='%230072b2' stroke-width='2'/%3E%3Ccircle cx='4' cy='5' r='2' fill='%23d55e00'/%3E%3C/svg%3E"
)
TARGETS = tuple(Column(head) for head in ("target", "state", "kind", "address", "says of itself"))
RESULTS = (
    Column("target"),
    Column("workload"),
    Column("batch", number=True),
    Column("outcome"),
    Column("age", number=True),
    Column("TTFT, ms", number=True),
    Column("median", number=True),
    Column("per token, ms", number=True),
    Column("median", number=True),
    Column("prefill, tok/s", number=True),
    Column("median", number=True),
    Column("decode, tok/s", number=True),
    Column("median", number=True),
)
OBJECTIVES = (
    Column("SLO"),
    Column("target"),
    Column("what"),
    Column("objective", number=True),
    Column("good share", number=True),
    Column("state"),
    Column("good", number=True),
    Column("bad", number=True),
)
MEDIANS = (
    f"Medians are of the last {MEDIAN_OF} successful probes. ▲: over the limit of an SLO, which the pointer shows. "
    "Of a batch, the values are means over its requests."
)
NARROW = tables.narrow("76rem", {"targets": TARGETS, "results": RESULTS, "objectives": OBJECTIVES})


def page(status: NewestResults) -> str:
    """The whole document."""
    state = (
        '<span class="good">the exporter is healthy</span>'
        if status.trouble is None
        else f'<b class="bad">{escape(status.trouble)}</b>'
    )
    down = sum(one.asked and one.said is None for one in status.targets)
    if down:
        state += f' · <b class="bad">{down} of {len(status.targets)} targets down</b>'
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(status.now))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tgi-probe</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}"><link rel="icon" href="{ICON}">'
        f"<style>{page_style.STYLE}{STYLE}{tables.STYLE}{NARROW}</style></head><body>"
        f'<h1>tgi-probe <span class="dim">{escape(status.version)}</span></h1><p>{state}, as of {at}</p>'
        '<nav><a href="/metrics">metrics</a><a href="/config">configuration</a><a href="/-/healthy">healthy</a>'
        '<a href="/-/ready">ready</a></nav>'
        f"<h2>Targets</h2>{_targets(status)}<h2>Newest results</h2>{_results(status)}{_charts(status)}"
        f"<h2>Objectives, since the start</h2>{_objectives(status)}</body></html>\n"
    )


def _targets(status: NewestResults) -> str:
    rows = []
    for one in status.targets:
        if one.said is not None:
            state = '<td class="good word">up</td>'
        else:
            state = '<td class="bad word">down</td>' if one.asked else '<td class="dim word">not asked yet</td>'
        rows.append(
            f"<tr><td class=name>{escape(one.name)}</td>{state}<td class=word>{escape(one.kind)}</td>"
            f"<td class=text>{escape(one.address)}</td>"
            f"<td class=text>{escape(one.said or '')}</td></tr>"
        )
    return table("targets", TARGETS, rows)


def _results(status: NewestResults) -> str:
    rows = []
    columns = (*RESULTS, Column("")) if status.probe_here else RESULTS
    for one in status.results:
        good = "good" if one.outcome == "ok" else "bad"
        link = ""
        if status.probe_here:
            query = urlencode({"target": one.target, "workload": one.workload, "batch_size": one.batch_size})
            link = f'<td class=word><a href="/probe?{escape(query)}">probe now</a></td>'
        cells = (
            f"<td class=name>{escape(one.target)}</td><td class=name>{escape(one.workload)}</td>"
            f'<td class=n>{one.batch_size}</td><td class="{good} word">{escape(one.outcome)}</td>'
            f"<td class=n>{_ago(status.now - one.at)}</td>{_values(one)}{link}"
        )
        rows.append(with_message(cells, columns, one.detail or _withheld(one.withheld)))
    for idle in status.unprobed:
        rows.append(
            f"<tr><td class=name>{escape(idle.target)}</td><td class=name>{escape(idle.workload)}</td>"
            f'<td class=n>{idle.batch_size}</td><td class=dim colspan="{len(columns) - 3}">{escape(idle.why)}</td></tr>'
        )
    return f"{table('results', columns, rows)}<p class=dim>{MEDIANS}</p>" if rows else "<p class=dim>None yet.</p>"


def _values(one: NewestResult) -> str:
    """The newest value of each measure, and beside it the median."""
    values = (one.ttft, one.inter_token, one.prefill_rate, one.decode_rate)
    limits = (*one.limits, None, None)
    shown = (_milliseconds, _milliseconds, _rate, _rate)
    return "".join(
        _cell(value, limit, text) + _cell(median, limit, text, dim=True)
        for value, median, limit, text in zip(values, one.medians, limits, shown, strict=True)
    )


def _cell(value: float | None, limit: Limit | None, text: Callable[[float | None], str], dim: bool = False) -> str:
    """Coloured by the limit; above it there is an arrow too, for those who do not see the colour."""
    if value is None or limit is None:
        return f'<td class="n{" dim" if dim else ""}">{text(value)}</td>'
    over = value > limit.seconds
    word = f"{'over' if over else 'within'} {limit.seconds * 1000:g} ms of SLO {limit.slo}"
    return f'<td class="n {"bad" if over else "good"}" title="{escape(word)}">{text(value)}{" ▲" if over else ""}</td>'


def _charts(status: NewestResults) -> str:
    def points(rate: str, latency: str) -> list[Point]:
        return [
            Point(f"{one.target} {one.workload}", one.batch_size, x * 1000, y)
            for one in status.results
            if (x := getattr(one, latency)) is not None and (y := getattr(one, rate)) is not None
        ]

    prefill = scatter("Prefill: tokens per second over time to first token, ms", points("prefill_rate", "ttft"))
    decode = scatter("Decode: tokens per second over inter-token latency, ms", points("decode_rate", "inter_token"))
    return f'<div class="charts">{prefill}{decode}</div>' if prefill or decode else ""


def _objectives(status: NewestResults) -> str:
    rows = []
    for one in status.objectives:
        total = one.good + one.bad
        share = one.good / total if total else None
        seen = "–" if share is None else f"{share * 100:.4g}%"
        met, colour = ("met", "good") if share is None or share >= one.objective else ("missed", "bad")
        if share is None:
            met, colour = "not judged yet", "dim"
        what = one.measure.replace("_", " ") + ("" if one.threshold is None else f" ≤ {one.threshold * 1000:g} ms")
        rows.append(
            f"<tr><td class=name>{escape(one.name)}</td><td class=name>{escape(one.target)}</td><td>{escape(what)}</td>"
            f"<td class=n>{one.objective * 100:.6g}%</td><td class=n>{seen}</td>"
            f'<td class="{colour}">{met}</td><td class=n>{one.good}</td>'
            f"<td class=n>{one.bad}</td></tr>"
        )
    return table("objectives", OBJECTIVES, rows) if rows else "<p class=dim>None judged yet.</p>"


def _withheld(measures: Sequence[str]) -> str:
    """Why a successful probe has no value of some measures."""
    names = ", ".join(measure.replace("_", " ") for measure in measures)
    return f"withheld: {names} (this machine was busy; see docs/troubleshooting.md)" if names else ""


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:,.1f}"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _ago(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
