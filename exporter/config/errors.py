"""Errors in a configuration, as lines for people: the place, what is wrong, what to write instead. Pure."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

MOST_PROBLEMS = 50
LONGEST_SHOWN = 200  # characters of a wrong value
# Types of errors that a check of a whole block raises: their message begins with the key, `address: must be …`.
NAMES_ITS_KEY = frozenset({"address", "listen_address", "twice", "key"})
# Types of errors whose message says everything, or whose value must not be repeated.
WITHOUT_VALUE = frozenset({"missing", "extra_forbidden", "twice", "reference", "label", "key", "variable_name"})
MESSAGES = {
    "extra_forbidden": "is not a known key; check the spelling, or remove it",
    "missing": "is missing",
    "greater_than_equal": "must be ≥ {ge}",
    "greater_than": "must be > {gt}",
    "less_than_equal": "must be ≤ {le}",
    "less_than": "must be < {lt}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text (put it in quotes)",
    "literal_error": "must be {expected}",
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
    "string_pattern_mismatch": "must match {pattern}",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "finite_number": "must be a finite number",
}
Place = tuple[str | int, ...]


class SettingsError(Exception):
    """A configuration that cannot be used. `problems` holds one line each: the place, the value, the mend.

    Of very many, such as those of a file that is something else, it holds the first MOST_PROBLEMS and how many more.
    """

    def __init__(self, problems: list[str]) -> None:
        if len(problems) > MOST_PROBLEMS + 1:
            more = len(problems) - MOST_PROBLEMS
            problems = [*problems[:MOST_PROBLEMS], f"and {more} more problems; is it the right file?"]
        self.problems = [_one_line(problem) for problem in problems]
        super().__init__("\n".join(self.problems))


def _one_line(text: str) -> str:
    """Of characters that can be printed: file names and keys may hold any."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def raise_problems(problems: Iterable[tuple[Place, str]], title: str, kind: str) -> None:
    """Raise one ValidationError for all problems, each a place and a message; none: do nothing."""
    details = [
        InitErrorDetails(type=PydanticCustomError(kind, "{mend}", {"mend": mend}), loc=place, input=None)
        for place, mend in problems
    ]
    if details:
        raise ValidationError.from_exception_data(title, details)


def lines(error: ValidationError) -> list[str]:
    """`place: the mend, not VALUE` for each problem."""
    return [": ".join(explain(problem)) for problem in error.errors()]


def explain(problem: ErrorDetails, echo: bool = True, model: type[BaseModel] | None = None) -> tuple[str, str]:
    """The place and the message of one pydantic error.

    Without `echo` the value is left out: it may be a secret. With `model`, what was validated, an unknown key is told
    with the known one that it resembles.
    """
    kind, value = problem["type"], problem["input"]
    bounds = {key: _shown(bound) for key, bound in problem.get("ctx", {}).items()}
    message = MESSAGES[kind].format(**bounds) if kind in MESSAGES else problem["msg"]
    place = ".".join(str(part) if str(part).isprintable() else repr(part) for part in problem["loc"] if part != "[key]")
    if kind == "extra_forbidden" and model and (near := closest(str(problem["loc"][-1]), _keys(model, problem["loc"]))):
        message = f"is not a known key; did you mean {near}?"
    if kind in NAMES_ITS_KEY:
        key, message = message.split(": ", 1)
        place = f"{place}.{key}" if place else key
        value = value.get(key) if isinstance(value, Mapping) else None
    if echo and kind not in WITHOUT_VALUE and isinstance(value, (str, int, float, bool)):
        text = repr(value) if isinstance(value, str) else _shown(value)
        message += f", not {text if len(text) <= LONGEST_SHOWN else f'{text[:LONGEST_SHOWN]}…'}"
    return place, message


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """The known keys of the block that holds this place."""
    for part in place[:-1]:
        if field := model.model_fields.get(str(part)):  # else the number of an item
            model = next(_models(field.annotation), model)
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _shown(value: object) -> str:
    """A value as YAML has it: `true`, and `1` for 1.0."""
    if isinstance(value, bool) or value == "True":
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
