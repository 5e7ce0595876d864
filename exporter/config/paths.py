"""File names in the configuration: a relative one starts at the file that it stands in, as with Prometheus.

One from the environment starts at the working directory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.config.settings import Settings

WEB = ("config_file",)
TARGET = ("bearer_token_file",)
TLS = ("ca_file", "cert_file", "key_file")


def rooted(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The document of a file in `folder`, which need not be right, with absolute names."""
    folder = folder.absolute()
    found = dict(document)
    if "web" in found:
        found["web"] = _placed(found["web"], WEB, folder)
    if isinstance(found.get("targets"), list):
        found["targets"] = [_target(target, folder) for target in found["targets"]]
    return found


def _target(target: Any, folder: Path) -> Any:
    placed = _placed(target, TARGET, folder)
    return (
        {**placed, "tls": _placed(placed["tls"], TLS, folder)}
        if isinstance(placed, dict) and "tls" in placed
        else placed
    )


def _placed(block: Any, keys: tuple[str, ...], folder: Path) -> Any:
    if not isinstance(block, Mapping):
        return block
    names = {key: block[key] for key in keys if isinstance(block.get(key), str) and block[key]}
    return {**block, **{key: str(folder / name) for key, name in names.items()}}


def from_here(settings: Settings) -> Settings:
    """The same, with what is still relative, since the environment said it, starting at the working directory."""
    here = Path.cwd()
    targets = []
    for target in settings.targets:
        names: dict[str, Any] = _relative(target, TARGET, here)
        if target.tls is not None and (inner := _relative(target.tls, TLS, here)):
            names["tls"] = target.tls.model_copy(update=inner)
        targets.append(target.model_copy(update=names) if names else target)
    names = _relative(settings.web, WEB, here)
    web = settings.web.model_copy(update={key: Path(name) for key, name in names.items()}) if names else settings.web
    return settings.model_copy(update={"targets": tuple(targets), "web": web})


def _relative(block: Any, keys: tuple[str, ...], here: Path) -> dict[str, Any]:
    """The keys of the block that hold a relative name, with the absolute one."""
    return {key: str(here / name) for key in keys if (name := getattr(block, key)) and not Path(name).is_absolute()}
