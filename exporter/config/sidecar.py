"""The single-target variables, such as TGI_PROBE_TARGET: a sidecar needs no file."""

from typing import Any

from pydantic_settings import BaseSettings, SettingsConfigDict

from exporter.config.errors import SettingsError
from exporter.config.target import Target
from exporter.config.variables import PREFIX


class Sidecar(BaseSettings):
    """TGI_PROBE_TARGET and its companions, as texts."""

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
        """The blocks `targets`, `workloads` and `slos` that these variables mean; empty where none is set.

        Errors: SettingsError.
        """
        given = self.model_dump(exclude_none=True)
        if not given:
            return {}
        if self.target is None:
            names = ", ".join(PREFIX + name.upper() for name in given)
            raise SettingsError(
                [f"{names}: works together with {PREFIX}TARGET only; set it to the address of the server"]
            )
        if self.ttft_objective is not None and self.ttft_slo is None:
            raise SettingsError(
                [f"{PREFIX}TTFT_OBJECTIVE: works together with {PREFIX}TTFT_SLO only; set it, such as 200ms"]
            )
        blocks: dict[str, Any] = {
            "targets": {"0": {"name": "default"}},
            "workloads": {"0": {"name": "default"}},
            "slos": {"0": {"name": "ttft", "workload": "default"}},
        }
        for place, variable in PLACES.items():
            block, number, key = place.split(".")
            value = given.get(variable.lower())
            if value is not None and (value or key != "objective"):
                blocks[block][number][key] = value
        return blocks if self.ttft_slo is not None else {block: blocks[block] for block in ("targets", "workloads")}


# The key that each variable sets. Errors about the key name the variable, which is what the operator wrote.
PLACES = {
    "targets.0.address": "TARGET",
    "targets.0.kind": "KIND",
    "targets.0.kv_cache": "KV_CACHE",
    **{f"targets.0.{key}": key.upper() for key in Target.LIMITS},
    **{
        f"workloads.0.{key}": key.upper()
        for key in ("batch_sizes", "sequence_length", "decode_length", "interval", "timeout")
    },
    "slos.0.ttft": "TTFT_SLO",
    "slos.0.objective": "TTFT_OBJECTIVE",
}
