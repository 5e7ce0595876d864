"""The whole configuration: all blocks, and the checks between blocks. Frozen; `sources` reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from exporter.config import notation
from exporter.config.errors import Place, raise_problems
from exporter.config.fields import Real, SettingsBlock
from exporter.config.slo import Slo
from exporter.config.target import Target
from exporter.config.workload import Workload

Problem = tuple[Place, str]


class Web(SettingsBlock):
    listen_address: str = Field(":9477", description="host:port of the HTTP side; without a host: every interface")
    config_file: Path | None = Field(
        None,
        description="web file as exporter-toolkit defines it: TLS, client certificates, basic auth; none: open to all",
    )
    enable_reload: bool = Field(False, description="whether POST /-/reload is answered; SIGHUP always reloads")
    enable_probe: bool = Field(False, description="whether /probe runs a probe for each request")

    @model_validator(mode="after")
    def _check(self) -> Self:
        notation.split_listen_address(self.listen_address)
        return self


ClassicBuckets = Literal["lean", "fine", "off"]


def _off(value: object) -> object:
    """YAML reads `off` as false."""
    return "off" if value is False else value


class Histograms(SettingsBlock):
    """The forms in which latencies and throughput are offered; docs/series.md says what each costs."""

    classic: Annotated[ClassicBuckets, BeforeValidator(_off)] = Field(
        "lean",
        description="classic buckets: lean = 4 to 20 edges in each histogram, fine = up to 131, off = none",
    )
    native: bool = Field(
        True, description="whether a Prometheus that asks for native histograms (in protobuf) gets them"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.classic == "off" and not self.native:
            mend = "off with native: false leaves no histogram; set classic: lean or native: true"
            raise_problems([(("classic",), mend)], "histograms", "reference")
        return self


class Settings(SettingsBlock):
    """The whole configuration of one daemon."""

    targets: Annotated[tuple[Target, ...], BeforeValidator(notation.listed)] = ()
    workloads: Annotated[tuple[Workload, ...], BeforeValidator(notation.listed)] = ()
    slos: Annotated[tuple[Slo, ...], BeforeValidator(notation.listed)] = ()
    max_duty_cycle: Real = Field(
        0.5, gt=0, le=1, description="share of a target's time that probes may take; 1 = no limit"
    )
    web: Web = Web()
    histograms: Histograms = Histograms()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    reload_on_change: bool = Field(False, description="whether a changed configuration file is read anew by itself")
    log_format: Literal["text", "json"] = Field(
        "text", description="how the lines of the log look: for people, or JSON"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            *_repeated_names(self),
            *_same_shards(self),
            *_unknown_targets(self),
            *_wrong_slos(self),
            *_not_for_shards(self),
        ]
        for block in ("targets", "workloads"):
            if not getattr(self, block):
                problems.append(((block,), f"must hold at least one {block[:-1]} (or set TGI_PROBE_TARGET)"))
        raise_problems(problems, "settings", "reference")
        return self


def _repeated_names(settings: Settings) -> Iterator[Problem]:
    for block in ("targets", "workloads", "slos"):
        seen: set[str] = set()
        for number, item in enumerate(getattr(settings, block)):
            if item.name in seen:
                yield (block, number, "name"), f"{item.name} is the name of an earlier entry; choose another"
            seen.add(item.name)


def _same_shards(settings: Settings) -> Iterator[Problem]:
    """Two targets with one address would block each other: a shard takes one prober at a time."""
    seen: dict[str, str] = {}
    for number, target in enumerate(settings.targets):
        if target.kind != "shard":
            continue
        address = notation.canonical_address(target.address)
        if (other := seen.setdefault(address, target.name)) != target.name:
            mend = f"targets {other} and {target.name} are the same shard; keep one, and give it the workloads of both"
            yield ("targets", number, "address"), mend


def _unknown_targets(settings: Settings) -> Iterator[Problem]:
    targets = {target.name for target in settings.targets}
    known = ", ".join(sorted(targets)) or "there are none"
    for block in ("workloads", "slos"):
        for number, item in enumerate(getattr(settings, block)):
            for place, name in enumerate(item.targets or ()):
                if name not in targets:
                    yield (block, number, "targets", place), f"no target is called {name} (there is: {known})"


def _wrong_slos(settings: Settings) -> Iterator[Problem]:
    """SLOs of workloads, batch sizes or tokens that there are not."""
    workloads = {workload.name: workload for workload in settings.workloads}
    for number, slo in enumerate(settings.slos):
        workload = workloads.get(slo.workload)
        if workload is None:
            names = ", ".join(sorted(workloads)) or "there are none"
            yield ("slos", number, "workload"), f"no workload is called {slo.workload} (there is: {names})"
            continue
        for place, size in enumerate(slo.batch_sizes or ()):
            if size not in workload.batch_sizes:
                sizes = ", ".join(map(str, workload.batch_sizes))
                yield (
                    ("slos", number, "batch_sizes", place),
                    f"workload {workload.name} does not probe {size} (it probes {sizes})",
                )
        if workload.decode_length == 1 and slo.measure in ("inter_token_latency", "time_per_output_token"):
            yield (
                ("slos", number, slo.measure),
                f"workload {workload.name} has decode_length 1: there is no second token",
            )


def _not_for_shards(settings: Settings) -> Iterator[Problem]:
    """A shard has no queue and no prefix cache: workloads that need them need a router."""
    for number, workload in enumerate(settings.workloads):
        key = "load" if workload.is_load else "prompt_cache" if workload.prompt_cache == "hit" else None
        for target in settings.targets:
            if target.kind != "shard" or not (workload.targets is None or target.name in workload.targets):
                continue
            if key:
                mend = f"needs a router, and target {target.name} is a shard; name targets of kind fmaas or http"
                yield ("workloads", number, key), mend
            for name, mend in workload.parameters.over_vocabulary().items():
                yield ("workloads", number, "parameters", name), f"{mend} for target {target.name}"
