"""A mapping that can be written as JSON, checked at every depth."""

import math
from collections.abc import Iterator
from datetime import date
from itertools import islice
from typing import Annotated, Any

from pydantic import BeforeValidator

from exporter.config.errors import Place, raise_problems
from exporter.config.notation import is_unicode

# More than that is an error, such as a YAML anchor that holds itself.
DEEPEST = 64
MOST_VALUES = 10_000
MOST_PROBLEMS = 10
LONGEST_INTEGER_BITS = 1024


def _checked(value: object) -> object:
    if isinstance(value, dict):
        raise_problems(islice(not_json(value), MOST_PROBLEMS), "json", "json")
    return value


JsonObject = Annotated[dict[str, Any], BeforeValidator(_checked)]


def not_json(value: object) -> Iterator[tuple[Place, str]]:
    """The values that JSON cannot hold: the place of each, and what to do."""
    values = 0
    waiting: list[tuple[Place, object]] = [((), value)]
    while waiting:
        place, inner = waiting.pop()
        values += 1
        if values > MOST_VALUES or len(place) > DEEPEST:
            too = (
                f"is nested deeper than {DEEPEST} levels" if len(place) > DEEPEST else f"has over {MOST_VALUES} values"
            )
            yield place[:1], f"{too}; write less, and look for an anchor (&) that holds itself"
            return
        if isinstance(inner, dict):
            for key in inner:
                if not isinstance(key, str) or not is_unicode(key):
                    yield (*place, str(key)), f"must have a text as its key; write '{key}' in quotes"
            waiting += [((*place, str(key)), item) for key, item in reversed(inner.items())]
        elif isinstance(inner, list):
            waiting += [((*place, number), item) for number, item in reversed(list(enumerate(inner)))]
        elif (mend := _mend(inner)) is not None:
            yield place, mend


def _mend(value: object) -> str | None:
    """What to do about a value that is no list and no mapping; None where JSON has it."""
    match value:
        case str():
            return None if is_unicode(value) else "must be whole UTF-8 characters"
        case float():
            return None if math.isfinite(value) else f"must be what JSON has, a finite number, not {value:g}"
        case int():  # true and false too
            return None if value.bit_length() <= LONGEST_INTEGER_BITS else "must be a number that servers can take"
        case None:
            return None
        case date():  # with a time too
            return f"must be what JSON has; put it in quotes: '{value}'"
        case bytes():
            return "must be what JSON has, which has no binary values; put it in quotes, as text"
        case _:
            return "must be what JSON has; put it in quotes, or write a list [a, b] or a mapping {a: b}"
