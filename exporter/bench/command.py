"""`tgi-probe bench`: which batch size to run, answered once, at a terminal or in a pipeline.

Its flags are those of TGI's benchmark tool, and the keys of a target and a workload.
"""

import argparse
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from pydantic import ValidationError

from exporter.bench.advice import Advice, Caps, advise, candidates, server_settings
from exporter.bench.compare import Difference, differences, mismatches
from exporter.bench.precision import Precision
from exporter.bench.reports import report_for
from exporter.bench.results import Results, read
from exporter.bench.shapes import SHAPES
from exporter.bench.summary import remarks
from exporter.bench.sweep import Sweep, SweepPlan
from exporter.bench.tables import as_csv, as_json, as_markdown, comparison_table
from exporter.config import sources
from exporter.config.errors import SettingsError, lines
from exporter.config.notation import counted, parse_duration
from exporter.config.target import KEYS_OF_KINDS, Target
from exporter.config.workload import Parameters, Workload
from exporter.observation import Failure
from exporter.probes.interface import Abandoned

SAMPLING = tuple(Parameters.model_fields)
REGRESSION = 3
NO_ADVICE = "No recommendation: no batch size has a throughput. Values are withheld while this machine is busy."
DEFAULT_TARGET = "unix:///tmp/text-generation-server-0"
# The keys of a target that are options. The others have mappings as values: a configuration file has them.
TARGET_KEYS = (
    "kv_cache",
    *Target.LIMITS,
    *(key for key in KEYS_OF_KINDS if key not in ("kv_cache", "extra_body", "tls")),
)
WORKLOAD_KEYS = ("sequence_length", "decode_length", "warmups", "timeout", "prompt_cache")
SWITCHES = ("yield_to_users",)
Named = TypeVar("Named", Target, Workload)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("what to probe")
    where.add_argument(
        "--target",
        "--master-shard-uds-path",
        "-m",
        metavar="ADDRESS",
        help=f"unix:///path, host:port or a URL; with --config the name of a target (default {DEFAULT_TARGET})",
    )
    where.add_argument("--kind", help="shard, fmaas or http (default http for a URL, else shard)")
    where.add_argument("--config", type=Path, metavar="FILE", help="take the target and the workload from this file")
    where.add_argument("--workload", metavar="NAME", help="with --config: which workload, if it has several")
    for key in TARGET_KEYS:
        flag = f"--{key.replace('_', '-')}"
        help_text = (Target.model_fields[key].description or "").replace("%", "%%")
        if key in SWITCHES:
            where.add_argument(flag, action="store_true", default=None, help=help_text)
        else:
            where.add_argument(flag, metavar="X", help=help_text)
    what = parser.add_argument_group("what to send")
    what.add_argument("--batch-size", "-b", action="append", metavar="N", help="repeatable (default 1 2 4 8 16 32)")
    shapes = "; ".join(
        f"{name}: {shape.sequence_length} in, {shape.decode_length} out, {shape.what}" for name, shape in SHAPES.items()
    )
    what.add_argument("--shape", choices=sorted(SHAPES), help=f"lengths by name. {shapes}")
    what.add_argument("--sequence-length", "-s", metavar="TOKENS", help="prompt tokens (default 10)")
    what.add_argument("--decode-length", "-d", metavar="TOKENS", help="tokens to generate (default 8)")
    what.add_argument("--timeout", help="of one probe (default 60s)")
    what.add_argument("--prompt-cache", metavar="X", help="miss or hit (default miss)")
    for name in SAMPLING:
        flag = f"--{name.replace('_', '-')}"
        if Parameters.model_fields[name].annotation is bool:
            what.add_argument(flag, action="store_true", default=None, help="sampling (default off)")
        else:
            what.add_argument(flag, metavar="X", help=f"sampling (default {Parameters.model_fields[name].default:g})")
    how = parser.add_argument_group("how often")
    how.add_argument("--runs", "-r", default="10", metavar="N", help="per batch size; auto: until they are precise")
    how.add_argument("--warmups", "-w", metavar="N", help="per batch size, not counted (default 1)")
    how.add_argument("--precision", default="5%", metavar="SHARE", help="of --runs auto (default 5%%)")
    how.add_argument("--max-time", default="60s", help="of --runs auto, per batch size (default 60s)")
    how.add_argument(
        "--percentile",
        default="50",
        choices=("50", "90", "99"),
        help="of latency: what --runs auto makes precise beside the median, and what the limits hold for (default 50)",
    )
    answer = parser.add_argument_group("what to answer")
    answer.add_argument("--max-ttft", metavar="TIME", help="the longest time to first token that users accept")
    answer.add_argument("--max-token-latency", metavar="TIME", help="the longest time per token that users accept")
    answer.add_argument("--baseline", type=Path, metavar="FILE", help="compare with these results (JSON)")
    answer.add_argument(
        "--min-change", default="5%", metavar="SHARE", help="a smaller change is no regression (default 5%%)"
    )
    answer.add_argument(
        "--output",
        "-o",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="write the results to a .json, .csv, .md or .html file; repeatable",
    )
    answer.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="of standard output (default table)"
    )
    answer.add_argument("--quiet", "-q", action="store_true", help="no live screen")


