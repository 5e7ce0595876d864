"""The types of configuration values, and the base class of all blocks."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator
from pydantic_core import PydanticCustomError

from exporter.config import notation


def must(hold: Callable[[Any], object], message: str, kind: str = "value") -> AfterValidator:
    """A check of a value. The message says what to write instead; `kind` is the type of the error, see `errors`."""

    def check(value: Any) -> Any:
        if not hold(value):
            raise PydanticCustomError(kind, message)
        return value

    return AfterValidator(check)


NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}", re.ASCII)
Seconds = Annotated[
    float, BeforeValidator(notation.parse_duration), PlainSerializer(notation.write_duration, when_used="json")
]
PositiveSeconds = Annotated[Seconds, must(lambda seconds: seconds > 0, "must be longer than 0s")]
Whole = Annotated[int, BeforeValidator(notation.no_boolean)]
Real = Annotated[float, BeforeValidator(notation.no_boolean), Field(allow_inf_nan=False)]
Interval = Annotated[
    Seconds,
    must(lambda seconds: seconds == 0 or seconds >= 0.01, "must be 10ms or longer, or 0s for back to back"),
]
Name = Annotated[str, must(NAME.fullmatch, "must be 1 to 128 of letters, digits and _ . : / -")]
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
        texts = (*value.keys(), *value.values()) if isinstance(value, Mapping) else (value,)
        if not all(notation.is_unicode(text) for text in texts if isinstance(text, str)):
            raise PydanticCustomError("unicode", "must be whole UTF-8 characters")
        return value
