"""Every key of the configuration: its unit, default and bound. Frozen; `sources` reads it.

The blocks are in files of their own; here is the whole, and what has to fit between the blocks.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from exporter.config import notation
from exporter.config.section import Real, Section
from exporter.config.slo import Slo
from exporter.config.target import LIMITS, Api, Kind, Target, Tls
from exporter.config.workload import Load, Parameters, Workload

__all__ = ["LIMITS", "Api", "Kind", "Load", "Parameters", "Settings", "Slo", "Target", "Tls", "Web", "Workload"]


class Web(Section):
    listen_address: str = Field(":9477", description="host:port of the HTTP side; without a host: every interface")
    config_file: Path | None = Field(
        None,
        description="web file as exporter-toolkit defines it: TLS, client certificates, basic auth; none: open to all",
    )
    enable_reload: bool = Field(False, description="whether POST /-/reload is answered; SIGHUP always reloads")
    enable_probe: bool = Field(False, description="whether /probe runs probes for whoever asks")

    @model_validator(mode="after")
    def _check(self) -> Self:
        notation.split_listen_address(self.listen_address)
        return self


class Settings(Section):
    """The whole configuration of one daemon."""

    targets: Annotated[tuple[Target, ...], BeforeValidator(notation.listed)] = ()
    workloads: Annotated[tuple[Workload, ...], BeforeValidator(notation.listed)] = ()
    slos: Annotated[tuple[Slo, ...], BeforeValidator(notation.listed)] = ()
    max_duty_cycle: Real = Field(
        0.5, gt=0, le=1, description="share of a target's time that probes may take; 1 = no limit"
    )
    web: Web = Web()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    reload_on_change: bool = Field(False, description="whether a changed configuration file is read anew by itself")
    log_format: Literal["text", "json"] = Field(
        "text", description="how the lines of the log look: for people, or JSON"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [*_repeated_names(self), *_same_shards(self), *_dangling_names(self), *_not_for_shards(self)]
        if not self.targets:
            problems.append(("targets", "must hold at least one target (or set TGI_PROBE_TARGET)"))
        if not self.workloads:
            problems.append(("workloads", "must hold at least one workload (or set TGI_PROBE_TARGET)"))
        if problems:
            raise ValidationError.from_exception_data(
                "settings",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("reference", "{mend}", {"mend": mend}), loc=(place,), input=None
                    )
                    for place, mend in problems
                ],
            )
        return self


def _repeated_names(settings: Settings) -> list[tuple[str, str]]:
    found = []
    for block in ("targets", "workloads", "slos"):
        seen: set[str] = set()
        for number, item in enumerate(getattr(settings, block)):
            if item.name in seen:
                found.append((f"{block}.{number}.name", f"{item.name} is the name of an earlier entry; choose another"))
            seen.add(item.name)
    return found


def _same_shards(settings: Settings) -> list[tuple[str, str]]:
    """Two targets at one address would keep each other from probing: a shard takes one prober at a time."""
    found = []
    seen: dict[str, str] = {}
    for number, target in enumerate(settings.targets):
        if target.kind != "shard":
            continue
        address = notation.canonical_address(target.address)
        if (other := seen.setdefault(address, target.name)) != target.name:
            mend = f"targets {other} and {target.name} are the same shard; keep one, and give it the workloads of both"
            found.append((f"targets.{number}.address", mend))
    return found


def _dangling_names(settings: Settings) -> list[tuple[str, str]]:
    found = []
    targets = {target.name for target in settings.targets}
    workloads = {workload.name: workload for workload in settings.workloads}
    known = ", ".join(sorted(targets)) or "there are none"
    for block in ("workloads", "slos"):
        for number, item in enumerate(getattr(settings, block)):
            for place, name in enumerate(item.targets or ()):
                if name not in targets:
                    found.append(
                        (f"{block}.{number}.targets.{place}", f"no target is called {name} (there is: {known})")
                    )
    for number, slo in enumerate(settings.slos):
        workload = workloads.get(slo.workload)
        if workload is None:
            names = ", ".join(sorted(workloads)) or "there are none"
            found.append((f"slos.{number}.workload", f"no workload is called {slo.workload} (there is: {names})"))
            continue
        for place, size in enumerate(slo.batch_sizes or ()):
            if size not in workload.batch_sizes:
                sizes = ", ".join(map(str, workload.batch_sizes))
                found.append(
                    (
                        f"slos.{number}.batch_sizes.{place}",
                        f"workload {workload.name} does not probe {size} (it probes {sizes})",
                    )
                )
        if workload.decode_length == 1 and slo.measure in ("inter_token_latency", "time_per_output_token"):
            found.append(
                (
                    f"slos.{number}.{slo.measure}",
                    f"workload {workload.name} has decode_length 1: there is no second token",
                )
            )
    return found


def _not_for_shards(settings: Settings) -> list[tuple[str, str]]:
    """A shard takes whole batches past any queue and cache: what needs a router must not be sent to it."""
    found = []
    for number, workload in enumerate(settings.workloads):
        key = "load" if workload.is_load else "prompt_cache" if workload.prompt_cache == "hit" else None
        for target in settings.targets:
            if target.kind != "shard" or not (workload.targets is None or target.name in workload.targets):
                continue
            if key:
                mend = f"needs a router, and target {target.name} is a shard; name targets of kind fmaas or http"
                found.append((f"workloads.{number}.{key}", mend))
            for name, mend in workload.parameters.over_vocabulary().items():
                found.append((f"workloads.{number}.parameters.{name}", f"{mend} for target {target.name}"))
    return found
