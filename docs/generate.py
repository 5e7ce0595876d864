"""Writes docs/configuration.md and docs/metrics.md from the code: `make docs`. With --check it only compares.

A key without a description fails here, so none is ever left out.
"""

import sys
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from exporter.analysis.certainty import Measure
from exporter.config.settings import Settings
from exporter.config.variables import PREFIX, SINGLE_TARGET
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import NOT_JUDGED, Outcome, SkipReason

HERE = Path(__file__).parent
# Descriptions of the keys that have none in the code.
PLAIN = {
    "targets": "the servers to probe",
    "workloads": "what to send, and how often",
    "slos": "what the answers must meet",
    "web": "the HTTP server",
    "histograms": "the forms in which histograms are offered; see [series.md](series.md)",
    "log_level": "the least severe messages that are logged",
    "name": "its name in labels and messages",
    "workload": "name of the workload that is judged",
    "parameters": "sampling, with the names of the TGI benchmark; the defaults change nothing",
    "load": "how requests are sent: in batches at intervals, or one by one",
    "time_per_output_token": "threshold for the mean time of each token after the first",
    "request_duration": "threshold for the time from sending a request to the end of its answer",
    "mode": "batch: probes at intervals; open: requests at a rate; closed: a number of users",
    "temperature": "as TGI's; 1 changes nothing",
    "top_k": "as TGI's; 0 is off",
    "top_p": "as TGI's; 1 is off",
    "typical_p": "as TGI's; 1 is off",
    "repetition_penalty": "as TGI's; 1 is off",
    "frequency_penalty": "as TGI's; 0 is off",
    "watermark": "as TGI's",
    "do_sample": "as TGI's",
    "top_n_tokens": "as TGI's: how many likely tokens to return with each; 0 is off",
}
SIDECAR = {
    "target": "`targets.0.address`; the other variables count only if this one is set",
    "kind": "`targets.0.kind`",
    "kv_cache": "`targets.0.kv_cache`",
    "max_batch_tokens": "`targets.0.max_batch_tokens`",
    "max_prefill_tokens": "`targets.0.max_prefill_tokens`",
    "max_total_tokens": "`targets.0.max_total_tokens`",
    "batch_sizes": "`workloads.0.batch_sizes`",
    "sequence_length": "`workloads.0.sequence_length`",
    "decode_length": "`workloads.0.decode_length`",
    "interval": "`workloads.0.interval`",
    "timeout": "`workloads.0.timeout`",
    "ttft_slo": "an SLO on the time to first token: `slos.0.ttft`",
    "ttft_objective": "`slos.0.objective`",
}
CONFIGURATION = f"""\
# Configuration

The configuration is one YAML file (`--config`). Every key is also an environment variable:
`{PREFIX}WEB__LISTEN_ADDRESS` is `web.listen_address`, `{PREFIX}TARGETS__0__NAME` the name of the first target.
A variable overrides the file.

- **Keys.** A key that is not known is an error.
- **Durations** are written as Prometheus writes them: `250ms`, `15s`, `1m30s`.
- **Numbers.** `0644` and `1:30` are refused, because YAML reads them as other numbers.
- **File names.** A relative file name starts at the file that contains it. One in a variable starts at the
  working directory.
- **Mappings.** A variable that holds a mapping is JSON:
  `{PREFIX}TARGETS__0__EXTRA_BODY='{{"ignore_eos": true}}'`. Single keys of `extra_body` can be variables too:
  `…__EXTRA_BODY__IGNORE_EOS=true` is true, `…=7` a number, and what is not JSON is text. Their names become
  lower case.
- **Reload.** SIGHUP makes the daemon read a changed configuration. Keys of `web` take effect at its next start only.
- **Services.** Variables that Kubernetes sets for Services (`{PREFIX}…_SERVICE_HOST`, `…_PORT` and similar) are
  ignored.

`tgi-probe check --config FILE` says what is wrong, and where. It also reports a token or a certificate that is
missing, although the daemon starts without it and tries again. `--syntax-only` does not look for these files, nor
for the certificates of the web file.
`--connect` asks each target for one short answer and proposes what to change: see
[troubleshooting.md](troubleshooting.md).

`/config` of a running daemon shows the whole configuration with its defaults, as a file that gives the same
settings when you use it. You only have to put in again what it hides in `extra_body` and `headers` (`<hidden>`).
"""
METRICS = """\
# Metrics

Only successful probes enter the histograms of latency and throughput; a failure is counted with its outcome. The
series of a target exist from its start and go when it leaves. Some come when they are first needed: codes that an
outcome rarely has, values that were withheld, and the times that a server reports. The labels of a target
(`targets.labels`) stand on each of its series. `tgi_probe_time_to_first_token_seconds` carries trace ids as exemplars
in OpenMetrics and protobuf. The metrics `process_*` and `python_*` are those that prometheus_client gives every
program.

`/metrics` is offered in Prometheus' text format, in OpenMetrics and in protobuf; Prometheus chooses. Counters,
histograms and summaries say when they started: `…_created` in text, `created_timestamp` in protobuf.

In protobuf each histogram also has native buckets, each 4.4 % wide, and a Prometheus that asks for them stores one
series for all of them. The classic buckets have few edges, and each SLO threshold is an exact edge of the histogram
that it is for. [series.md](series.md) says what each form costs, and how to choose (`histograms` in the configuration).
A reload that changes thresholds resets nothing: the bucket of a new edge starts at the count of the edge below it, and
its increase is exact from then on.
"""
OTHER_REGISTRY = """\
## In another program's registry

The families `tgi_probe_*` are one collector of prometheus_client. A Python program that has a registry of its own can
register it there, beside its other metrics:

```python
from prometheus_client import REGISTRY, generate_latest

from exporter.config.settings import Settings
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.plan.targets import plans

settings = Settings.model_validate(
    {
        "targets": [{"name": "llama", "address": "127.0.0.1:8000"}],
        "workloads": [{"name": "chat", "batch_sizes": [1]}],
    }
)
metrics = Metrics(layout(settings))
metrics.configure(settings)
REGISTRY.register(metrics.registry.probes)
for plan in plans(settings).values():
    metrics.announce(plan)

print(generate_latest(REGISTRY).decode())
```

`metrics.record(observation)` counts a probe, from any thread. What a registry collects is of one instant. A registry
takes one such collector: the names of a second one are the same. For hundreds of targets, `generate_latest` is slow;
`exporter.metrics.pages` writes the same page 6 to 9 times faster (`benchmarks/RESULTS.md`,
"Rendering a page"), and is what `tgi-probe` serves.
"""
# What each value of a label says, in one line. A value without words fails here.
OUTCOMES = {
    "ok": "all went well",
    "timeout": "not done within the workload's `timeout`, or the server's own time limit",
    "unreachable": "no connection, one that broke, or a gateway that does not reach the server",
    "rejected": "the server understood the request and refused or failed it",
    "overloaded": "the server protects itself: a full queue, a rate limit",
    "malformed": "an answer that is not what it should be, or one that the server broke off",
    "refused": "nothing was sent: it is not known to be safe, or cannot work; the log says what to change",
    "quarantined": "nothing was sent: the server ended during such a batch (see [safety.md](safety.md))",
    "not_ready": "a paged shard before its router's Warmup",
    "disturbed": "tgi-probe was stopped or had no CPU, or the wall clock jumped during a shard's call, which says "
    "nothing of the server (see [router.md](router.md) and [safety.md](safety.md))",
}
REASONS = {
    "busy": "the probe before it, another prober, or users who wait in the queue (`yield_to_users`) have the target",
    "duty_cycle": "probes would take more of the target's time than `max_duty_cycle`",
    "backoff": "the target has failed just before",
    "unsafe": "the batch is over a limit of the target",
}
MEASURES = {
    "ttft": "time to first token",
    "inter_token_latency": "the wait for one token",
    "time_per_output_token": "the mean of a request",
    "request_duration": "from sent to done",
    "decode_duration": "from the first token of a probe to its last",
    "prefill_throughput": "prompt tokens per second",
    "decode_throughput": "generated tokens per second",
    "overhead": "of a shard: wall time minus the server's own",
    "start_spread": "from the first request of a batch to the last",
    "connection_setup": "opening a connection",
}
GENERATED = "<!-- Written by `make docs` from the code. Do not edit. -->\n"


