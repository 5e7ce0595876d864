"""The types of configuration values, and the base class of all blocks."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from exporter.config import notation

Seconds = Annotated[
    float, BeforeValidator(notation.parse_duration), PlainSerializer(notation.write_duration, when_used="json")
]
PositiveSeconds = Annotated[Seconds, AfterValidator(notation.positive)]
Whole = Annotated[int, BeforeValidator(notation.no_boolean)]
Real = Annotated[float, BeforeValidator(notation.no_boolean), Field(allow_inf_nan=False)]
Interval = Annotated[Seconds, AfterValidator(notation.interval)]
Name = Annotated[str, AfterValidator(notation.name)]
BatchSizes = Annotated[
    tuple[Annotated[Whole, Field(ge=1, le=4096)], ...], BeforeValidator(notation.listed), Field(min_length=1)
]
Names = Annotated[tuple[Name, ...], BeforeValidator(notation.listed)]
RequestsPerSecond = Annotated[
    float,
    BeforeValidator(notation.parse_rate),
    Field(le=10_000),
    PlainSerializer(notation.write_rate, when_used="json"),
]


class SettingsBlock(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_characters(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for text in (*value.keys(), *value.values()):
                notation.unicode_text(text)
        return notation.unicode_text(value)
