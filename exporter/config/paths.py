"""Relative file names in the configuration. In a file they are relative to its folder, as with Prometheus.

In the environment they are relative to the working directory. Pure.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEB_FILES = ("config_file",)
TARGET_FILES = ("bearer_token_file",)
TLS_FILES = ("ca_file", "cert_file", "key_file")


def absolute(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The document with absolute file names; `folder` is where relative ones start. The document may have errors."""
    found = dict(document)
    if "web" in found:
        found["web"] = _block(found["web"], WEB_FILES, folder)
    targets = found.get("targets")
    if isinstance(targets, list):
        found["targets"] = [_target(target, folder) for target in targets]
    elif isinstance(targets, Mapping):
        found["targets"] = {number: _target(target, folder) for number, target in targets.items()}
    return found


def _target(target: Any, folder: Path) -> Any:
    target = _block(target, TARGET_FILES, folder)
    if isinstance(target, dict) and "tls" in target:
        return {**target, "tls": _block(target["tls"], TLS_FILES, folder)}
    return target


def _block(block: Any, keys: tuple[str, ...], folder: Path) -> Any:
    if not isinstance(block, Mapping):
        return block
    names = {key: block[key] for key in keys if isinstance(block.get(key), str)}
    # What is no file name stays as it is, for the error to show it.
    return {**block, **{key: str(folder / name) for key, name in names.items() if name.strip() and name.isprintable()}}
