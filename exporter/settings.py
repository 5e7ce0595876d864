"""Every key of the configuration: its unit, default and bound. Frozen; `sources` reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from exporter import notation
from exporter.secret import masked

Seconds = Annotated[
    float, BeforeValidator(notation.parse_duration), PlainSerializer(notation.write_duration, when_used="json")
]
PositiveSeconds = Annotated[Seconds, AfterValidator(notation.positive)]
BudgetPeriod = Annotated[Seconds, AfterValidator(notation.budget_period)]
Whole = Annotated[int, BeforeValidator(notation.no_truth)]
Real = Annotated[float, BeforeValidator(notation.no_truth), Field(allow_inf_nan=False)]
Interval = Annotated[Seconds, AfterValidator(notation.repetition)]
Name = Annotated[str, AfterValidator(notation.name)]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
BatchSizes = Annotated[
    tuple[Annotated[Whole, Field(ge=1, le=4096)], ...], BeforeValidator(notation.listed), Field(min_length=1)
]
Names = Annotated[tuple[Name, ...], BeforeValidator(notation.listed)]
Kind = Literal["shard", "fmaas", "http"]
Api = Literal["tgi", "completions", "chat"]
RequestsPerSecond = Annotated[
    float,
    BeforeValidator(notation.parse_rate),
    Field(le=10_000),
    PlainSerializer(notation.write_rate, when_used="json"),
]
KvCache = Literal["exclusive", "reserved_block"]
MEASURES = ("ttft", "inter_token_latency", "time_per_output_token", "request_duration", "availability")
RESERVED_LABELS = frozenset(
    {
        *("target", "workload", "batch_size", "method", "phase", "outcome", "code", "reason", "slo", "verdict", "kind"),
        *("protocol", "model", "dtype", "device", "attention", "ranks", "le", "quantile", "job", "instance", "version"),
    }
)


# Beyond what any server holds: such a batch would cost us gigabytes of text, and come to nothing.
LARGEST_BATCH_TOKENS = 1 << 24


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_characters(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for text in (*value.keys(), *value.values()):
                notation.unicode_text(text)
        return notation.unicode_text(value)


# The keys of a target that not every kind has.
KEYS_OF_KINDS: dict[str, tuple[Kind, ...]] = {
    "kv_cache": ("shard",),
    "model_id": ("fmaas",),
    "api": ("http",),
    "model": ("http",),
    "bearer_token_env": ("http",),
    "bearer_token_file": ("http",),
    "extra_body": ("http",),
    "tls": ("fmaas", "http"),
    "metrics_url": ("fmaas", "http"),
    "yield_to_users": ("fmaas", "http"),
}


# The keys of a load that not every mode has, and the keys of a workload that has one.
KEYS_OF_MODES = {"rate": "open", "arrivals": "open", "max_in_flight": "open", "users": "closed"}
NOT_OF_LOADS = ("batch_sizes", "interval")


class Tls(Section):
    """How to trust the server, and who we are. Files are PEM; they are read at each connection."""

    ca_file: str | None = Field(None, description="certificates to trust; those of the system when left out")
    cert_file: str | None = Field(None, description="our own certificate (mTLS)")
    key_file: str | None = Field(None, description="its private key, not encrypted; in cert_file when left out")
    server_name: str | None = Field(None, description="name in the server's certificate where it is not the host")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise PydanticCustomError("key", "key_file: works together with cert_file only; set it, or remove key_file")
        return self


class Target(Section):
    """One server to probe."""

    name: Name
    kind: Kind = Field("shard", description="what the server speaks")
    address: str = Field(
        description="unix:///path or host:port; for kind http: http(s)://host:port, with a base path or without"
    )
    kv_cache: KvCache | None = Field(
        None,
        description="consent to probe a shard that is paged or of several ranks: exclusive (nobody is served here); "
        "or reserved_block (paged only)",
    )
    labels: dict[LabelName, str] = Field({}, max_length=8, description="added to every series of the target")
    max_batch_tokens: Whole | None = Field(
        None,
        ge=1,
        description="largest batch_size x (sequence_length + decode_length) that may be sent; larger ones are skipped",
    )
    max_total_tokens: Whole | None = Field(
        None,
        ge=1,
        description="largest sequence_length + decode_length that the model can take; longer ones are skipped",
    )

    model_id: str = Field("", description="fmaas: the model, where a server has more than one")
    api: Api = Field("tgi", description="http: /generate_stream, /v1/completions or /v1/chat/completions")
    model: str | None = Field(None, description="http: the model to ask for; the first the server names when left out")
    bearer_token_env: str | None = Field(
        None, description="http: name of the environment variable that holds the token"
    )
    bearer_token_file: str | None = Field(None, description="http: file that holds the token, read at each connection")
    extra_body: dict[str, Any] = Field(
        {}, description="http: added to the JSON of each request, such as ignore_eos: true"
    )
    tls: Tls | None = Field(None, description="fmaas: {} = TLS with the system's certificates; http: only with https")
    metrics_url: str | None = Field(None, description="the router's own /metrics, for yield_to_users")
    yield_to_users: bool = Field(False, description="skip while the router has users waiting in its queue")

    @field_serializer("extra_body", when_used="json")
    def _masked(self, body: dict[str, Any]) -> Any:
        return masked(body)  # /config shows it; requests are made of the field itself

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, kinds in KEYS_OF_KINDS.items():
            if key in self.model_fields_set and self.kind not in kinds:
                raise PydanticCustomError(
                    "key",
                    "{key}: is a key of kind {kinds} only, and this target is of kind {kind}; remove it",
                    {"key": key, "kinds": " and ".join(kinds), "kind": self.kind},
                )
        self._check_labels()
        if self.kind == "http":
            self._check_http()
        else:
            notation.check_address(self.address)
        if self.tls is not None and self.tls.server_name:
            notation.check_host(self.tls.server_name, "tls.server_name")
        if self.metrics_url is not None:
            notation.split_url(self.metrics_url, "metrics_url")
        elif self.yield_to_users and self.kind == "fmaas":
            raise PydanticCustomError("key", "yield_to_users: needs metrics_url, the router's own /metrics; set it")
        return self

    def _check_http(self) -> None:
        if notation.split_url(self.address).scheme == "http" and self.tls is not None:
            raise PydanticCustomError("key", "tls: needs an address with https://; change the address, or remove tls")
        if self.bearer_token_env is not None and self.bearer_token_file is not None:
            raise PydanticCustomError(
                "key", "bearer_token_env: cannot stand beside bearer_token_file; remove one of the two"
            )

    def _check_labels(self) -> None:
        for label in self.labels:
            if label in RESERVED_LABELS or label.startswith("__"):
                raise PydanticCustomError(
                    "label",
                    "labels.{label}: the name is taken by tgi-probe or Prometheus; choose another",
                    {"label": label},
                )


class Parameters(Section):
    """Sampling, named as the TGI benchmark names it. The defaults are neutral: greedy, nothing penalised."""

    # The bounds keep what is set a number, and not 0, in the 32 bits that the wire has for it.
    temperature: Real = Field(1.0, ge=1e-6, le=1000)
    top_k: Whole = Field(0, ge=0, le=2**32 - 1)
    top_p: Real = Field(1.0, ge=1e-6, le=1)
    typical_p: Real = Field(1.0, ge=1e-6, le=1)
    repetition_penalty: Real = Field(1.0, ge=1e-6, le=1000)
    frequency_penalty: Real = Field(0.0, ge=-2, le=2)
    watermark: bool = False
    do_sample: bool = False
    top_n_tokens: Whole = Field(0, ge=0, le=1000)


class Load(Section):
    """How the requests of a workload come: as batches (the default), at a rate (open), or from so many users
    (closed).
    """

    mode: Literal["batch", "open", "closed"] = "batch"
    rate: RequestsPerSecond | None = Field(None, description="open: requests per second on average, such as 2/s")
    arrivals: Literal["poisson", "constant"] = Field("poisson", description="open: at random, or evenly spaced")
    max_in_flight: int = Field(
        64, ge=1, le=4096, description="open: what is due while so many are on their way is skipped"
    )
    users: int | None = Field(
        None, ge=1, le=4096, description="closed: each sends its next request when the last has ended"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, mode in KEYS_OF_MODES.items():
            if key in self.model_fields_set and self.mode != mode:
                raise PydanticCustomError(
                    "key", "{key}: works with mode {mode} only; remove it", {"key": key, "mode": mode}
                )
        if self.mode == "open" and self.rate is None:
            raise PydanticCustomError("key", "rate: is missing; set it, such as 2/s")
        if self.mode == "closed" and self.users is None:
            raise PydanticCustomError("key", "users: is missing; set it, such as 8")
        return self


class Workload(Section):
    """What is sent: prompt and answer lengths in tokens, batch sizes, and how often."""

    name: Name
    sequence_length: Whole = Field(10, ge=1, le=10_000_000, description="prompt tokens of each request")
    decode_length: Whole = Field(8, ge=1, le=1_000_000, description="tokens to generate for each request")
    batch_sizes: BatchSizes = Field((1, 2, 4, 8, 16, 32), description="requests at once")
    # Defaults of durations are text like any other value, and read by the same rules.
    interval: Interval = Field("30s", description="a batch size is probed once per interval; 0s = back to back")  # type: ignore[assignment]
    timeout: PositiveSeconds = Field("60s", description="of one probe, from first call to last answer")  # type: ignore[assignment]
    warmups: Whole = Field(
        1, ge=0, le=100, description="unrecorded probes before the first of a batch size and after reconnecting"
    )
    targets: Names | None = Field(None, description="names of targets; all when left out")
    parameters: Parameters = Parameters()
    prompt_cache: Literal["miss", "hit"] = Field(
        "miss", description="hit: one prompt repeated, to measure a prefix cache"
    )
    load: Load = Load()

    @property
    def is_load(self) -> bool:
        """Whether requests come one by one, as a background load, instead of in batches."""
        return self.load.mode != "batch"

    @model_validator(mode="before")
    @classmethod
    def _one_by_one(cls, given: object) -> object:
        """A load's requests are batches of one, unless someone says so wrongly."""
        if isinstance(given, Mapping) and "batch_sizes" not in given:
            load = given.get("load")
            mode = load.get("mode") if isinstance(load, Mapping) else getattr(load, "mode", None)
            if mode in ("open", "closed"):
                return {**given, "batch_sizes": (1,)}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_load and self.batch_sizes != (1,):
            raise PydanticCustomError("key", "batch_sizes: has no meaning beside load; remove it")
        if self.is_load and "interval" in self.model_fields_set:
            raise PydanticCustomError("key", "interval: has no meaning beside load; remove it")
        if self.prompt_cache == "hit" and self.warmups == 0:
            raise PydanticCustomError(
                "key", "warmups: must be ≥ 1 with prompt_cache: hit, or the first probe would be a miss"
            )
        seen: set[int] = set()
        for number, size in enumerate(self.batch_sizes):
            if size in seen:
                raise PydanticCustomError(
                    "twice", "batch_sizes.{n}: {size} stands there twice; remove one", {"n": number, "size": size}
                )
            seen.add(size)
            tokens = size * (self.sequence_length + self.decode_length)
            if tokens > LARGEST_BATCH_TOKENS:
                raise PydanticCustomError(
                    "key",
                    "batch_sizes.{n}: {size} x (sequence_length + decode_length) is {tokens} tokens; must be ≤ {most}",
                    {"n": number, "size": size, "tokens": tokens, "most": LARGEST_BATCH_TOKENS},
                )
        return self


