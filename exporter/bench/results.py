"""The document of one sweep: its raw values by batch size. `bench --output` writes it, `--baseline` reads it.

docs/bench.md describes the JSON. A change that old readers would misread gets a new `schema_version`; old files keep
loading.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.analysis.certainty import Measure, mean, recorded
from exporter.config.errors import SettingsError, lines
from exporter.observation import Method, Observation, Outcome

SCHEMA_VERSION = 1
DIGITS = 9
# What a run says, and as which measure it is withheld. TGI's benchmark tool has these.
RUN_MEASURES = {
    "prefill_seconds": Measure.PREFILL_RATE,
    "token_seconds": Measure.PER_OUTPUT_TOKEN,
    "decode_seconds": Measure.DECODE,
    "prefill_tokens_per_second": Measure.PREFILL_RATE,
    "decode_tokens_per_second": Measure.DECODE_RATE,
}


class Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer minor version may say more


class Run(Block):
    """One probe of a batch. Seconds, and tokens per second. None: there is no such value, or it is withheld.

    `first_seconds` has the time to first token of each request of a stream, `step_seconds` the wait for each decode
    step, per token. `server_seconds` is what the server says a call took, averaged over the calls of the run.
    """

    warmup: bool = False
    prefill_seconds: float | None = None
    token_seconds: float | None = None
    decode_seconds: float | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    first_seconds: tuple[float, ...] = ()
    step_seconds: tuple[float, ...] = ()
    server_seconds: Mapping[str, float] = {}
    withheld: tuple[str, ...] = ()


class BatchSize(Block):
    """All runs at one batch size, in the order in which they were made."""

    batch_size: int = Field(ge=1)
    runs: tuple[Run, ...] = ()

    @property
    def counted(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if not run.warmup)


class Results(Block):
    """One sweep. `parameters` is what was sent, `target` what the server says about itself. `stopped` says why the
    sweep ended before its last batch size.
    """

    schema_version: Literal[1] = 1
    tgi_probe: str = ""
    started: str = ""
    parameters: Mapping[str, Any] = {}
    target: Mapping[str, Any] = {}
    batch_sizes: tuple[BatchSize, ...] = ()
    stopped: str | None = None

    def with_run(self, batch_size: int, run: Run) -> Self:
        """The same with one more run, of the newest batch size or of a new one."""
        before = [block for block in self.batch_sizes if block.batch_size != batch_size]
        runs = next((block.runs for block in self.batch_sizes if block.batch_size == batch_size), ())
        newest = BatchSize(batch_size=batch_size, runs=(*runs, run))
        return self.model_copy(update={"batch_sizes": (*before, newest)})


def run_of(observation: Observation, warmup: bool = False) -> Run:
    """The certain values of a probe."""
    seen = recorded(observation)
    values = {
        "prefill_seconds": seen.prefill,
        "token_seconds": mean(seen.per_output_token),
        "decode_seconds": seen.decode,
        "prefill_tokens_per_second": seen.prefill_rate,
        "decode_tokens_per_second": seen.decode_rate,
    }
    withheld = [key for key, measure in RUN_MEASURES.items() if values[key] is None and measure in seen.withheld]
    return Run(
        warmup=warmup,
        **{key: None if value is None else round(value, DIGITS) for key, value in values.items()},
        first_seconds=_rounded(seen.first),
        step_seconds=_rounded(seen.gaps),
        server_seconds=_server(observation),
        withheld=tuple(withheld),
    )


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, DIGITS) for value in values)


def _server(observation: Observation) -> dict[str, float]:
    """What the server says about its calls, by method and part: prefill_forward, decode_total and so on."""
    found: dict[str, list[float]] = {}
    if observation.outcome is Outcome.OK:
        for stream in observation.streams:
            for number, step in enumerate(stream.steps):
                method = Method.DECODE if number else Method.PREFILL
                for part in ("forward", "decode", "concat", "total"):
                    seconds = getattr(step.server, part, None)
                    if seconds is not None:
                        found.setdefault(f"{method}_{part}", []).append(seconds)
    return {key: round(sum(values) / len(values), DIGITS) for key, values in found.items()}


def read(path: Path) -> Results:
    """A file that `bench` wrote. Errors: SettingsError, a line for each problem."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from None
    except ValueError:
        raise SettingsError([f"{path}: is not JSON; give a file that `tgi-probe bench --output` wrote"]) from None
    if isinstance(document, dict) and "schema_version" not in document and "latency" in document:
        document = _from_tables(document)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise SettingsError([f"{path}: schema_version: must be {SCHEMA_VERSION}, not {version!r}"])
    try:
        return Results.model_validate(document)
    except ValidationError as error:
        raise SettingsError([f"{path}: {line}" for line in lines(error)]) from None


def _from_tables(document: Mapping[str, Any]) -> dict[str, Any]:
    """A file of tgi-probe 0.1, which has no raw values: its medians, as one run of each batch size."""
    keys = {
        ("latency", "Prefill"): "prefill_seconds",
        ("latency", "Decode (token)"): "token_seconds",
        ("latency", "Decode (total)"): "decode_seconds",
        ("throughput", "Prefill"): "prefill_tokens_per_second",
        ("throughput", "Decode"): "decode_tokens_per_second",
    }
    runs: dict[int, dict[str, float]] = {}
    try:
        for (table, step), key in keys.items():
            for row in document[table]:
                if row["step"] == step and row["p50"] is not None:
                    value = row["p50"] / 1000 if table == "latency" else row["p50"]
                    runs.setdefault(row["batch_size"], {})[key] = value
    except (KeyError, TypeError):
        return {"schema_version": None}
    blocks = [{"batch_size": size, "runs": [run]} for size, run in runs.items()]
    parameters = document.get("parameters", {})
    return {"schema_version": SCHEMA_VERSION, "parameters": parameters, "batch_sizes": blocks}
