"""The single-target variables, such as TGI_PROBE_TARGET: a sidecar needs no file. Pure."""

from collections.abc import Mapping
from typing import Any

from exporter.config.errors import SettingsError
from exporter.config.target import Target
from exporter.config.variables import PREFIX

# Each variable, without the prefix, and the key that it sets.
KEYS = {
    "TARGET": "targets.0.address",
    "KIND": "targets.0.kind",
    "KV_CACHE": "targets.0.kv_cache",
    **{key.upper(): f"targets.0.{key}" for key in Target.LIMITS},
    **{
        key.upper(): f"workloads.0.{key}"
        for key in ("batch_sizes", "sequence_length", "decode_length", "interval", "timeout")
    },
    "TTFT_SLO": "slos.0.ttft",
    "TTFT_OBJECTIVE": "slos.0.objective",
}


def blocks(environ: Mapping[str, str]) -> dict[str, Any]:
    """The blocks `targets`, `workloads` and `slos` that these variables mean; empty where none is set.

    Errors: SettingsError.
    """
    given = [name for name in KEYS if PREFIX + name in environ]
    if given and "TARGET" not in given:
        names = ", ".join(PREFIX + name for name in given)
        raise SettingsError([f"{names}: works together with {PREFIX}TARGET only; set it to the address of the server"])
    if "TTFT_OBJECTIVE" in given and "TTFT_SLO" not in given:
        raise SettingsError(
            [f"{PREFIX}TTFT_OBJECTIVE: works together with {PREFIX}TTFT_SLO only; set it, such as 200ms"]
        )
    found: dict[str, Any] = {}
    if given:
        found = {"targets": {"0": {"name": "default"}}, "workloads": {"0": {"name": "default"}}}
    if "TTFT_SLO" in given:
        found["slos"] = {"0": {"name": "ttft", "workload": "default"}}
    for name in given:
        block, number, key = KEYS[name].split(".")
        if environ[PREFIX + name] or key != "objective":  # an empty objective is the default
            found[block][number][key] = environ[PREFIX + name]
    return found
