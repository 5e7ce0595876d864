"""Which form of /metrics a client gets, by its headers Accept and Accept-Encoding (RFC 9110, section 12.5). Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, PLAIN_1_0_0, Format

# The first is for those who do not care. All our names are valid in every escaping scheme.
FORMATS = (PLAIN_0_0_4, PLAIN_1_0_0, OPENMETRICS)

_QUOTED = r'"(?:[^"\\]|\\.)*"'
# What is not closed goes to the end: to look behind each quote for one that closes it would take quadratic time.
_OPENED = _QUOTED + "?"
_ITEM = re.compile(rf'(?:[^,"]|{_OPENED})+')
_PART = re.compile(rf'(?:[^;"]|{_OPENED})+')


@dataclass(frozen=True, slots=True)
class Choice:
    """One item of the header: its name and parameters in lower case, and how much it is wanted; 0: not at all."""

    name: str
    parameters: Mapping[str, str]
    quality: float


def choices(header: str) -> list[Choice]:
    """The items of a header, in its order."""
    found = []
    for item in _ITEM.findall(header):
        name, *parts = [part.strip() for part in _PART.findall(item)] or [""]
        pairs = (part.partition("=") for part in parts if "=" in part)
        parameters = {key.strip().lower(): _unquoted(value.strip()).lower() for key, _, value in pairs}
        found.append(Choice(name.lower(), parameters, _quality(parameters.pop("q", "1"))))
    return [choice for choice in found if choice.name]


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if re.fullmatch(_QUOTED, value) else value


def _quality(text: str) -> float:
    """What cannot be read counts as 1, as everything does that is not said."""
    return min(1.0, float(text)) if re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text, re.ASCII) else 1.0


def choose_format(accept: str) -> Format | None:
    """The format that is wanted most, the first of equals; the oldest where none is named; None: all are excluded."""
    wanted = choices(accept)
    said = {form: _closest(form, wanted) for form in FORMATS}
    acceptable = [form for form, choice in said.items() if choice is not None and choice.quality > 0]
    if acceptable:
        return max(acceptable, key=lambda form: _rank(said[form], wanted))
    return next((form for form, choice in said.items() if choice is None), None)


def _rank(choice: Choice | None, wanted: Sequence[Choice]) -> tuple[float, int]:
    return (choice.quality, -wanted.index(choice)) if choice is not None else (0.0, 0)


def _closest(form: Format, wanted: Sequence[Choice]) -> Choice | None:
    """The item that counts for the format: the one that names it most closely, the first of equals."""
    return max(
        (choice for choice in wanted if _closeness(choice, form)), key=lambda c: _closeness(c, form), default=None
    )


def _closeness(choice: Choice, form: Format) -> int:
    """How closely an item names the format; 0: it does not."""
    name, parameters = form.content_type.partition(";")[0], choices(form.content_type)[0].parameters
    if choice.name in ("*/*", "*"):
        return 1
    if choice.name == name.partition("/")[0] + "/*":
        return 2
    if choice.name != name:
        return 0
    version = choice.parameters.get("version")
    if not version:
        return 3
    return 4 if _major(version) == _major(parameters["version"]) else 0


def _major(version: str) -> str:
    return version.partition(".")[0]


def compressed(accept_encoding: str) -> bool | None:
    """Whether to send gzip: where it is named, and not wanted less than the page as it is; None: neither will do."""
    said = {choice.name.removeprefix("x-"): choice.quality for choice in reversed(choices(accept_encoding))}
    others = said.get("*")
    plain = said.get("identity", 0.0 if others == 0 else None)
    if plain == 0:
        return True if said.get("gzip", others if others is not None else 1.0) > 0 else None
    return said.get("gzip", 0.0) > 0 and said["gzip"] >= (plain or 0.0)
