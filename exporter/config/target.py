"""The keys of a target, and of its TLS."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_serializer, model_validator
from pydantic_core import PydanticCustomError

from exporter.config import notation
from exporter.config.fields import Name, SettingsBlock, Whole, must
from exporter.config.json_object import JsonObject
from exporter.config.request_headers import RequestHeaders
from exporter.config.secrets import masked

Kind = Literal["shard", "fmaas", "http", "vllm", "sglang"]
Api = Literal["tgi", "completions", "chat"]
KvCache = Literal["exclusive", "reserved_block"]
Address = Annotated[str, AfterValidator(notation.ascii_address)]
RESERVED_LABELS = frozenset(
    {
        *("target", "workload", "batch_size", "method", "phase", "outcome", "code", "reason", "slo", "verdict", "kind"),
        *("count", "measure"),
        *("protocol", "model", "dtype", "device", "attention", "ranks", "le", "quantile", "job", "instance", "version"),
    }
)
VariableName = Annotated[
    str,
    must(
        lambda text: re.fullmatch(r"[^\s$={}]+", text) and text.isprintable(),
        "must be the name alone of an environment variable, without $",
        kind="variable_name",  # keeps the value from being repeated: it may be the token itself
    ),
]
FileName = Annotated[
    str,
    must(
        lambda text: text.strip() and text.isprintable(),
        "must be the name of a file, without line ends or control characters",
    ),
]
LabelName = Annotated[
    str,
    Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$"),
    must(
        lambda label: label not in RESERVED_LABELS and not label.startswith("__"),
        "the name is taken by tgi-probe or Prometheus; choose another",
        kind="label",
    ),
]
# The keys that only some kinds of target have.
KEYS_OF_KINDS: dict[str, tuple[Kind, ...]] = {
    "kv_cache": ("shard",),
    "model_id": ("fmaas",),
    "api": ("http",),
    "model": ("http", "vllm", "sglang"),
    "data_parallel_rank": ("vllm", "sglang"),
    "bearer_token_env": ("http",),
    "bearer_token_file": ("http",),
    "extra_body": ("http",),
    "priority": ("http",),
    "headers": ("fmaas", "http", "vllm", "sglang"),
    "tls": ("fmaas", "http", "vllm", "sglang"),
    "metrics_url": ("fmaas", "http", "vllm", "sglang"),
    "yield_to_users": ("fmaas", "http", "vllm", "sglang"),
}


def _listed(kinds: tuple[Kind, ...]) -> str:
    return " and ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))


class Tls(SettingsBlock):
    """Which certificates to trust, and the own one. Files are PEM; they are read at each connection."""

    ca_file: FileName | None = Field(None, description="certificates to trust; those of the system when left out")
    cert_file: FileName | None = Field(None, description="our own certificate (mTLS)")
    key_file: FileName | None = Field(None, description="its private key, not encrypted; in cert_file when left out")
    server_name: Annotated[str, AfterValidator(notation.ascii_host)] | None = Field(
        None, description="name in the server's certificate where it is not the host"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise PydanticCustomError("key", "key_file: works together with cert_file only; set it, or remove key_file")
        return self


class Target(SettingsBlock):
    """One server to probe."""

    # The keys that bound what is sent. A change of one says that the server can take it.
    LIMITS: ClassVar = ("max_batch_tokens", "max_prefill_tokens", "max_total_tokens")

    name: Name
    kind: Kind = Field("shard", description="what the server speaks")
    address: Address = Field(
        description="unix:///path or host:port; for kind http: http(s)://host:port, with a base path or without"
    )
    kv_cache: KvCache | None = Field(
        None,
        description="consent to probe a shard that is paged or of several ranks: exclusive (nobody is served here; a "
        "paged one needs max_batch_tokens too); or reserved_block (paged only)",
    )
    labels: dict[LabelName, str] = Field({}, max_length=8, description="added to every series of the target")
    max_batch_tokens: Whole | None = Field(
        None,
        ge=1,
        description="largest batch_size x (sequence_length + decode_length) that may be sent; larger ones are skipped. "
        "With kv_cache: exclusive the size of the KV cache: TGI logs it ('Setting max batch total tokens to'), its "
        "router's /metrics has it as tgi_batch_max_total_tokens; a paged shard's blocks are counted in it",
    )
    max_prefill_tokens: Whole | None = Field(
        None,
        ge=1,
        description="largest batch_size x sequence_length that may be sent; larger ones are skipped. A GPU's memory is "
        "laid out for TGI's --max-batch-prefill-tokens; a larger Prefill may not fit and would end the shard",
    )
    max_total_tokens: Whole | None = Field(
        None,
        ge=1,
        description="largest sequence_length + decode_length that the model can take; longer ones are skipped",
    )

    model_id: str = Field("", description="fmaas: the model, where a server has more than one")
    api: Api = Field("tgi", description="http: /generate_stream, /v1/completions or /v1/chat/completions")
    model: str | None = Field(
        None, description="the model to ask for; when left out, the first that the server names. Not for fmaas"
    )
    data_parallel_rank: Whole | None = Field(
        None, ge=0, le=65535, description="vllm and sglang: the data-parallel rank that shall answer; any when left out"
    )
    bearer_token_env: VariableName | None = Field(
        None, description="http: name of the environment variable that holds the token"
    )
    bearer_token_file: FileName | None = Field(
        None, description="http: file that holds the token, read at each connection"
    )
    extra_body: JsonObject = Field({}, description="http: added to the JSON of each request, such as ignore_eos: true")
    priority: Whole | None = Field(
        None,
        ge=-(2**31),
        lt=2**31,
        description="http, api completions or chat: where the server puts our requests. vLLM serves a higher number "
        "later, and needs --scheduling-policy priority; SGLang (--enable-priority-scheduling) serves it earlier",
    )
    headers: RequestHeaders = Field(
        {},
        description="not for a shard: added to each request, such as x-gateway-inference-objective: NAME",
    )
    tls: Tls | None = Field(None, description="{} = TLS with the system's certificates; http: only with https")
    metrics_url: Address | None = Field(
        None, description="the router's own /metrics, for yield_to_users; vllm and sglang can do without"
    )
    yield_to_users: bool = Field(False, description="skip while the router has users waiting in its queue")

    @field_serializer("extra_body", "headers", when_used="json")
    def _masked(self, body: dict[str, Any]) -> Any:
        return masked(body)  # for /config; requests use the field itself

    def unused_keys(self) -> Iterator[str]:
        """The keys that have no meaning for this target."""
        yield from (key for key, kinds in KEYS_OF_KINDS.items() if self.kind not in kinds)
        if not self.model_id:
            yield "model_id"

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, kinds in KEYS_OF_KINDS.items():
            if key in self.model_fields_set and self.kind not in kinds:
                raise PydanticCustomError(
                    "key",
                    "{key}: is a key of kind {kinds} only, and this target is of kind {kind}; remove it",
                    {"key": key, "kinds": _listed(kinds), "kind": self.kind},
                )
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
        if "authorization" in self.headers and (self.bearer_token_env or self.bearer_token_file) is not None:
            raise PydanticCustomError(
                "key", "headers: authorization cannot stand beside a bearer token; remove one of the two"
            )
        if self.priority is not None and self.api == "tgi":
            raise PydanticCustomError(
                "key", "priority: TGI's own API has none; remove it, or set api: completions or chat if the server does"
            )
        if self.priority is not None and "priority" in self.extra_body:
            raise PydanticCustomError("key", "priority: cannot stand beside extra_body.priority; remove one of the two")
        if self.api != "tgi" and self.extra_body.get("stream", True) is not True:
            raise PydanticCustomError(
                "key", "extra_body: stream must be true, a probe needs an event stream; remove it"
            )
