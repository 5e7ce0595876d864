"""The command-line options of the simulated shard, and the frozen `Config` made of them."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from exporter.simulator.roofline import GPUS, MODELS, Roofline

Protocol = Literal["v3", "v2"]
Attention = Literal["padded", "paged"]


class OptionError(ValueError):
    """An option has a wrong value. The message is one line and names the option."""


@dataclass(frozen=True)
class Config:
    """What to simulate. `listen` is unix:///path (rank n listens on path-n) or host:port (port + n; port 0 = any free).

    `max_batch_tokens` is the KV cache in tokens, None = what fits beside the weights. `rank_timeout` in seconds.
    `kv_contents`: answers depend on what the KV cache holds, so that a user's answer changes when another client writes
    into its places. `tokenizer_seconds` is the time for each token of text, truncated ones included: a fast tokenizer
    makes about a million tokens per second. `warmed_up`: whether a router has called Warmup; before, a paged shard has
    no KV cache.
    """

    roofline: Roofline = field(default_factory=Roofline)
    listen: str = "127.0.0.1:0"
    protocol: Protocol = "v3"
    attention: Attention = "padded"
    attention_name: str = "paged"
    block_size: int = 16
    speculate: int = 0
    neuron: bool = False
    dtype: str = "torch.float16"
    device: str = "cuda"
    max_batch_tokens: int | None = None
    vocabulary: int = 128_256
    kv_contents: bool = False
    warmed_up: bool = True
    rank_timeout: float = 120.0
    tokenizer_seconds: float = 1e-6
    jitter: float = 0.03
    seed: int = 0
    record: Path | None = None
    record_limit: int = 10_000
    admin_address: str | None = None

    def __post_init__(self) -> None:
        check_fit(self.roofline, self.kv_tokens)

    @property
    def ranks(self) -> int:
        return self.roofline.ranks

    @property
    def kv_tokens(self) -> int:
        """The KV cache in tokens."""
        return self.roofline.kv_capacity if self.max_batch_tokens is None else self.max_batch_tokens


def check_fit(roofline: Roofline, kv_tokens: int) -> None:
    """OptionError when the weights leave no room for a KV cache."""
    if kv_tokens < 1:
        model, gpu = roofline.model, roofline.gpu
        needed, usable = model.weight_bytes / 1e9, gpu.memory * roofline.memory_share / 1e9
        raise OptionError(
            f"{model.name} needs {needed:.0f} GB for its weights, {roofline.ranks} x {gpu.name} has {usable:.0f} GB"
            " each: give more --ranks or fewer --bytes-per-parameter"
        )


def number(least: float, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (least < value if above else least <= value) or not value <= most or math.isinf(value):
            bound = f"above {least:g}" if above else f"at least {least:g}"
            raise ValueError(bound if math.isinf(most) else f"{bound} and at most {most:g}")
        return value

    return parse


def whole(least: int, most: int = 2**63) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise ValueError(f"a whole number from {least}" + ("" if most == 2**63 else f" to {most}"))
        return value

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError("one of " + ", ".join(names))
        return text

    return parse


def switch(text: str) -> bool:
    return one_of("on", "off")(text) == "on"


def host_and_port(text: str) -> tuple[str, int]:
    """Split host:port; a ValueError says what is wrong. An empty host is 127.0.0.1, never every interface."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError("host:port with a port from 0 to 65535")
    return host or "127.0.0.1", int(port)


def _listen(text: str) -> str:
    if text.startswith("unix:"):
        if not text.removeprefix("unix:").strip("/"):
            raise ValueError("unix:///path or host:port")
        return text
    try:
        host_and_port(text)
    except ValueError as error:
        raise ValueError(f"unix:///path, or {error}") from None
    return text


def address(text: str) -> str:
    host_and_port(text)
    return text


POSITIVE = number(0, above=True)
SHARE = number(0, 1, above=True)