def configuration() -> str:
    parts = [GENERATED, CONFIGURATION]
    for title, model in sections(Settings, "The whole file"):
        parts += [f"## {title}\n", *table(model)]
    parts += [
        "## One target, without a file\n",
        "For a sidecar. They make a target and a workload, both called `default`, and an SLO called `ttft`.\n",
        "| variable | stands for |",
        "|---|---|",
        *(f"| `{PREFIX}{name}` | {SIDECAR[name.lower()]} |" for name in SINGLE_TARGET),
    ]
    return "\n".join(parts) + "\n"


def sections(model: type[BaseModel], title: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The model and those inside it, each with the place where it stands in the file."""
    yield title, model
    for name, field in model.model_fields.items():
        for inner in models(field.annotation):
            place = name if model is Settings else f"{title.strip('`')}.{name}"
            yield from sections(inner, f"`{place}`")


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def table(model: type[BaseModel]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        words = (field.description or PLAIN[name]).replace("|", "\\|")
        yield f"| `{name}` | {value(field)} | {default(field)} | {words} |"
    yield ""


def value(field: FieldInfo) -> str:
    return word(field.annotation, " ".join(map(str, field.metadata)))


def word(annotation: Any, metadata: str) -> str:
    """What may stand there, in a word or two."""
    if get_origin(annotation) is typing.Annotated:
        inner, *more = get_args(annotation)
        return word(inner, metadata + " ".join(map(str, more)))
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return next(word(part, metadata) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice if choice is not True else 'true'}`" for choice in get_args(annotation))
    if "rate" in metadata:
        return "rate, such as `2/s`"
    if "parse_duration" in metadata:
        return "duration"
    if get_origin(annotation) is tuple:
        return "list" if models(annotation) else "list, or `1,2,4`" if "int" in str(annotation) else "list, or `a,b`"
    if models(annotation) or get_origin(annotation) is dict:
        return "mapping"
    return {bool: "`true`, `false`", int: "whole number", float: "number"}.get(annotation, "text")


def default(field: FieldInfo) -> str:
    found = field.default
    if found is PydanticUndefined:
        return "required"
    if found in (None, (), "") or isinstance(found, (BaseModel, dict)):
        return ""
    if isinstance(found, bool):
        return f"`{str(found).lower()}`"
    return f"`{','.join(map(str, found)) if isinstance(found, tuple) else found}`"


def metrics() -> str:
    registry = Metrics(layout(Settings.model_construct(targets=(), slos=(), workloads=()))).registry
    lines = [
        GENERATED,
        METRICS,
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for family in registry.probes.families:
        lines.append(row(family.sample_name, family.kind, family.label_names, family.help))
    for metric in registry.process.collect():
        sample = metric.samples[0]
        lines.append(row(sample.name, metric.type, sample.labels, metric.documentation))
    not_judged = ", ".join(f"`{outcome}`" for outcome in sorted(NOT_JUDGED))
    lines += ["", f"No SLO judges an attempt that is {not_judged}.", ""]
    for label, values, words in (
        ("outcome", Outcome, OUTCOMES),
        ("reason", SkipReason, REASONS),
        ("measure", Measure, MEASURES),
    ):
        lines += [f"| `{label}` | meaning |", "|---|---|", *(f"| `{value}` | {words[value]} |" for value in values), ""]
    return "\n".join([*lines, OTHER_REGISTRY])


def row(name: str, kind: str, labels: Iterable[str], text: str) -> str:
    """A line of the table of metrics."""
    return f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {text.replace('|', chr(92) + '|')} |"


def main() -> int:
    stale = []
    for name, text in (("configuration.md", configuration()), ("metrics.md", metrics())):
        file = HERE / name
        if "--check" not in sys.argv:
            file.write_text(text, "utf-8")
        elif not file.exists() or file.read_text("utf-8") != text:
            stale.append(name)
    for name in stale:
        print(f"docs/{name} is not what the code says; run: make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
