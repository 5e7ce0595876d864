"""Where a running daemon listens, read from its configuration even when that is broken or gone by now."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as PydanticSettingsError

from exporter.config import paths, variables
from exporter.config.errors import SettingsError
from exporter.config.settings import Web
from exporter.config.yaml_file import read_text, read_yaml

# In a file that is no YAML any more. Only the block `web` has this key.
LISTEN_ADDRESS = re.compile(r"""^[^#\n]*\blisten_address["']?\s*:\s*["']?([^\s"',}]+)""", re.MULTILINE)


class WebVariables(BaseSettings):
    """The environment variables of the block `web`."""

    model_config = SettingsConfigDict(env_prefix=variables.PREFIX, env_nested_delimiter="__")
    web: Web = Web()


@dataclass(frozen=True, slots=True)
class DaemonAddress:
    """`listen_address` as in the block `web`; `web_file` may not exist any more."""

    listen_address: str
    web_file: Path | None


def daemon_address(path: Path | None) -> DaemonAddress:
    """From the environment, else from the file, else the default. What cannot be read is passed over; never raises."""
    web = Web()
    for values in (_in_file(path) if path else {}, _in_environment()):
        for key in ("listen_address", "config_file"):
            try:
                one = Web.model_validate({key: values[key]})
            except (KeyError, ValidationError):
                continue
            web = web.model_copy(update={key: getattr(one, key)})
    return DaemonAddress(web.listen_address, web.config_file)


def _in_environment() -> Mapping[str, Any]:
    try:
        return _block(variables.Variables(WebVariables, variables.own(os.environ, ["WEB"]))())
    except (PydanticSettingsError, variables.WrongVariable):
        return {}


def _in_file(path: Path) -> Mapping[str, Any]:
    try:
        return _block(paths.absolute(read_yaml(path), path.parent.absolute()))
    except SettingsError:
        pass
    try:
        found = LISTEN_ADDRESS.search(read_text(path))
    except (OSError, UnicodeDecodeError, SettingsError):
        return {}
    return {"listen_address": found[1]} if found else {}


def _block(document: Mapping[str, Any]) -> Mapping[str, Any]:
    web = document.get("web")
    return web if isinstance(web, Mapping) else {}
