"""`tgi-probe bench`: which batch size to run, answered once, at a terminal or in a pipeline."""

import argparse
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from exporter.bench.advice import NO_ADVICE, Advice, Caps, advise, candidates, server_settings
from exporter.bench.compare import MUST_MATCH, Difference, differences, mismatches
from exporter.bench.options import precision_of, runs_of, share_of, target_and_workload, time_of
from exporter.bench.reports import report_for
from exporter.bench.results import Results, read
from exporter.bench.summary import remarks
from exporter.bench.sweep import Sweep, SweepPlan
from exporter.bench.tables import as_csv, as_json, as_markdown, comparison_table
from exporter.config.errors import SettingsError
from exporter.config.notation import counted
from exporter.config.workload import Workload
from exporter.observation import Failure
from exporter.probes.interface import Abandoned

REGRESSION = 3


def run(options: argparse.Namespace) -> int:
    """Print the results, also of a sweep that ended early.

    The exit code is 0 for a complete sweep, 1 when it ended early, 2 for wrong options (SettingsError), 3 for a
    regression, and 128 + the signal's number after a signal (130 for Ctrl-C).
    """
    target, workload = target_and_workload(options)
    plan = SweepPlan(target, workload, runs_of(options.runs), precision_of(options))
    caps = Caps(
        time_of(options, "max_ttft"), time_of(options, "max_token_latency"), quantile=int(options.percentile) / 100
    )
    smallest = share_of(options, "min_change")
    writers = [(path, _writer(path)) for path in options.output]
    baseline = read(options.baseline) if options.baseline else None
    if baseline is not None:
        _check_baseline(options, baseline, workload)

    results, signals = _sweep(plan, options.quiet)
    answer = Answer(results, caps, baseline, smallest)
    if results.batch_sizes:
        print({"table": Answer.markdown, "json": Answer.json, "csv": Answer.csv}[options.format](answer))
    not_written = [path for path, write in writers if results.batch_sizes and not _written(path, write(answer))]
    if options.format != "table":  # which has these lines itself
        for line in remarks(results):
            print(line, file=sys.stderr)
    elif results.stopped:
        print(f"ended early: {results.stopped}", file=sys.stderr)
    if signals:
        return 128 + signals[0]
    if results.stopped or not_written:
        return 1
    return REGRESSION if any(one.regression for one in answer.compared or ()) else 0


def _sweep(plan: SweepPlan, quiet: bool) -> tuple[Results, list[int]]:
    """The results, and the signals that came meanwhile."""
    signals: list[int] = []
    is_over = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if is_over:
            report.close()
        elif len(signals) > 1:
            raise Abandoned
        else:
            report.said("waiting for the call in flight; once more ends it")

    report = report_for(plan, quiet)
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    left: str | None = None
    sweep = Sweep(plan, lambda: bool(signals), report)
    try:
        try:
            sweep.run()
        except Abandoned:
            sweep.results = sweep.results.model_copy(update={"stopped": "interrupted"})
        try:
            sweep.close()
        except (Failure, Abandoned) as end:
            left = end.detail if isinstance(end, Failure) else "interrupted while it was cleared"
    finally:
        is_over = True
        report.end(waits=not signals and sys.exc_info()[0] is None, stopped=sweep.results.stopped)
        for number, handler in before.items():
            signal.signal(number, handler)
    if left is not None:
        print(f"something of ours may be left in the server: {left}", file=sys.stderr)
    return sweep.results, signals


class Answer:
    """The results with what follows from them, in each form."""

    def __init__(self, results: Results, caps: Caps, baseline: Results | None, smallest: float) -> None:
        self.results = results
        self.advice: list[Advice] = list(advise(candidates(results, caps.quantile), caps))
        self.compared: list[Difference] | None = None if baseline is None else differences(baseline, results, smallest)
        # The last goal weighs the others against each other.
        chosen = self.advice[-1].batch_size if self.advice else None
        lengths = (results.parameters.get("sequence_length", 0), results.parameters.get("decode_length", 0))
        self.settings: Sequence[str] = () if chosen is None else server_settings(chosen, *lengths)

    def markdown(self) -> str:
        parts = [as_markdown(self.results), "\n".join(remarks(self.results))]
        if self.compared is not None:
            worse = sum(one.regression for one in self.compared)
            parts += ["Compared with the baseline:", comparison_table(self.compared)]
            parts.append(f"{counted(worse, 'regression')}." if worse else "No regression beyond noise.")
        parts += ["\n".join(self.sentences())]
        return "\n\n".join(part for part in parts if part)

    def sentences(self) -> Iterator[str]:
        """The advice, and what the last of it means for a server's options."""
        if not self.advice:
            yield NO_ADVICE
        for one in self.advice:
            size = "no batch size" if one.batch_size is None else f"batch size {one.batch_size}"
            others = f" Perhaps also {', '.join(map(str, one.others))}: more runs will tell." if one.others else ""
            yield from _wrapped(f"{one.goal}: **{size}** ({one.why}).{others}")
        if self.settings:
            yield from ("", f"Batch size {self.advice[-1].batch_size} means for the server's own options:", "")
            for line in self.settings:
                yield from _wrapped(line)

    def json(self) -> str:
        return as_json(self.results)

    def csv(self) -> str:
        return as_csv(self.results).rstrip("\n")

    def html(self) -> str:
        from exporter.bench.html_report import page

        return page(self.results, self.advice, self.settings, self.compared)


def _wrapped(text: str) -> list[str]:
    """An item of a Markdown list, at most 100 columns wide."""
    return textwrap.wrap(f"- {text}", 100, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _writer(path: Path) -> Callable[[Answer], str]:
    """What writes such a file. Raises SettingsError, before anything is sent, where it could not be written."""
    writers: dict[str, Callable[[Answer], str]] = {
        ".json": lambda answer: answer.json() + "\n",
        ".csv": lambda answer: answer.csv() + "\n",
        ".md": lambda answer: answer.markdown() + "\n",
        ".html": Answer.html,
    }
    if path.suffix not in writers:
        raise SettingsError([f"--output: must end in {', '.join(writers)}, not '{path}'"])
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingsError([f"--output: {path} cannot be written; choose another file"])
    return writers[path.suffix]


def _written(path: Path, text: str) -> bool:
    """Whether that was possible; if not, a line says why."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"--output: {path} cannot be written: {error.strerror}", file=sys.stderr)
        return False
    return True


def _check_baseline(options: argparse.Namespace, baseline: Results, workload: Workload) -> None:
    sent = Results(parameters=workload.model_dump(include=set(MUST_MATCH)))
    if unlike := mismatches(baseline, sent):
        raise SettingsError([f"--baseline: {options.baseline}: {line}; send the same to compare" for line in unlike])
