"""Which format of /metrics a client gets, by its headers Accept and Accept-Encoding (RFC 9110, section 12.5). Pure.

Why not prometheus_client 0.26: of the headers in tests/web/test_negotiation.py its `choose_encoder` answers 17 of 37
wrongly and its `gzip_accepted` 10 of 19. Both ignore `q`, so they send what `q=0` excludes. `choose_encoder` also
ignores wildcards, knows media types in lower case only, promises an OpenMetrics 2.0.0 that it does not write, and
raises TypeError for a version in quotes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, PLAIN_1_0_0, PROTOBUF, Format

# The first is the default. Our metric names are valid in every escaping scheme.
FORMATS = (PLAIN_0_0_4, PLAIN_1_0_0, OPENMETRICS, PROTOBUF)

_QUOTED = r'"(?:[^"\\]|\\.)*"'
# A quote that is not closed goes to the end: looking for the closing one after each quote takes quadratic time.
_OPENED = _QUOTED + "?"
_ITEM = re.compile(rf'(?:[^,"]|{_OPENED})+')
_PART = re.compile(rf'(?:[^;"]|{_OPENED})+')


@dataclass(frozen=True, slots=True)
class Choice:
    """One item of a header: name and parameters in lower case, and its quality from 0 (excluded) to 1."""

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
    """The number; 1 when it is missing or malformed."""
    return min(1.0, float(text)) if re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text, re.ASCII) else 1.0


def choose_format(accept: str) -> Format | None:
    """The format with the highest quality, the first of equals, the default when none is named. None: all excluded."""
    wanted = choices(accept)
    decided = {form: _deciding(form, wanted) for form in FORMATS}
    acceptable = [form for form, choice in decided.items() if choice is not None and choice.quality > 0]
    if acceptable:
        return max(acceptable, key=lambda form: _rank(decided[form], wanted))
    return next((form for form, choice in decided.items() if choice is None), None)


def _rank(choice: Choice | None, wanted: Sequence[Choice]) -> tuple[float, int]:
    return (choice.quality, -wanted.index(choice)) if choice is not None else (0.0, 0)


def _deciding(form: Format, wanted: Sequence[Choice]) -> Choice | None:
    """The item that decides about the format: the most specific one, the first of equals."""
    return max(
        (choice for choice in wanted if _specificity(choice, form)), key=lambda c: _specificity(c, form), default=None
    )


def _specificity(choice: Choice, form: Format) -> int:
    """How specifically an item names the format; 0: it does not."""
    name, parameters = form.content_type.partition(";")[0], choices(form.content_type)[0].parameters
    if choice.name in ("*/*", "*"):
        return 1
    if choice.name == name.partition("/")[0] + "/*":
        return 2
    if choice.name != name:
        return 0
    if form is PROTOBUF:  # one of many messages and encodings that have this media type
        return 4 if all(choice.parameters.get(key) == parameters[key] for key in ("proto", "encoding")) else 0
    version = choice.parameters.get("version")
    if not version:
        return 3
    return 4 if _major(version) == _major(parameters["version"]) else 0


def _major(version: str) -> str:
    return version.partition(".")[0]


def compressed(accept_encoding: str) -> bool | None:
    """Whether to send gzip: when it is named, with at least the quality of identity. None: both are excluded."""
    quality = {choice.name.removeprefix("x-"): choice.quality for choice in reversed(choices(accept_encoding))}
    others = quality.get("*")
    plain = quality.get("identity", 0.0 if others == 0 else None)
    if plain == 0:
        return True if quality.get("gzip", others if others is not None else 1.0) > 0 else None
    return quality.get("gzip", 0.0) > 0 and quality["gzip"] >= (plain or 0.0)
