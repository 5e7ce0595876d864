"""The options of `bench`: those of TGI's benchmark tool, and the keys of a target and a workload."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from exporter.bench.precision import Precision
from exporter.bench.shapes import SHAPES
from exporter.config import sources
from exporter.config.errors import SettingsError, lines
from exporter.config.notation import parse_duration
from exporter.config.target import KEYS_OF_KINDS, Target
from exporter.config.workload import Parameters, Workload

SAMPLING = tuple(Parameters.model_fields)
DEFAULT_TARGET = "unix:///tmp/text-generation-server-0"
# The keys of a target that are options. The others have mappings as values: a configuration file has them.
TARGET_KEYS = (
    "kv_cache",
    *Target.LIMITS,
    *(key for key in KEYS_OF_KINDS if key not in ("kv_cache", "extra_body", "headers", "tls")),
)
WORKLOAD_KEYS = ("sequence_length", "decode_length", "warmups", "timeout", "prompt_cache")
SWITCHES = ("yield_to_users",)
Named = TypeVar("Named", Target, Workload)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _what_to_probe(parser.add_argument_group("what to probe"))
    _what_to_send(parser.add_argument_group("what to send"))
    _how_often(parser.add_argument_group("how often"))
    _what_to_answer(parser.add_argument_group("what to answer"))


def _what_to_probe(where: argparse._ArgumentGroup) -> None:
    where.add_argument(
        "--target",
        "--master-shard-uds-path",
        "-m",
        metavar="ADDRESS",
        help=f"unix:///path, host:port or a URL; with --config the name of a target (default {DEFAULT_TARGET})",
    )
    where.add_argument("--kind", help="shard, fmaas, http, vllm or sglang (default http for a URL, else shard)")
    where.add_argument("--config", type=Path, metavar="FILE", help="take the target and the workload from this file")
    where.add_argument("--workload", metavar="NAME", help="with --config: which workload, if it has several")
    for key in TARGET_KEYS:
        flag = f"--{key.replace('_', '-')}"
        help_text = (Target.model_fields[key].description or "").replace("%", "%%")
        if key in SWITCHES:
            where.add_argument(flag, action="store_true", default=None, help=help_text)
        else:
            where.add_argument(flag, metavar="X", help=help_text)


def _what_to_send(what: argparse._ArgumentGroup) -> None:
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


def _how_often(how: argparse._ArgumentGroup) -> None:
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


def _what_to_answer(answer: argparse._ArgumentGroup) -> None:
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


def target_and_workload(options: argparse.Namespace) -> tuple[Target, Workload]:
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


def runs_of(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise SettingsError([f"--runs: must be a whole number ≥ 1, or auto, not '{text}'"])
    return int(text)


def precision_of(options: argparse.Namespace) -> Precision:
    seconds = time_of(options, "max_time")
    assert seconds is not None
    return Precision(share_of(options, "precision"), int(options.percentile) / 100, seconds)


def time_of(options: argparse.Namespace, key: str) -> float | None:
    text = getattr(options, key)
    try:
        return None if text is None else parse_duration(text)
    except (ValueError, TypeError) as error:
        raise SettingsError([f"--{key.replace('_', '-')}: {error}, not '{text}'"]) from None


def share_of(options: argparse.Namespace, key: str) -> float:
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
