"""`tgi-probe bench`: one sweep over batch sizes, with the tables of TGI's benchmark tool.

Unlike that tool it clears its batches when it is interrupted, sorts values for percentiles, takes a decode length of 1,
and can write JSON or CSV. Percentiles interpolate between runs: with 10 runs a p99 is close to the highest.
"""

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from pydantic import ValidationError

from exporter.bench.tables import FORMATS, Row, Sweep, latency_rows, throughput_rows, withheld_lines
from exporter.config.errors import SettingsError, lines
from exporter.config.notation import counted
from exporter.config.target import Target
from exporter.config.workload import Parameters, Workload
from exporter.observation import Failure, Observation, Outcome, Series
from exporter.plan.safety import deadlock, excess
from exporter.probes.crash_check import ended_by
from exporter.probes.interface import Abandoned, Result
from exporter.probes.shard.prober import ShardProber

SAMPLING = tuple(Parameters.model_fields)
# How often a probe is sent whose values are uncertain, because this process was stopped or lacked CPU.
TRIES = 10


def sweep(target: Target, workload: Workload, runs: int, prober: ShardProber, stopping: Callable[[], bool]) -> Sweep:
    """Probe every batch size in turn. A daemon pauses until the prober is closed. The first failure ends the sweep,
    because the next batch would be larger.
    """
    latency: list[Row] = []
    throughput: list[Row] = []
    stopped = None
    for batch_size in workload.batch_sizes:
        print(
            f"batch size {batch_size}: {counted(workload.warmups, 'warm-up')}, {counted(runs, 'run')}", file=sys.stderr
        )
        try:
            if batch_size == workload.batch_sizes[0] and (danger := deadlock(target, prober.connect(workload.timeout))):
                print(as_flags(danger), file=sys.stderr)
            observations = [
                observe(target, workload, batch_size, prober, stopping) for _ in range(workload.warmups + runs)
            ]
        except (Failure, Abandoned) as end:
            stopped = f"batch size {batch_size}: {end if isinstance(end, Failure) else 'interrupted'}"
            break
        latency += latency_rows(batch_size, observations[workload.warmups :])
        throughput += throughput_rows(batch_size, observations[workload.warmups :])
    parameters = {"target": target.address, "runs": runs}
    parameters |= workload.model_dump(include={"sequence_length", "decode_length", "warmups"})
    return Sweep(parameters | workload.parameters.model_dump(), latency, throughput, stopped)


def probed(
    workload: Workload, batch_size: int, prober: ShardProber, stopping: Callable[[], bool]
) -> tuple[float, Result]:
    """When the last try began, and its result. Raises Failure, Abandoned."""
    for tries_left in reversed(range(TRIES)):
        started = time.perf_counter()
        result = prober.probe(workload, batch_size, stopping)
        if result.outcome is not Outcome.DISTURBED or not tries_left:
            return started, result
        if stopping():
            break
    raise Abandoned


def observe(
    target: Target, workload: Workload, batch_size: int, prober: ShardProber, stopping: Callable[[], bool]
) -> Observation:
    """One probe, when it is safe and no other prober has the shard; repeated where it was disturbed.

    Raises Failure, Abandoned.
    """
    if stopping():
        raise Abandoned
    facts = prober.connect(workload.timeout)
    why = prober.refusal(facts) or excess(target, workload, batch_size, facts)
    if why is not None:
        raise Failure(Outcome.REFUSED, "REFUSED", as_flags(why))
    prober.reserve(stopping, lambda line: print(line, file=sys.stderr, flush=True))
    series = Series(target.name, workload.name, batch_size)
    try:
        started, result = probed(workload, batch_size, prober, stopping)
    except Failure as failure:
        if ended_by(failure, prober, prober.quarantine, series, workload, facts):
            raise Failure(
                failure.outcome, failure.code, f"the server ended during this probe: {failure.detail}"
            ) from None
        raise
    if result.outcome is not Outcome.OK:
        raise Failure(result.outcome, result.code, result.detail)
    ended = time.perf_counter()
    return Observation(series, started, started, ended, result.outcome, result.code, streams=result.streams)


def as_flags(text: str) -> str:
    """A message about keys of a target, with the names of this command's options."""
    text = text.replace("kv_cache: ", "--kv-cache ")
    for key in Target.LIMITS:
        text = re.sub(rf"(?<!tgi_)\b{key}\b", f"--{key.replace('_', '-')}", text)
    return text


