"""The command-line options of the simulated router, and the `RouterConfig` made of them."""

import argparse
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from exporter.simulator.batcher import AdmissionLimits
from exporter.simulator.options import (
    Option,
    OptionError,
    add_options,
    address,
    check_fit,
    given_in,
    number,
    one_of,
    roofline_from,
    switch,
    whole,
)
from exporter.simulator.roofline import Roofline

SHARED = ("jitter", "seed", "record", "record_limit")  # the fields of Config that mean the same for a router


@dataclass(frozen=True)
class ServerTls:
    """Files in PEM. With `client_ca` a client must show a certificate signed by it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class RouterConfig:
    """What to simulate. `http` and `grpc` are host:port (port 0 = any free), None = not served.

    `stream_errors`: a failure before the first token of a stream is sent as an event after status 200, as TGI does,
    or as the status, as most OpenAI-like servers do. `eos` is the probability of each token to be the model's last.
    `fragment` cuts everything that is written into pieces of that many bytes. `grpc_server`: our own on h2, whose
    record is exact to a fraction of a millisecond, or the gRPC project's.
    """

    roofline: Roofline = field(default_factory=Roofline)
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    http: str | None = "127.0.0.1:0"
    grpc: str | None = "127.0.0.1:0"
    tls: ServerTls | None = None
    token: str | None = None
    model_id: str = "embedded/llama-3-8b"
    version: str = "3.3.7"
    tokens_per_message: int = 1
    empty_messages: bool = False
    early_message: bool = True
    stream_errors: Literal["event", "status"] = "event"
    fragment: int | None = None
    grpc_server: Literal["h2", "library"] = "h2"
    eos: float = 0.0
    jitter: float = 0.03
    seed: int = 0
    record: Path | None = None
    record_limit: int = 10_000


OPTIONS = (
    Option(
        "--router-http", "HOST:PORT", "router", "http", address, "HOST:PORT of the router's HTTP server; default: none"
    ),
    Option(
        "--router-grpc", "HOST:PORT", "router", "grpc", address, "HOST:PORT of its gRPC server (fmaas); default: none"
    ),
    Option("--tls-cert", "FILE", "router", "tls_cert", Path, "PEM file: both servers of the router speak TLS"),
    Option("--tls-key", "FILE", "router", "tls_key", Path, "PEM file: the certificate's key"),
    Option(
        "--tls-client-ca",
        "FILE",
        "router",
        "tls_client_ca",
        Path,
        "PEM file: clients must show a certificate of this CA",
    ),
    Option("--token", "TOKEN", "router", "token", str, "bearer token that the HTTP server asks for; default: none"),
    Option("--model-id", "NAME", "router", "model_id", str, "name which /info tells"),
    Option("--tgi-version", "VERSION", "router", "version", str, "version which /info tells"),
    Option(
        "--max-concurrent-requests",
        "COUNT",
        "limits",
        "max_concurrent_requests",
        whole(1),
        "that wait or run; then 429",
    ),
    Option("--max-input-tokens", "TOKENS", "limits", "max_input_tokens", whole(1), "of one prompt; default: total - 1"),
    Option(
        "--max-total-tokens",
        "TOKENS",
        "limits",
        "max_total_tokens",
        whole(2),
        "of one prompt and its answer; default: what the model takes",
    ),
    Option("--max-batch-size", "COUNT", "limits", "max_batch_size", whole(1), "requests in a batch; default: no limit"),
    Option(
        "--max-batch-prefill-tokens",
        "TOKENS",
        "limits",
        "max_batch_prefill_tokens",
        whole(1),
        "of one prefill; default: 4096, or the longest prompt",
    ),
    Option(
        "--max-waiting-tokens",
        "COUNT",
        "limits",
        "max_waiting_tokens",
        whole(0),
        "decodes until any waiting request joins",
    ),
    Option(
        "--waiting-served-ratio",
        "RATIO",
        "limits",
        "waiting_served_ratio",
        number(0),
        "waiting requests, as a share of the running, that may join earlier",
    ),
    Option(
        "--scheduling-policy",
        "fcfs|priority",
        "limits",
        "scheduling_policy",
        one_of("fcfs", "priority"),
        "priority: the OpenAI APIs' `priority` orders the queue, a lower number first",
    ),
    Option("--prefix-caching", "on|off", "limits", "prefix_caching", switch, "on or off"),
    Option(
        "--tokens-per-message",
        "TOKENS",
        "router",
        "tokens_per_message",
        whole(1, 1000),
        "tokens in one message or event",
    ),
    Option(
        "--empty-messages", "on|off", "router", "empty_messages", switch, "on: gRPC messages without a token in between"
    ),
    Option(
        "--early-message", "on|off", "router", "early_message", switch, "the gRPC message before prefill, on or off"
    ),
    Option(
        "--stream-errors",
        "event|status",
        "router",
        "stream_errors",
        one_of("event", "status"),
        "a refused stream is an event in a 200, as TGI does, or a status",
    ),
    Option(
        "--fragment",
        "BYTES",
        "router",
        "fragment",
        whole(1),
        "cut what is sent into pieces of this many bytes; default: no",
    ),
    Option(
        "--grpc-server",
        "h2|library",
        "router",
        "grpc_server",
        one_of("h2", "library"),
        "h2, with a true record, or gRPC's own library",
    ),
    Option("--eos", "SHARE", "router", "eos", number(0, 1), "chance of each token to end the answer"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("simulated router", "runs when one of its servers has an address")
    add_options(group, OPTIONS, {"router": RouterConfig, "limits": AdmissionLimits})


def wanted(arguments: argparse.Namespace) -> bool:
    return any(getattr(arguments, option.destination, None) is not None for option in OPTIONS[:2])


def config_from(arguments: argparse.Namespace) -> RouterConfig:
    """The RouterConfig of parsed arguments; raises OptionError."""
    given = given_in(arguments, OPTIONS)
    own: dict[str, Any] = {"http": None, "grpc": None, **given.get("router", {})}
    config = given.get("config", {})
    roofline = roofline_from(given)
    tls = _tls({name: own.pop(name, None) for name in ("tls_cert", "tls_key", "tls_client_ca")})
    own.setdefault("model_id", f"embedded/{roofline.model.name}")
    limits = _limits(roofline, config, given.get("limits", {}))
    shared = {name: config[name] for name in SHARED if name in config}
    return RouterConfig(roofline=roofline, limits=limits, tls=tls, **own, **shared)


def _limits(roofline: Roofline, config: dict[str, Any], given: dict[str, Any]) -> AdmissionLimits:
    """What is not given follows from what is: nothing may be admitted that fits in no batch."""
    cache = config.get("max_batch_tokens", roofline.kv_capacity)
    check_fit(roofline, cache)
    total = given.setdefault("max_total_tokens", min(roofline.model.max_positions, cache))
    longest = given.setdefault("max_input_tokens", total - 1)
    prefill = given.setdefault("max_batch_prefill_tokens", max(4096, longest))
    if total > cache:
        raise OptionError(f"--max-total-tokens {total}: expected at most the KV cache, {cache} tokens")
    if longest >= total:
        raise OptionError(f"--max-input-tokens {longest}: expected less than --max-total-tokens, {total}")
    if prefill < longest:
        raise OptionError(f"--max-batch-prefill-tokens {prefill}: expected at least --max-input-tokens, {longest}")
    block_size = {"block_size": config["block_size"]} if "block_size" in config else {}
    return replace(AdmissionLimits(max_batch_total_tokens=cache, **block_size), **given)


def _tls(files: dict[str, Path | None]) -> ServerTls | None:
    certificate, key, client_ca = files["tls_cert"], files["tls_key"], files["tls_client_ca"]
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise OptionError("--tls-cert and --tls-key: expected both or neither")
    tls = ServerTls(certificate, key, client_ca)
    try:
        server_context(tls)
    except (OSError, ssl.SSLError) as error:
        names = " ".join(str(file) for file in files.values() if file)
        raise OptionError(f"--tls-cert, --tls-key, --tls-client-ca {names}: expected PEM files ({error})") from None
    return tls


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """The TLS of the HTTP server; OSError or SSLError when a file is missing or wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.client_ca:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