def run(options: argparse.Namespace) -> int:
    """Print the results, also of a sweep that ended early.

    The exit code is 0 for a complete sweep, 1 when it ended early, 2 for wrong options (SettingsError), 3 for a
    regression, and 128 + the signal's number after a signal (130 for Ctrl-C).
    """
    target, workload = _settings(options)
    plan = SweepPlan(target, workload, _runs(options.runs), _precision(options))
    caps = Caps(_time(options, "max_ttft"), _time(options, "max_token_latency"), quantile=int(options.percentile) / 100)
    smallest = _share(options, "min_change")
    writers = [(path, _writer(path)) for path in options.output]
    baseline = read(options.baseline) if options.baseline else None
    if baseline is not None:
        _check_baseline(options, baseline, workload)

    results, signals = _sweep(plan, options.quiet)
    answer = Answer(results, caps, baseline, smallest)
    for path, write in writers if results.batch_sizes else ():
        path.write_text(write(answer), encoding="utf-8")
    if results.batch_sizes:
        print({"table": Answer.markdown, "json": Answer.json, "csv": Answer.csv}[options.format](answer))
    if options.format != "table":  # which has these lines itself
        for line in remarks(results):
            print(line, file=sys.stderr)
    elif results.stopped:
        print(f"ended early: {results.stopped}", file=sys.stderr)
    if signals:
        return 128 + signals[0]
    if results.stopped:
        return 1
    return REGRESSION if any(one.regression for one in answer.compared or ()) else 0


def _sweep(plan: SweepPlan, quiet: bool) -> tuple[Results, list[int]]:
    """The results, and the signals that came meanwhile."""
    signals: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise Abandoned
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
        for number, handler in before.items():
            signal.signal(number, handler)
        report.end(waits=not signals and sys.exc_info()[0] is None, stopped=sweep.results.stopped)
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


def _check_baseline(options: argparse.Namespace, baseline: Results, workload: Workload) -> None:
    sent = Results(parameters=workload.model_dump(include={"sequence_length", "decode_length"}))
    if unlike := mismatches(baseline, sent):
        raise SettingsError([f"--baseline: {options.baseline}: {line}; send the same to compare" for line in unlike])


# --- the options


