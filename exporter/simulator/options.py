"""Every constant of the simulator as a command line option, parsed once into a frozen `Config`."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from exporter.simulator.roofline import GPUS, MODELS, Roofline

Protocol = Literal["v3", "v2"]
Attention = Literal["padded", "paged"]


class OptionError(ValueError):
    """An option has a value which cannot be; the message is one line and names the option."""


@dataclass(frozen=True)
class Config:
    """What to simulate. `listen` is unix:///path (rank n listens on path-n) or host:port (port + n; port 0 = any free).

    `max_batch_tokens` is the KV cache in tokens, None = what fits beside the weights. `rank_timeout` in seconds.
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
    rank_timeout: float = 120.0
    jitter: float = 0.03
    seed: int = 0
    record: Path | None = None
    record_limit: int = 10_000
    admin_address: str | None = None

    def __post_init__(self) -> None:
        if self.kv_tokens < 1:
            model, gpu = self.roofline.model, self.roofline.gpu
            needed, usable = model.weight_bytes / 1e9, gpu.memory * self.roofline.memory_share / 1e9
            raise OptionError(
                f"{model.name} needs {needed:.0f} GB for its weights, {self.ranks} x {gpu.name} has {usable:.0f} GB"
                " each: give more --ranks or fewer --bytes-per-parameter"
            )

    @property
    def ranks(self) -> int:
        return self.roofline.ranks

    @property
    def kv_tokens(self) -> int:
        """The KV cache in tokens."""
        return self.roofline.kv_capacity if self.max_batch_tokens is None else self.max_batch_tokens