@dataclass(frozen=True)
class Option:
    """`shape` stands for the value in the help. `owner` is which object has the field; a Gpu or Model option left out
    keeps the preset's number.
    """

    flag: str
    shape: str
    owner: Literal["config", "roofline", "gpu", "model", "preset", "limits", "router"]
    field: str
    parse: Callable[[str], Any]
    help: str
    factor: float | None = None

    @property
    def destination(self) -> str:
        return "simulate_" + self.flag.removeprefix("--").replace("-", "_")


OPTIONS = (
    Option("--listen", "ADDRESS", "config", "listen", _listen, "unix:///PATH (rank n: PATH-n) or HOST:PORT (port + n)"),
    Option("--protocol", "v3|v2", "config", "protocol", one_of("v3", "v2"), "generate.v3 or generate.v2"),
    Option("--ranks", "COUNT", "roofline", "ranks", whole(1, 64), "tensor parallel ranks, one server each"),
    Option(
        "--attention", "padded|paged", "config", "attention", one_of("padded", "paged"), "padded, or paged KV cache"
    ),
    Option("--attention-name", "NAME", "config", "attention_name", str, "attention_impl which Info tells"),
    Option("--block-size", "TOKENS", "config", "block_size", whole(1, 4096), "tokens per KV block"),
    Option("--speculate", "TOKENS", "config", "speculate", whole(0, 64), "guessed tokens a decode step may add"),
    Option("--dtype", "NAME", "config", "dtype", str, "dtype which Info tells"),
    Option("--device", "NAME", "config", "device", str, "device type which Info tells"),
    Option("--gpu", "|".join(GPUS), "preset", "gpu", one_of(*GPUS), "preset: " + ", ".join(GPUS)),
    Option("--model", "|".join(MODELS), "preset", "model", one_of(*MODELS), "preset: " + ", ".join(MODELS)),
    Option("--peak-tflops", "TFLOPS", "gpu", "peak_flops", POSITIVE, "dense 16-bit peak of one GPU, Tflop/s", 1e12),
    Option("--memory-bandwidth", "GB/S", "gpu", "memory_bandwidth", POSITIVE, "of one GPU, GB/s", 1e9),
    Option("--memory", "GB", "gpu", "memory", POSITIVE, "of one GPU, GB", 1e9),
    Option("--parameters", "BILLIONS", "model", "parameters", POSITIVE, "of the model, in billions", 1e9),
    Option("--layers", "COUNT", "model", "layers", whole(1), "transformer layers"),
    Option("--hidden-size", "COUNT", "model", "hidden_size", whole(1), "width of the model"),
    Option("--kv-heads", "COUNT", "model", "kv_heads", whole(1), "key/value heads"),
    Option("--head-dim", "COUNT", "model", "head_dim", whole(1), "values per head"),
    Option("--max-positions", "TOKENS", "model", "max_positions", whole(1), "longest sequence, tokens"),
    Option(
        "--bytes-per-parameter", "BYTES", "model", "bytes_per_parameter", POSITIVE, "2 = 16 bit, 1 = 8 bit, 0.5 = 4 bit"
    ),
    Option("--bytes-per-kv-value", "BYTES", "model", "bytes_per_kv_value", POSITIVE, "bytes of one cached value"),
    Option(
        "--max-batch-tokens", "TOKENS", "config", "max_batch_tokens", whole(1), "KV cache in tokens; default: what fits"
    ),
    Option(
        "--vocabulary", "TOKENS", "config", "vocabulary", whole(1), "tokens the model knows; above it top_k ends it"
    ),
    Option("--kv-contents", "on|off", "config", "kv_contents", switch, "on: answers depend on what the KV cache holds"),
    Option("--warmed-up", "on|off", "config", "warmed_up", switch, "off: no router has called Warmup yet"),
    Option("--compute-efficiency", "SHARE", "roofline", "compute_efficiency", SHARE, "share of peak flop/s reached"),
    Option("--memory-efficiency", "SHARE", "roofline", "memory_efficiency", SHARE, "share of memory bandwidth reached"),
    Option(
        "--memory-share", "SHARE", "roofline", "memory_share", SHARE, "share of GPU memory for weights and KV cache"
    ),
    Option("--overhead", "SECONDS", "roofline", "overhead_seconds", number(0), "fixed time of every pass, seconds"),
    Option(
        "--all-reduce", "SECONDS", "roofline", "all_reduce_seconds", number(0), "one exchange between ranks, seconds"
    ),
    Option("--slowdown", "FACTOR", "roofline", "slowdown", POSITIVE, "factor on the time of every pass"),
    Option("--speed", "FACTOR", "roofline", "speed", POSITIVE, "simulated seconds per real second"),
    Option(
        "--tokenizer", "SECONDS", "config", "tokenizer_seconds", number(0), "tokenising, seconds for each token of text"
    ),
    Option("--jitter", "SIGMA", "config", "jitter", number(0, 2), "sigma of the lognormal jitter, 0 = none"),
    Option("--seed", "NUMBER", "config", "seed", whole(0), "of jitter and speculation"),
    Option(
        "--rank-timeout",
        "SECONDS",
        "config",
        "rank_timeout",
        POSITIVE,
        "seconds a rank waits for the others before it dies",
    ),
    Option("--record", "FILE", "config", "record", Path, "append every served call to this file, JSON lines"),
    Option("--record-limit", "COUNT", "config", "record_limit", whole(1), "served calls kept in memory"),
    Option(
        "--admin-address",
        "HOST:PORT",
        "config",
        "admin_address",
        address,
        "HOST:PORT of the admin HTTP server; default: none",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the shard's options. Values stay text until `config_from`, so that all errors have one form."""
    group = parser.add_argument_group("simulated shard")
    add_options(group, OPTIONS, {"config": Config, "roofline": Roofline})
    group.add_argument(
        "--neuron", dest="simulate_neuron", action="store_true", help="report no timings, as neuron does"
    )


def add_options(group: argparse._ArgumentGroup, options: Sequence[Option], owners: Mapping[str, Any]) -> None:
    """Add options, with the defaults of their owners' dataclasses in the help."""
    for option in options:
        shown = "" if (default := _default(option, owners)) is None else f" (default {default})"
        group.add_argument(
            option.flag,
            dest=option.destination,
            metavar=option.shape,
            help=(option.help + shown).replace("%", "%%"),
        )


def config_from(arguments: argparse.Namespace) -> Config:
    """The Config of parsed arguments; raises OptionError."""
    given = given_in(arguments)
    neuron: bool = getattr(arguments, "simulate_neuron", False)
    return Config(roofline=roofline_from(given), neuron=neuron, **given.get("config", {}))


def listens(arguments: argparse.Namespace) -> bool:
    """Whether the shard was given an address."""
    return getattr(arguments, "simulate_listen", None) is not None


def given_in(arguments: argparse.Namespace, more: Sequence[Option] = ()) -> dict[str, dict[str, Any]]:
    """The parsed values of our options (and `more`) by owner and field; what was not given is not there."""
    given: dict[str, dict[str, Any]] = {}
    for option in (*OPTIONS, *more):
        text: str | None = getattr(arguments, option.destination, None)
        if text is not None:
            given.setdefault(option.owner, {})[option.field] = _parsed(option, text)
    return given


def roofline_from(given: dict[str, dict[str, Any]]) -> Roofline:
    start = Roofline()
    preset = given.get("preset", {})
    gpu = replace(GPUS[preset.get("gpu", start.gpu.name)], **given.get("gpu", {}))
    model = replace(MODELS[preset.get("model", start.model.name)], **given.get("model", {}))
    return replace(start, gpu=gpu, model=model, **given.get("roofline", {}))


def _parsed(option: Option, text: str) -> Any:
    try:
        value = option.parse(text)
    except ValueError as error:
        expected = str(error)
        if "could not convert" in expected or "invalid literal" in expected:
            expected = "a number"
        raise OptionError(f"{option.flag} {text}: expected {expected}") from None
    return value if option.factor is None else value * option.factor


def _default(option: Option, owners: Mapping[str, Any]) -> object:
    """None where the help says it, or there is none."""
    if option.owner == "preset":
        name: str = getattr(Roofline(), option.field).name
        return name
    if option.owner not in owners or "default:" in option.help:
        return None
    default = next((known.default for known in fields(owners[option.owner]) if known.name == option.field), None)
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else default
