"""The settings written out as a configuration file that gives the same settings again, secrets aside. Pure."""

from collections.abc import Iterable
from typing import Any

from exporter.config import yaml_text
from exporter.config.settings import Settings
from exporter.config.target import KEYS_OF_KINDS
from exporter.config.workload import KEYS_OF_MODES, NOT_OF_LOADS


def text(settings: Settings) -> str:
    """YAML of every key that has a value and a meaning, defaults too; what looks like a secret is hidden."""
    return yaml_text.dump(document(settings))


def document(settings: Settings) -> dict[str, Any]:
    said = settings.model_dump(mode="json", exclude_none=True)
    for block, target in zip(said["targets"], settings.targets, strict=True):
        _drop(block, (key for key, kinds in KEYS_OF_KINDS.items() if target.kind not in kinds))
        if not target.model_id:
            _drop(block, ["model_id"])
    for block, workload in zip(said["workloads"], settings.workloads, strict=True):
        _drop(block["load"], (key for key, mode in KEYS_OF_MODES.items() if workload.load.mode != mode))
        if workload.is_load:
            _drop(block, NOT_OF_LOADS)
    return said


def _drop(block: dict[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        block.pop(key, None)
