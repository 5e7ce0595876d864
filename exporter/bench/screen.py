"""The live screen, a process of its own: drawing must not delay the probes. `python -m exporter.bench.screen FD`.

It reads events, one JSON object a line, from that file descriptor, and ends with it. `q` and Ctrl-C interrupt the
process that probes, as Ctrl-C without a screen does. Textual draws, plotext makes the charts.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import plotext  # type: ignore[import-untyped]
from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import Resize
from textual.widgets import Footer, ProgressBar, Static, Tab, Tabs

from exporter.bench.progress import Progress
from exporter.bench.summary import LATENCY, THROUGHPUT, Row, curve, remarks, rows, steady
from exporter.bench.tables import interval
from exporter.web.chart import ticks

# Okabe and Ito's blue and orange: told apart by colour-blind people, readable on dark and light.
BLUE, ORANGE = (86, 180, 233), (230, 159, 0)
DEEPEST_ZOOM = 5
BINS = 8
# A run may take a millisecond. To draw each would take the time of the server.
DRAW_SECONDS = 0.2
# From this width on there is room for the average too.
WIDE = 96
# A chart reaches that many times as far as its largest value: labels need room.
ROOM = 1.08


class Screen(App[None]):
    """Progress, a tab for each batch size with its statistics and histograms, and throughput over latency of all."""

    CSS = """
    Screen { layout: vertical; overflow: hidden; }
    #title { height: 1; text-style: bold; }
    #progress { height: 1; }
    #status { width: auto; margin: 0 1 0 0; }
    ProgressBar, Bar { width: 1fr; }
    Tabs { height: 2; }
    #statistics { height: auto; }
    #histograms { height: 1fr; }
    #curves { height: 1fr; }
    #histograms Static, #curves Static { width: 1fr; height: 100%; }
    #prefill-histogram, #prefill-curve { margin: 0 2 0 0; }
    #note { height: auto; max-height: 1; }
    """
    # Priority: Textual's own screen takes these keys to scroll and to change the focus.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,shift+tab", "turn(-1)", "previous batch size", key_display="←", priority=True),
        Binding("right,tab", "turn(1)", "next", key_display="→ Tab", priority=True),
        Binding("plus,equals_sign", "zoom(1)", "zoom in", key_display="+"),
        Binding("minus", "zoom(-1)", "zoom out", key_display="−"),
        Binding("q,ctrl+c", "interrupt", "quit", key_display="q", priority=True),
    ]
    ENABLE_COMMAND_PALETTE = False
    ESCAPE_TO_MINIMIZE = False

    def __init__(self, events: int) -> None:
        super().__init__()
        self._events = events
        self._progress = Progress()
        self._chosen: int | None = None  # the batch size whose tab was chosen; None: follow the sweep
        self._zoom = 0
        self._changed = False  # since it was drawn

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        with Horizontal(id="progress"):
            yield Static(id="status")
            yield ProgressBar(total=1.0, show_eta=False)
        yield Tabs()
        yield Static(id="statistics")
        with Horizontal(id="histograms"):
            yield Static(id="prefill-histogram")
            yield Static(id="decode-histogram")
        with Horizontal(id="curves"):
            yield Static(id="prefill-curve")
            yield Static(id="decode-curve")
        yield Static(id="note")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(Tabs).can_focus = False  # its keys are the whole screen's
        threading.Thread(target=self._read, daemon=True).start()
        self.set_interval(DRAW_SECONDS, self._draw_changes)

    def _read(self) -> None:
        with open(self._events, encoding="utf-8") as lines:
            for line in lines:
                self.call_from_thread(self._on_event, json.loads(line))
        self.call_from_thread(self.exit)

    def _on_event(self, event: dict[str, Any]) -> None:
        self._progress.apply(event, time.monotonic())
        if event["event"] == "plan":
            for size in self._progress.batch_sizes:
                self.query_one(Tabs).add_tab(Tab(str(size), id=f"size-{size}"))
        self._changed = True

    def _draw_changes(self) -> None:
        if self._changed:
            self._changed = False
            self._draw()

    def on_resize(self, _event: Resize) -> None:
        self.call_after_refresh(self._draw)

    # --- keys

    def action_turn(self, by: int) -> None:
        sizes = self._progress.batch_sizes
        if sizes:
            self._chosen = sizes[(sizes.index(self._shown() or sizes[0]) + by) % len(sizes)]
            self._draw()

    def action_zoom(self, by: int) -> None:
        self._zoom = min(DEEPEST_ZOOM, max(0, self._zoom + by))
        self._draw()

    def action_interrupt(self) -> None:
        if self._progress.done:
            self.exit()
        else:
            os.kill(os.getppid(), signal.SIGINT)

    async def action_quit(self) -> None:
        self.action_interrupt()

    # --- drawing

    def _shown(self) -> int | None:
        if self._chosen is not None:
            return self._chosen
        measured = [block.batch_size for block in self._progress.results.batch_sizes]
        return self._progress.now or (measured[-1] if measured else None)

    def _draw(self) -> None:
        progress, shown = self._progress, self._shown()
        self.query_one("#title", Static).update(progress.title)
        self.query_one("#status", Static).update(progress.status())
        self.query_one(ProgressBar).update(progress=progress.share())
        tabs = self.query_one(Tabs)
        if shown is not None and tabs.tab_count:
            tabs.active = f"size-{shown}"
        self.query_one("#statistics", Static).update(self._statistics(shown))
        said = progress.lines[-1] if progress.lines else next(iter(remarks(progress.results)), "")
        self.query_one("#note", Static).update(Text(said, overflow="ellipsis", no_wrap=True))
        for phase, key in (("prefill", "prefill_seconds"), ("decode", "token_seconds")):
            histogram = self.query_one(f"#{phase}-histogram", Static)
            title = "Prefill, ms" if phase == "prefill" else "Decode, ms per token"
            histogram.update(self._histogram(histogram, title, self._values(shown, key)))
            curve = self.query_one(f"#{phase}-curve", Static)
            curve.update(self._curve(curve, phase, shown))

    def _values(self, batch_size: int | None, key: str) -> list[float]:
        return [
            value * 1e3
            for block in self._progress.results.batch_sizes
            if block.batch_size == batch_size
            for run in steady(block)
            if (value := getattr(run, key)) is not None
        ]

    def _statistics(self, batch_size: int | None) -> Table:
        wide = self.size.width >= WIDE
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0))
        table.add_column("" if batch_size is None else f"batch size {batch_size}", no_wrap=True)
        for head in ("p50", "95 % interval", "p90", "p99", "lowest", "highest", *(["average"] if wide else [])):
            table.add_column(head, justify="right", no_wrap=True)
        for unit, factor, steps in (("ms", 1e3, LATENCY), ("tokens/s", 1.0, THROUGHPUT)):
            for row in rows(self._progress.results, steps):
                if row.batch_size == batch_size and row.step != "Decode (total)":
                    table.add_row(f"{row.step}, {unit}", *list(_cells(row, factor))[: len(table.columns) - 1])
        return table

    def _histogram(self, where: Static, title: str, values: Sequence[float]) -> Text:
        if len(values) < 2:
            return Text(f"{title}: too few runs yet" if self._progress.now else title, style="dim")
        chart = Chart(where, title)
        plotext.hist(values, bins=min(BINS, len(values)), color=BLUE)
        plotext.yticks([0])  # the heights are counts, and their sum is the number of runs
        return chart.text()

    def _curve(self, where: Static, phase: str, shown: int | None) -> Text:
        places = [(size, seconds * 1e3, rate) for size, seconds, rate in curve(self._progress.results, phase)]
        title = f"{phase.capitalize()}: tokens/s over ms" + (" per token" if phase == "decode" else "")
        if not places:
            return Text(title, style="dim")
        chart = Chart(where, title)
        xs, ys = [x for _, x, _ in places], [y for _, _, y in places]
        plotext.plot(xs, ys, marker="braille", color=BLUE)
        for size, x, y in sorted(places, key=lambda place: place[0] == shown):  # that one over the others
            label = f"[{size}]" if size == shown else str(size)  # not told by colour alone
            plotext.text(label, x, y, color=ORANGE if size == shown else BLUE, style="bold", alignment="center")
        middle = next(((x, y) for size, x, y in places if size == shown), (xs[-1], ys[-1]))
        chart.zoom(self._zoom, middle, (max(xs), max(ys)))
        return chart.text()


def _cells(row: Row, factor: float) -> Iterator[str]:
    if row.quantiles is None:
        yield from ("–",) * 7
        return
    middle, ninety, far = row.quantiles
    yield _number(middle.value, factor)
    yield interval(middle, factor, _number)
    for value in (ninety.value, far.value, row.lowest, row.highest, row.average):
        yield _number(value, factor)


def _number(value: float | None, factor: float) -> str:
    if value is None:
        return "–"
    return f"{value * factor:#.4g}" if value * factor < 1000 else f"{value * factor:.0f}"


class Chart:
    """Its title as the first line, and below it what was drawn with plotext since."""

    def __init__(self, where: Static, title: str) -> None:
        self._title = title.center(where.size.width)
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plotsize(max(20, where.size.width), max(4, where.size.height - 1))
        plotext.xaxes(True, False)
        plotext.yaxes(True, False)

    def zoom(self, level: int, middle: tuple[float, float], largest: tuple[float, float]) -> None:
        """From 0 to the largest values, with some room for labels; each level shows half as much, around the middle."""
        for limit, tick, at, most in (
            (plotext.xlim, plotext.xticks, middle[0], largest[0]),
            (plotext.ylim, plotext.yticks, middle[1], largest[1]),
        ):
            reach = most * ROOM / 2**level
            low = max(0.0, min(at - reach / 2, most * ROOM - reach))
            limit(low, low + reach)
            places = [place for place in ticks(low + reach) if low <= place <= low + reach]
            if len(places) > 1:
                tick(places, [f"{place:g}" for place in places])

    def text(self) -> Text:
        return Text(self._title + "\n", style="bold") + Text.from_ansi(plotext.build())


def main() -> None:
    # The terminal also sends Ctrl-C's signal to this process, before and after it reads keys one by one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Screen(int(sys.argv[1])).run()


if __name__ == "__main__":
    main()
