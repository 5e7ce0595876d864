"""Where settings come from: the environment first, then the YAML file.

Environment: `TGI_PROBE_...`, nested with `__`, list items by number (see `variables`). The single-target variables
stand for the blocks targets, workloads and slos.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError

from exporter.config import paths, variables
from exporter.config.errors import MOST_PROBLEMS, SettingsError, explain
from exporter.config.fields import SettingsBlock
from exporter.config.settings import Settings
from exporter.config.variables import PREFIX
from exporter.config.yaml_file import read_yaml


def load(path: Path | None) -> Settings:
    """The settings from a file, if any, and the environment. Errors: SettingsError, a line for each problem."""
    document = paths.absolute(read_yaml(path, list(Settings.model_fields)), path.parent.absolute()) if path else {}
    source = str(path) if path else None
    known = [name.upper() for name in Settings.model_fields] + list(variables.SINGLE_TARGET)
    environ = variables.own(os.environ, known)
    wrong = [*variables.unknown(environ, known), *variables.conflicts(environ)]
    if wrong:
        raise SettingsError(wrong)
    blocks = variables.single_target(environ)
    for block in blocks:
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
        merged = Sources(**_numbered(document | blocks))
    except ValidationError as error:
        problems = error.errors()
        # Only those that are told are put into words, which takes a while.
        told = [_line(problem, source, bool(blocks), environ) for problem in problems[: MOST_PROBLEMS + 1]]
        raise SettingsError(told + [""] * (len(problems) - len(told))) from None
    except variables.WrongVariable as error:
        raise SettingsError([str(error)]) from None
    except PydanticSettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = field[1] if field else ""
        kind = Settings.model_fields[name].annotation if name in Settings.model_fields else None
        keys = list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, SettingsBlock) else ["0__NAME"]
        variable = PREFIX + (name.upper() or "…")
        raise SettingsError(
            [f"{variable}: is not JSON; write a JSON value, or set one key each, such as {variable}__{keys[0].upper()}"]
        ) from None
    return Settings.model_construct(**{name: getattr(merged, name) for name in Settings.model_fields})


Stamp = tuple[tuple[str, int, int, int], ...]


def stamp(files: Iterable[Path]) -> Stamp:
    """A value that differs when one of the files was changed, replaced, added or removed."""
    found = []
    for file in files:
        try:
            status = file.stat()
            found.append((str(file), status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            found.append((str(file), 0, 0, 0))
    return tuple(found)


def _numbered(document: dict[str, Any]) -> dict[str, Any]:
    """The lists of blocks as mappings by number, so that a variable can override one key of one item of the file."""
    return {
        key: {str(n): item for n, item in enumerate(value)}
        if key in ("targets", "workloads", "slos") and isinstance(value, list) and value
        else value
        for key, value in document.items()
    }


def _line(problem: ErrorDetails, source: str | None, from_sidecar: bool, environ: Mapping[str, str]) -> str:
    """`where: place: the mend, not VALUE` from one pydantic error."""
    place, message = explain(problem, model=Settings)
    return f"{_written_at(place, source, from_sidecar, environ)}: {message}"


def _written_at(place: str, source: str | None, from_sidecar: bool, environ: Mapping[str, str]) -> str:
    """Where the operator wrote it: in the variable for this place or for a block around it, else in the file."""
    if from_sidecar:
        for name, key in variables.SINGLE_TARGET.items():
            if place.startswith(key) and PREFIX + name in environ:
                return PREFIX + name
    parts = place.upper().split(".")
    for length in range(len(parts), 0, -1):
        variable = PREFIX + "__".join(parts[:length])
        if variable in environ:
            return ": ".join([variable, place]) if length < len(parts) else variable
    return f"{source}: {place}" if source else place