# --- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        "--master-shard-uds-path",
        default="unix:///tmp/text-generation-server-0",
        metavar="ADDRESS",
        help="unix:///path or host:port (default %(default)s)",
    )
    parser.add_argument("--kv-cache", help="consent to probe a paged shard: exclusive or reserved_block")
    parser.add_argument(
        "--max-batch-tokens", metavar="N", help="the KV cache in tokens; larger batches are not sent (paged: required)"
    )
    parser.add_argument("--max-prefill-tokens", metavar="N", help="the server's --max-batch-prefill-tokens")
    parser.add_argument("--max-total-tokens", metavar="N", help="the longest sequence that the model can take")
    parser.add_argument("--batch-size", action="append", metavar="N", help="repeatable (default 1 2 4 8 16 32)")
    parser.add_argument("--sequence-length", default="10", metavar="TOKENS", help="prompt tokens (default 10)")
    parser.add_argument("--decode-length", default="8", metavar="TOKENS", help="tokens to generate (default 8)")
    parser.add_argument("--runs", type=int, default=10, help="per batch size (default 10)")
    parser.add_argument("--warmups", default="1", help="per batch size, not counted (default 1)")
    parser.add_argument("--timeout", default="60s", help="of one probe (default 60s)")
    for name in SAMPLING:
        flag = f"--{name.replace('_', '-')}"
        if Parameters.model_fields[name].annotation is bool:
            parser.add_argument(flag, action="store_true", default=None, help="sampling (default off)")
        else:
            parser.add_argument(flag, metavar="X", help=f"sampling (default {Parameters.model_fields[name].default:g})")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="of the results")


def run(options: argparse.Namespace) -> int:
    """Print the results, also of a sweep that ended early.

    The exit code is 0 for a complete sweep, 1 when it ended early, 2 for wrong options (SettingsError), and 128 + the
    signal's number after a signal (130 for Ctrl-C).
    """
    target, workload = _settings(options)
    stop: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.append(number)
        if len(stop) > 1:
            raise Abandoned
        print("waiting for the call in flight; once more ends it", file=sys.stderr)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    prober = ShardProber(target)
    result = sweep(target, workload, options.runs, prober, lambda: bool(stop))
    try:
        prober.close()
    except (Failure, Abandoned) as end:
        why = end.detail if isinstance(end, Failure) else "interrupted while it was cleared"
        print(f"something of ours may be left in the server: {why}", file=sys.stderr)
    for number, handler in before.items():
        signal.signal(number, handler)
    if result.latency:
        print(FORMATS[options.format](result))
        if options.format != "table":  # which has these lines itself
            for line in withheld_lines(result):
                print(line, file=sys.stderr)
    if result.stopped:
        print(f"ended early: {result.stopped}", file=sys.stderr)
    if stop:
        return 128 + stop[0]
    return 1 if result.stopped else 0


def _settings(options: argparse.Namespace) -> tuple[Target, Workload]:
    if options.runs < 1:
        raise SettingsError([f"--runs: must be ≥ 1, not {options.runs}"])
    if options.target.startswith(("http://", "https://")):
        raise SettingsError(["--target: must be a shard, unix:///path or host:port; bench knows no router's URL"])
    address = options.target if ":" in options.target else f"unix://{options.target}"
    try:
        target = Target.model_validate(
            {"name": "bench", "address": address} | {key: getattr(options, key) for key in ("kv_cache", *Target.LIMITS)}
        )
        given = {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}
        keys = ("sequence_length", "decode_length", "warmups", "timeout")
        values = {key: getattr(options, key) for key in keys} | {"name": "bench", "parameters": given}
        if options.batch_size:
            values["batch_sizes"] = options.batch_size
        workload = Workload.model_validate(values)
    except ValidationError as error:
        raise SettingsError([_as_flag(line) for line in lines(error)]) from None
    if problems := workload.parameters.over_vocabulary():
        raise SettingsError([_as_flag(f"{key}: {mend}") for key, mend in problems.items()])
    return target, workload


def _as_flag(line: str) -> str:
    """`parameters.top_p: must …` as `--top-p: must …`, the option that the user wrote."""
    place, mend = line.split(": ", 1)
    key = place.removeprefix("parameters.").split(".")[0]
    flag = {"batch_sizes": "batch-size", "address": "target"}.get(key, key.replace("_", "-"))
    return f"--{flag}: {mend}"