def _settings(options: argparse.Namespace) -> tuple[Target, Workload]:
    if options.config is not None:
        return _from_file(options)
    if options.workload is not None:
        raise SettingsError(["--workload: works together with --config only"])
    address = options.target or DEFAULT_TARGET
    url = address.startswith(("http://", "https://"))
    if not url and ":" not in address:
        address = f"unix://{address}"
    kind = options.kind or ("http" if url else "shard")
    given = {key: value for key in TARGET_KEYS if (value := getattr(options, key)) is not None}
    try:
        target = Target.model_validate({"name": "bench", "address": address, "kind": kind} | given)
        workload = Workload.model_validate(_workload_keys(options, {"name": "bench"}))
    except ValidationError as error:
        raise SettingsError([_as_flag(line) for line in lines(error)]) from None
    return target, _checked(target, workload)


def _from_file(options: argparse.Namespace) -> tuple[Target, Workload]:
    """A target and a workload of a configuration file. Options for what is sent take the place of the file's keys."""
    settings = sources.load(options.config)
    taken = [key for key in ("kind", *TARGET_KEYS) if getattr(options, key) is not None]
    if taken:
        flag = f"--{taken[0].replace('_', '-')}"
        raise SettingsError([f"{flag}: cannot stand beside --config; set it in {options.config}"])
    target = _named("--target", options.target, settings.targets, options.config)
    fitting = [
        one for one in settings.workloads if not one.is_load and (one.targets is None or target.name in one.targets)
    ]
    workload = _named("--workload", options.workload, fitting, options.config)
    try:
        merged = Workload.model_validate(_workload_keys(options, workload.model_dump(mode="json", exclude_unset=True)))
    except ValidationError as error:
        raise SettingsError([_as_flag(line) for line in lines(error)]) from None
    return target, _checked(target, merged)


def _named(flag: str, name: str | None, there: Sequence[Named], path: Path) -> Named:
    names = ", ".join(one.name for one in there) or "none"
    if name is None and len(there) == 1:
        return there[0]
    if name is None:
        raise SettingsError([f"{flag}: {path} has {names}; say which"])
    found = next((one for one in there if one.name == name), None)
    if found is None:
        raise SettingsError([f"{flag}: must be one of {path} ({names}), not '{name}'"])
    return found


def _workload_keys(options: argparse.Namespace, values: dict[str, object]) -> dict[str, object]:
    if options.shape is not None:
        shape = SHAPES[options.shape]
        values |= {"sequence_length": shape.sequence_length, "decode_length": shape.decode_length}
    values |= {key: value for key in WORKLOAD_KEYS if (value := getattr(options, key)) is not None}
    if options.batch_size:
        values["batch_sizes"] = options.batch_size
    given = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    parameters = values.get("parameters", {})
    return values | {"parameters": (parameters if isinstance(parameters, dict) else {}) | given}


def _checked(target: Target, workload: Workload) -> Workload:
    if target.kind == "shard" and (problems := workload.parameters.over_vocabulary()):
        raise SettingsError([_as_flag(f"{key}: {mend}") for key, mend in problems.items()])
    return workload


def _runs(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise SettingsError([f"--runs: must be a whole number ≥ 1, or auto, not '{text}'"])
    return int(text)


def _precision(options: argparse.Namespace) -> Precision:
    seconds = _time(options, "max_time")
    assert seconds is not None
    return Precision(_share(options, "precision"), int(options.percentile) / 100, seconds)


def _time(options: argparse.Namespace, key: str) -> float | None:
    text = getattr(options, key)
    try:
        return None if text is None else parse_duration(text)
    except (ValueError, TypeError) as error:
        raise SettingsError([f"--{key.replace('_', '-')}: {error}, not '{text}'"]) from None


def _share(options: argparse.Namespace, key: str) -> float:
    text = getattr(options, key)
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise SettingsError([f"--{key.replace('_', '-')}: must be a share such as 5%, not '{text}'"])
    return share


def _as_flag(line: str) -> str:
    """`parameters.top_p: must …` as `--top-p: must …`, the option that the user wrote."""
    place, mend = line.split(": ", 1)
    key = place.removeprefix("parameters.").split(".")[0]
    flag = {"batch_sizes": "batch-size", "address": "target"}.get(key, key.replace("_", "-"))
    return f"--{flag}: {mend}"