def _number(least: float, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (least < value if above else least <= value) or not value <= most or math.isinf(value):
            bound = f"above {least:g}" if above else f"at least {least:g}"
            raise ValueError(bound if math.isinf(most) else f"{bound} and at most {most:g}")
        return value

    return parse


def _whole(least: int, most: int = 2**63) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise ValueError(f"a whole number from {least}" + ("" if most == 2**63 else f" to {most}"))
        return value

    return parse


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError("one of " + ", ".join(names))
        return text

    return parse


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
    host_and_port(text)
    return text


def _address(text: str) -> str:
    host_and_port(text)
    return text


_POSITIVE = _number(0, above=True)
_SHARE = _number(0, 1, above=True)


@dataclass(frozen=True)
class _Option:
    """`owner` is which value it belongs to; a Gpu or Model option left out keeps the preset's number."""

    flag: str
    owner: Literal["config", "roofline", "gpu", "model", "preset"]
    field: str
    parse: Callable[[str], Any]
    help: str
    factor: float | None = None

    @property
    def destination(self) -> str:
        return "simulate_" + self.flag.removeprefix("--").replace("-", "_")


_OPTIONS = (
    _Option("--listen", "config", "listen", _listen, "unix:///PATH (rank n: PATH-n) or HOST:PORT (port + n)"),
    _Option("--protocol", "config", "protocol", _one_of("v3", "v2"), "generate.v3 or generate.v2"),
    _Option("--ranks", "roofline", "ranks", _whole(1, 64), "tensor parallel ranks, one server each"),
    _Option("--attention", "config", "attention", _one_of("padded", "paged"), "padded, or paged KV cache"),
    _Option("--attention-name", "config", "attention_name", str, "attention_impl which Info tells"),
    _Option("--block-size", "config", "block_size", _whole(1, 4096), "tokens per KV block"),
    _Option("--speculate", "config", "speculate", _whole(0, 64), "guessed tokens a decode step may add"),
    _Option("--dtype", "config", "dtype", str, "dtype which Info tells"),
    _Option("--device", "config", "device", str, "device type which Info tells"),
    _Option("--gpu", "preset", "gpu", _one_of(*GPUS), "preset: " + ", ".join(GPUS)),
    _Option("--model", "preset", "model", _one_of(*MODELS), "preset: " + ", ".join(MODELS)),
    _Option("--peak-tflops", "gpu", "peak_flops", _POSITIVE, "dense 16-bit peak of one GPU, Tflop/s", 1e12),
    _Option("--memory-bandwidth", "gpu", "memory_bandwidth", _POSITIVE, "of one GPU, GB/s", 1e9),
    _Option("--memory", "gpu", "memory", _POSITIVE, "of one GPU, GB", 1e9),
    _Option("--parameters", "model", "parameters", _POSITIVE, "of the model, in billions", 1e9),
    _Option("--layers", "model", "layers", _whole(1), "transformer layers"),
    _Option("--hidden-size", "model", "hidden_size", _whole(1), "width of the model"),
    _Option("--kv-heads", "model", "kv_heads", _whole(1), "key/value heads"),
    _Option("--head-dim", "model", "head_dim", _whole(1), "values per head"),
    _Option("--max-positions", "model", "max_positions", _whole(1), "longest sequence, tokens"),
    _Option("--bytes-per-parameter", "model", "bytes_per_parameter", _POSITIVE, "2 = 16 bit, 1 = 8 bit, 0.5 = 4 bit"),
    _Option("--bytes-per-kv-value", "model", "bytes_per_kv_value", _POSITIVE, "bytes of one cached value"),
    _Option("--max-batch-tokens", "config", "max_batch_tokens", _whole(1), "KV cache in tokens; default: what fits"),
    _Option("--compute-efficiency", "roofline", "compute_efficiency", _SHARE, "share of peak flop/s reached"),
    _Option("--memory-efficiency", "roofline", "memory_efficiency", _SHARE, "share of memory bandwidth reached"),
    _Option("--memory-share", "roofline", "memory_share", _SHARE, "share of GPU memory for weights and KV cache"),
    _Option("--overhead", "roofline", "overhead_seconds", _number(0), "fixed time of every pass, seconds"),
    _Option("--all-reduce", "roofline", "all_reduce_seconds", _number(0), "one exchange between ranks, seconds"),
    _Option("--slowdown", "roofline", "slowdown", _POSITIVE, "factor on the time of every pass"),
    _Option("--speed", "roofline", "speed", _POSITIVE, "simulated seconds per real second"),
    _Option("--jitter", "config", "jitter", _number(0, 2), "sigma of the lognormal jitter, 0 = none"),
    _Option("--seed", "config", "seed", _whole(0), "of jitter and speculation"),
    _Option(
        "--rank-timeout", "config", "rank_timeout", _POSITIVE, "seconds a rank waits for the others before it dies"
    ),
    _Option("--record", "config", "record", Path, "append every served call to this file, JSON lines"),
    _Option("--record-limit", "config", "record_limit", _whole(1), "served calls kept in memory"),
    _Option(
        "--admin-address", "config", "admin_address", _address, "HOST:PORT of the admin HTTP server; default: none"
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the simulator's options. Values stay text until `config_from`, so that every mistake reads alike."""
    group = parser.add_argument_group("simulated shard")
    for option in _OPTIONS:
        shown = "" if (default := _default(option)) is None else f" (default {default})"
        group.add_argument(
            option.flag,
            dest=option.destination,
            metavar=option.flag.rpartition("-")[2].upper(),
            help=(option.help + shown).replace("%", "%%"),
        )
    group.add_argument(
        "--neuron", dest="simulate_neuron", action="store_true", help="report no timings, as neuron does"
    )


def config_from(arguments: argparse.Namespace) -> Config:
    """The Config of parsed arguments; raises OptionError."""
    given: dict[str, dict[str, Any]] = {}
    for option in _OPTIONS:
        text: str | None = getattr(arguments, option.destination, None)
        if text is not None:
            given.setdefault(option.owner, {})[option.field] = _parsed(option, text)
    start = Roofline()
    preset = given.get("preset", {})
    gpu = replace(GPUS[preset.get("gpu", start.gpu.name)], **given.get("gpu", {}))
    model = replace(MODELS[preset.get("model", start.model.name)], **given.get("model", {}))
    roofline = replace(start, gpu=gpu, model=model, **given.get("roofline", {}))
    neuron: bool = getattr(arguments, "simulate_neuron", False)
    return Config(roofline=roofline, neuron=neuron, **given.get("config", {}))


def _parsed(option: _Option, text: str) -> Any:
    try:
        value = option.parse(text)
    except ValueError as error:
        expected = str(error)
        if "could not convert" in expected or "invalid literal" in expected:
            expected = "a number"
        raise OptionError(f"{option.flag} {text}: expected {expected}") from None
    return value if option.factor is None else value * option.factor


def _default(option: _Option) -> object:
    if option.owner == "preset":
        name: str = getattr(Roofline(), option.field).name
        return name
    if option.owner not in ("config", "roofline"):
        return None
    owner = Config if option.owner == "config" else Roofline
    return next(known.default for known in fields(owner) if known.name == option.field)
