"""The keys of a workload: what is sent, with which sampling, and when."""

from collections.abc import Iterator, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from exporter.config.fields import (
    BatchSizes,
    Interval,
    Name,
    Names,
    PositiveSeconds,
    Real,
    RequestsPerSecond,
    SettingsBlock,
    Whole,
)

# More than any server holds. The text of such a batch would take gigabytes of our memory.
LARGEST_BATCH_TOKENS = 1 << 24
# A shard ends when top_k or top_n_tokens is over the size of its vocabulary, which it does not tell. No vocabulary is
# smaller than that of a model of bytes.
SMALLEST_VOCABULARY = 256
# The keys of a load that only one mode has.
KEYS_OF_MODES = {"rate": "open", "arrivals": "open", "max_in_flight": "open", "users": "closed"}


class Parameters(SettingsBlock):
    """Sampling, named as the TGI benchmark names it. The defaults are neutral: greedy, nothing penalised."""

    # Within these bounds a value neither overflows nor becomes 0 as the 32-bit number of the protocol.
    temperature: Real = Field(1.0, ge=1e-6, le=1000)
    top_k: Whole = Field(0, ge=0, le=2**32 - 1)
    top_p: Real = Field(1.0, ge=1e-6, le=1)
    typical_p: Real = Field(1.0, ge=1e-6, le=1)
    repetition_penalty: Real = Field(1.0, ge=1e-6, le=1000)
    frequency_penalty: Real = Field(0.0, ge=-2, le=2)
    watermark: bool = False
    do_sample: bool = False
    top_n_tokens: Whole = Field(0, ge=0, le=1000)

    def over_vocabulary(self) -> dict[str, str]:
        """The keys that may end a shard, each with what to do."""
        return {
            key: f"is {value}, and a shard ends when it is over the model's vocabulary; must be ≤ {SMALLEST_VOCABULARY}"
            for key in ("top_k", "top_n_tokens")
            if (value := getattr(self, key)) > SMALLEST_VOCABULARY
        }


class Load(SettingsBlock):
    """When requests are sent: in batches (the default), at a rate (open), or by a number of users (closed)."""

    mode: Literal["batch", "open", "closed"] = "batch"
    rate: RequestsPerSecond | None = Field(None, description="open: requests per second on average, such as 2/s")
    arrivals: Literal["poisson", "constant"] = Field("poisson", description="open: at random, or evenly spaced")
    max_in_flight: int = Field(
        64,
        ge=1,
        le=4096,
        description="open: a request that is due while max_in_flight requests are on their way is skipped",
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


class Workload(SettingsBlock):
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

    def unused_keys(self) -> Iterator[tuple[str, ...]]:
        """The places of the keys that have no meaning for this workload."""
        yield from (("load", key) for key, mode in KEYS_OF_MODES.items() if self.load.mode != mode)
        if self.is_load:
            yield from (("batch_sizes",), ("interval",))

    @model_validator(mode="before")
    @classmethod
    def _one_by_one(cls, given: object) -> object:
        """The default of batch_sizes beside a load: one request at a time."""
        if isinstance(given, Mapping) and "batch_sizes" not in given:
            load = given.get("load")
            mode = load.get("mode") if isinstance(load, Mapping) else getattr(load, "mode", None)
            if mode in ("open", "closed"):
                return {**given, "batch_sizes": (1,)}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, given in (
            ("batch_sizes", self.batch_sizes != (1,)),
            ("interval", "interval" in self.model_fields_set),
        ):
            if self.is_load and given:
                raise PydanticCustomError("key", "{key}: has no meaning beside load; remove it", {"key": key})
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
