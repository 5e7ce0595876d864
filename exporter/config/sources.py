"""Where the configuration comes from: the environment first, then the YAML file; and what is said when it is wrong.

Environment: `TGI_PROBE_...`, nested with `__`, list items by number. The single-target variables (`Sidecar`) stand in
for the blocks targets, workloads and slos. `variables` tells which are ours.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError

from exporter.config import notation, paths, variables
from exporter.config.settings import Settings
from exporter.config.target import LIMITS
from exporter.config.variables import PREFIX
from exporter.config.yaml_text import Ambiguous, Loader

# No configuration comes near; a file that never ends, such as /dev/zero, would fill the memory.
LARGEST_FILE = 64 * 1024 * 1024
LONGEST_SHOWN = 200


class SettingsError(Exception):
    """A configuration that cannot be used. `problems` holds one line each: the place, the value, the mend."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Sidecar(BaseSettings):
    """The single-target variables: TGI_PROBE_TARGET and its companions, so that a sidecar needs no file."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    target: str | None = None
    kind: str | None = None
    kv_cache: str | None = None
    max_batch_tokens: str | None = None
    max_prefill_tokens: str | None = None
    max_total_tokens: str | None = None
    batch_sizes: str | None = None
    sequence_length: str | None = None
    decode_length: str | None = None
    interval: str | None = None
    timeout: str | None = None
    ttft_slo: str | None = None
    ttft_objective: str | None = None

    def blocks(self) -> dict[str, Any]:
        """What these variables mean, as the blocks of the file. Empty where none is set."""
        given = self.model_dump(exclude_none=True)
        if not given:
            return {}
        if self.target is None:
            places = ", ".join(PREFIX + name.upper() for name in given)
            raise SettingsError(
                [f"{places}: works together with {PREFIX}TARGET only; set it to the address of the server"]
            )
        of_target = ("kind", "kv_cache", *LIMITS)
        target = {"name": "default", "address": self.target} | {key: given[key] for key in of_target if key in given}
        keys = ("batch_sizes", "sequence_length", "decode_length", "interval", "timeout")
        workload = {"name": "default"} | {key: given[key] for key in keys if key in given}
        blocks: dict[str, Any] = {"targets": {"0": target}, "workloads": {"0": workload}}
        if self.ttft_slo is not None:
            slo = {"name": "ttft", "workload": "default", "ttft": self.ttft_slo}
            blocks["slos"] = {"0": slo | ({"objective": self.ttft_objective} if self.ttft_objective else {})}
        elif self.ttft_objective is not None:
            raise SettingsError(
                [f"{PREFIX}TTFT_OBJECTIVE: works together with {PREFIX}TTFT_SLO only; set it, such as 200ms"]
            )
        return blocks


# Where a message about an expanded block must point: to the variable that the operator wrote.
SIDECAR_PLACES = {
    "targets.0.address": "TARGET",
    "targets.0.kind": "KIND",
    "targets.0.kv_cache": "KV_CACHE",
    **{f"targets.0.{limit}": limit.upper() for limit in LIMITS},
    "workloads.0.batch_sizes": "BATCH_SIZES",
    "workloads.0.sequence_length": "SEQUENCE_LENGTH",
    "workloads.0.decode_length": "DECODE_LENGTH",
    "workloads.0.interval": "INTERVAL",
    "workloads.0.timeout": "TIMEOUT",
    "slos.0.ttft": "TTFT_SLO",
    "slos.0.objective": "TTFT_OBJECTIVE",
}


def load(path: Path | None) -> Settings:
    """The settings from a file (may be None) and the environment. Errors: SettingsError, with a line for each
    problem.
    """
    document = paths.rooted(read_yaml(path), path.parent) if path else {}
    source = str(path) if path else None
    known = [name.upper() for name in (*Settings.model_fields, *Sidecar.model_fields)]
    environ = variables.ours(os.environ, known)
    wrong = [*variables.unknown(environ, known), *variables.twice(environ)]
    if wrong:
        raise SettingsError(wrong)
    sidecar = Sidecar().blocks()
    for block in sidecar:
        if document.get(block):
            raise SettingsError([f"{source}: {block}: cannot stand beside {PREFIX}TARGET; remove one of the two"])

    class Sources(BaseSettings, Settings):
        """Settings, read from the environment first and then from the file."""

        model_config = SettingsConfigDict(
            env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return variables.Variables(settings_cls, environ), init_settings

    try:
        merged = Sources(**_numbered(document | sidecar))
    except ValidationError as error:
        raise SettingsError([_line(problem, source, bool(sidecar), environ) for problem in error.errors()]) from None
    except variables.WrongVariable as error:
        raise SettingsError([str(error)]) from None
    except PydanticSettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = PREFIX + (field[1].upper() if field else "…")
        raise SettingsError(
            [f"{name}: is not JSON; write a JSON value, or set one key each, such as {name}__0__NAME"]
        ) from None
    settings = Settings.model_construct(**{name: getattr(merged, name) for name in Settings.model_fields})
    settings = paths.from_here(settings)
    return settings


Stamp = tuple[tuple[str, int, int, int], ...]


def stamp(files: Iterable[Path]) -> Stamp:
    """What tells whether one of the files was changed or exchanged: compare two of them. A missing file has one too."""
    found = []
    for file in files:
        try:
            status = file.stat()
            found.append((str(file), status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            found.append((str(file), 0, 0, 0))
    return tuple(found)


def read_yaml(path: Path) -> dict[str, Any]:
    """The document of a YAML file. Errors: SettingsError."""
    try:
        document = yaml.load(_text(path), Loader=Loader)
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}; check the path and its permissions"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{path}: is not UTF-8 text; save it as UTF-8"]) from None
    except yaml.reader.ReaderError as error:
        raise SettingsError([f"{path}: is not YAML: {error.reason} (character {error.position})"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        what = "" if isinstance(error, Ambiguous) else "is not YAML: "
        raise SettingsError([f"{place}: {what}{getattr(error, 'problem', None) or error}"]) from None
    except RecursionError:
        raise SettingsError([f"{path}: is nested too deeply; write it flatter"]) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # PyYAML's own, for a date such as 2026-13-01
        raise SettingsError([f"{path}: holds a value that cannot be read: {' '.join(str(error).split())}"]) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError([f"{path}: must be a mapping with the keys {', '.join(Settings.model_fields)}"])
    return {str(key): value for key, value in document.items()}


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise SettingsError([f"{path}: is larger than {LARGEST_FILE >> 20} MiB; is it the right file?"])
    return data.decode()


def _numbered(document: dict[str, Any]) -> dict[str, Any]:
    """Lists of blocks as mappings by number, so that a variable can overrule one key of one item of the file."""
    return {
        key: {str(n): item for n, item in enumerate(value)}
        if key in ("targets", "workloads", "slos") and isinstance(value, list) and value
        else value
        for key, value in document.items()
    }


def lines(error: ValidationError) -> list[str]:
    """`place: the mend, not VALUE` for each problem of values that came from neither file nor environment."""
    return [_line(problem, None, False, {}) for problem in error.errors()]


def _line(problem: ErrorDetails, source: str | None, from_sidecar: bool, environ: Mapping[str, str]) -> str:
    """`where: place: the mend, not VALUE` from one pydantic error."""
    place, message = explain(problem)
    return f"{_written_at(place, source, from_sidecar, environ)}: {message}"


def explain(problem: ErrorDetails, echo: bool = True) -> tuple[str, str]:
    """The place and the mend of one pydantic error. Without `echo` the value is left out: it may be a secret."""
    kind, value = problem["type"], problem["input"]
    bounds = {key: _shown(bound) for key, bound in problem.get("ctx", {}).items()}
    message = MESSAGES[kind].format(**bounds) if kind in MESSAGES else problem["msg"]
    place = ".".join(str(part) if str(part).isprintable() else repr(part) for part in problem["loc"] if part != "[key]")
    if kind in notation.INNER_PLACE:  # found by a check of the whole block, which names the key first
        key, message = message.split(": ", 1)
        place = f"{place}.{key}" if place else key
        value = value.get(key) if isinstance(value, Mapping) else None
    if echo and kind not in SELF_EXPLAINING and isinstance(value, (str, int, float, bool)):
        said = repr(value) if isinstance(value, str) else _shown(value)
        message += f", not {said if len(said) <= LONGEST_SHOWN else f'{said[:LONGEST_SHOWN]}…'}"
    return place, message


def _shown(value: object) -> str:
    """A value as YAML has it: `true`, and `1` for 1.0."""
    if isinstance(value, bool) or value == "True":
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _written_at(place: str, source: str | None, from_sidecar: bool, environ: Mapping[str, str]) -> str:
    """Where the operator wrote it: a variable that stands for the place or for what holds it, else the file."""
    if from_sidecar:
        for start, name in SIDECAR_PLACES.items():
            if place.startswith(start) and PREFIX + name in environ:
                return PREFIX + name
    parts = place.upper().split(".")
    for length in range(len(parts), 0, -1):
        variable = PREFIX + "__".join(parts[:length])
        if variable in environ:
            return ": ".join([variable, place]) if length < len(parts) else variable
    return f"{source}: {place}" if source else place


# Kinds of problem whose message says all, or where pydantic's input is the whole block.
SELF_EXPLAINING = frozenset({"missing", "extra_forbidden", "twice", "reference", "label", "key", "variable_name"})

MESSAGES = {
    "extra_forbidden": "is not a known key; check the spelling, or remove it",
    "missing": "is missing",
    "greater_than_equal": "must be ≥ {ge}",
    "greater_than": "must be > {gt}",
    "less_than_equal": "must be ≤ {le}",
    "less_than": "must be < {lt}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text (put it in quotes)",
    "literal_error": "must be {expected}",
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
    "string_pattern_mismatch": "must match {pattern}",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "finite_number": "must be a finite number",
}
