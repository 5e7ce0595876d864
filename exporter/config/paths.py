"""Relative file names in the configuration. In a file they are relative to its folder, as with Prometheus.

In the environment they are relative to the working directory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.config.settings import Settings

WEB_FILES = ("config_file",)
TARGET_FILES = ("bearer_token_file",)
TLS_FILES = ("ca_file", "cert_file", "key_file")


def absolute_in_file(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The document of a file in `folder` with absolute file names. The document may have errors."""
    folder = folder.absolute()
    found = dict(document)
    if "web" in found:
        found["web"] = _with_absolute(found["web"], WEB_FILES, folder)
    if isinstance(found.get("targets"), list):
        found["targets"] = [_target(target, folder) for target in found["targets"]]
    return found


def _target(target: Any, folder: Path) -> Any:
    placed = _with_absolute(target, TARGET_FILES, folder)
    return (
        {**placed, "tls": _with_absolute(placed["tls"], TLS_FILES, folder)}
        if isinstance(placed, dict) and "tls" in placed
        else placed
    )


def _with_absolute(block: Any, keys: tuple[str, ...], folder: Path) -> Any:
    if not isinstance(block, Mapping):
        return block
    names = {key: block[key] for key in keys if isinstance(block.get(key), str) and block[key]}
    return {**block, **{key: str(folder / name) for key, name in names.items()}}


def absolute(settings: Settings) -> Settings:
    """The settings with absolute file names. Those that are still relative come from the environment."""
    here = Path.cwd()
    targets = []
    for target in settings.targets:
        names: dict[str, Any] = _relative(target, TARGET_FILES, here)
        if target.tls is not None and (inner := _relative(target.tls, TLS_FILES, here)):
            names["tls"] = target.tls.model_copy(update=inner)
        targets.append(target.model_copy(update=names) if names else target)
    names = _relative(settings.web, WEB_FILES, here)
    web = settings.web.model_copy(update={key: Path(name) for key, name in names.items()}) if names else settings.web
    return settings.model_copy(update={"targets": tuple(targets), "web": web})


def _relative(block: Any, keys: tuple[str, ...], here: Path) -> dict[str, Any]:
    """The keys of the block that hold a relative name, with the absolute one."""
    return {key: str(here / name) for key in keys if (name := getattr(block, key)) and not Path(name).is_absolute()}