class Slo(Section):
    """One objective for one workload: exactly one of the measures, and the share of requests that must meet it."""

    name: Name
    workload: str
    batch_sizes: BatchSizes | None = Field(None, description="all of the workload when left out")
    targets: Names | None = Field(None, description="all of the workload when left out")
    ttft: PositiveSeconds | None = Field(None, description="threshold for the time to first token")
    inter_token_latency: PositiveSeconds | None = Field(
        None, description="threshold for the wait for each token after the first"
    )
    time_per_output_token: PositiveSeconds | None = None
    request_duration: PositiveSeconds | None = None
    availability: Literal[True] | None = Field(None, description="true: success is all that is asked")
    objective: Real = Field(0.99, gt=0, lt=1, description="share of good requests, such as 0.99")
    period: BudgetPeriod = Field("30d", description="what the error budget is for, 1h to 366d")  # type: ignore[assignment]

    @property
    def measure(self) -> str:
        return next(name for name in MEASURES if getattr(self, name) is not None)

    @property
    def threshold(self) -> float | None:
        """Seconds; None for availability."""
        return None if self.availability else cast(float, getattr(self, self.measure))

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "measure",
                "must have exactly one of " + ", ".join(MEASURES) + " (has {given})",
                {"given": " and ".join(given) or "none"},
            )
        return self


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
        problems = [*_repeated_names(self), *_dangling_names(self), *_not_for_shards(self)]
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
            if key and target.kind == "shard" and (workload.targets is None or target.name in workload.targets):
                mend = f"needs a router, and target {target.name} is a shard; name targets of kind fmaas or http"
                found.append((f"workloads.{number}.{key}", mend))
    return found
