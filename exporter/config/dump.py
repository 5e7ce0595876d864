"""The settings written out as a configuration file that gives the same settings again, secrets aside. Pure."""

from typing import Any

from exporter.config import yaml_file
from exporter.config.settings import Settings


def text(settings: Settings) -> str:
    """YAML of every key that has a value and a meaning, defaults too. Texts that look like secrets are hidden."""
    return yaml_file.dump(document(settings))


def document(settings: Settings) -> dict[str, Any]:
    found = settings.model_dump(mode="json", exclude_none=True)
    for block, target in zip(found["targets"], settings.targets, strict=True):
        for key in target.unused_keys():
            block.pop(key, None)
    for block, workload in zip(found["workloads"], settings.workloads, strict=True):
        for *outer, key in workload.unused_keys():
            (block[outer[0]] if outer else block).pop(key, None)
    return found
