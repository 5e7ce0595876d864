"""The results of a sweep as one HTML page, which needs neither a network nor a script. Pure."""

from collections.abc import Sequence
from html import escape

from exporter.bench.advice import NO_ADVICE, Advice
from exporter.bench.compare import Difference, verdict
from exporter.bench.results import Results
from exporter.bench.summary import LATENCY, THROUGHPUT, Row, curve, remarks, rows
from exporter.bench.tables import interval, reach
from exporter.web import chart, page_style, tables
from exporter.web.tables import Column, table

STYLE = "dl{margin:0}dt{font-weight:600;margin-top:.7rem}dd{margin:0}dd b{font-size:1.25rem}"
VALUES = (
    Column("step"),
    Column("batch size", number=True),
    Column("values", number=True),
    Column("p50", number=True),
    Column("its 95 % interval", number=True),
    Column("p90", number=True),
    Column("p99", number=True),
    Column("lowest", number=True),
    Column("highest", number=True),
)
CHANGES = (
    Column("what"),
    Column("batch size", number=True),
    Column("change", number=True),
    Column("its 95 % interval", number=True),
    Column("verdict"),
)
NARROW = tables.narrow("46rem", {"values": VALUES, "changes": CHANGES})


def page(
    results: Results, advice: Sequence[Advice], settings: Sequence[str], compared: Sequence[Difference] | None
) -> str:
    """The whole document. `settings` says what the chosen batch size means for a server's options."""
    parts = [
        f"<h1>{escape(_title(results))}</h1>",
        f'<p class="dim">{escape(_facts(results))}</p>',
        "".join(
            f"<p class={'bad' if line.startswith('ended') else 'dim'}>{escape(line)}</p>" for line in remarks(results)
        ),
        "<h2>Which batch size to run</h2>",
        f"<dl>{''.join(map(_answer, advice))}</dl>" if advice else f"<p>{NO_ADVICE}</p>",
        _settings(advice, settings),
        '<h2>Throughput over latency</h2><div class="charts">',
        chart.scatter("Prefill: tokens/s over milliseconds", _curve(results, "prefill")),
        chart.scatter("Decode: tokens/s over milliseconds per token", _curve(results, "decode")),
        "</div>",
        "<h2>Latency in milliseconds</h2>",
        table("values", VALUES, [_row(row, 1e3) for row in rows(results, LATENCY)]),
        "<h2>Throughput in tokens per second</h2>",
        table("values", VALUES, [_row(row, 1.0) for row in rows(results, THROUGHPUT)]),
    ]
    if compared is not None:
        changed = table("changes", CHANGES, [_difference(one) for one in compared])
        parts += ["<h2>Compared with the baseline</h2>", changed]
    parts.append(
        f'<p class="dim">Medians of the runs; the interval has the true one with 95 %. {escape(_sent(results))} '
        f"Made by tgi-probe {escape(results.tgi_probe)} at {escape(results.started)}.</p>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(_title(results))}</title><style>{page_style.STYLE}{STYLE}{tables.STYLE}{NARROW}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _title(results: Results) -> str:
    return f"Benchmark of {results.target.get('model') or results.parameters.get('target', 'a server')}"


def _facts(results: Results) -> str:
    said = {"address": results.parameters.get("target"), **results.target}
    return " · ".join(f"{key.replace('_', ' ')} {value}" for key, value in said.items() if value)


def _sent(results: Results) -> str:
    return "Sent: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in results.parameters.items()) + "."


def _answer(one: Advice) -> str:
    size = "none" if one.batch_size is None else f"batch size {one.batch_size}"
    others = f" Perhaps also {', '.join(map(str, one.others))}: the intervals overlap." if one.others else ""
    return f"<dt>{escape(one.goal)}</dt><dd><b>{size}</b> – {escape(one.why)}.{others}</dd>"


def _settings(advice: Sequence[Advice], settings: Sequence[str]) -> str:
    if not settings:
        return ""
    heading = f"<dt>Batch size {advice[-1].batch_size} means for the server's own options</dt>"
    return f"<dl>{heading}{''.join(f'<dd>{escape(line)}</dd>' for line in settings)}</dl>"


def _curve(results: Results, phase: str) -> list[chart.Point]:
    return [
        chart.Point(f"{phase}, medians", batch_size, seconds * 1e3, rate)
        for batch_size, seconds, rate in curve(results, phase)
    ]


def _row(row: Row, factor: float) -> str:
    numbers = [str(row.batch_size), str(row.values)]
    if row.quantiles is None or row.lowest is None or row.highest is None:
        numbers += ["–"] * (len(VALUES) - 3)
    else:
        middle, *far = row.quantiles
        numbers += [f"{middle.value * factor:,.2f}", interval(middle, factor)]
        numbers += [f"{one.value * factor:,.2f}" for one in far]
        numbers += [f"{row.lowest * factor:,.2f}", f"{row.highest * factor:,.2f}"]
    return f'<tr><td class="name">{escape(row.step)}{"".join(f"<td class=n>{text}" for text in numbers)}</tr>'


def _difference(one: Difference) -> str:
    cells = (str(one.batch_size), f"{one.change.ratio - 1:+.1%}", reach(one.change))
    numbers = "".join(f"<td class=n>{cell}" for cell in cells)
    return f'<tr><td class="name">{escape(one.step)}{numbers}<td class=word>{verdict(one)}</tr>'
