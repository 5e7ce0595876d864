"""Configurations that are nearly right: real ones with some values replaced, removed, moved or added."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from exporter.config.settings import Settings
from exporter.web.web_file import WebFile

ROOT = Path(__file__).parents[3]
Document = dict[str, Any]
Place = tuple[str | int, ...]


def blocks_of(kind: Any) -> Iterator[type[BaseModel]]:
    """The block, and every block inside it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from blocks_of(field.annotation)
    elif get_origin(kind) in (Annotated, Union, UnionType, tuple, list, dict):
        for inner in get_args(kind):
            yield from blocks_of(inner)


KEYS = sorted({key for model in (Settings, WebFile) for block in blocks_of(model) for key in block.model_fields})
VALID: list[Document] = [
    document
    for file in [
        *sorted((ROOT / "tests/config/good").glob("*.yaml")),
        *sorted((ROOT / "deploy").rglob("tgi-probe.yaml")),
    ]
    if isinstance(document := yaml.safe_load(file.read_text("utf-8")), dict) and "targets" in document
]
# What values look like, and what is a little wrong with them.
WORDS = st.sampled_from(
    [
        *("", " ", "a", "h:1", "h:0", "h:99999", "h:", ":9477", "[::1]:1", "[::1", "unix:///a", "unix:a", "unix://"),
        *("http://h", "https://h:1/b", "http://h:x", "http://[", "http://u:p@h", "http://h?q", "ftp://h", "h:1\n"),
        *("1s", "0s", "250ms", "1d", "999999w", "1e9s", "-1s", "1", "2/s", "1/m", "0/s", "-1/s", "9" * 30 + "/s"),
        *("shard", "fmaas", "http", "tgi", "chat", "open", "closed", "exclusive", "reserved_block", "off", "true"),
        *(
            "1,2,4",
            "[1, 2]",
            "1,,",
            "²",
            "\u0661",
            "0x10",
            "1_000",
            "1:30",
            "0644",
            "NaN",
            "inf",
            "9" * 5000,
            "\ud800",
            "\0",
        ),
        *("a" * 5000, "é.example", "xn--", "ß.example", "a..b", "%s%n", "{0}", "{x}", "$HOME", "../../etc/passwd"),
    ]
)
NUMBERS = (
    st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400, -(10**400)])
    | st.floats()
    | st.sampled_from([1e308, 5e-324, 0.1, float("inf"), float("nan")])
)
SCALARS = (
    st.none()
    | st.booleans()
    | NUMBERS
    | WORDS
    | st.text(max_size=12)
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=6)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | SCALARS.filter(lambda key: key == key), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(document: object, at: Place = ()) -> Iterator[Place]:
    """Every place in a document, the outer ones first."""
    yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*at, key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from places(value, (*at, number))


def at(document: Any, place: Place) -> Any:
    for part in place:
        document = document[part]
    return document


@st.composite
def nearly_valid(draw: st.DrawFn, sources: list[Document] | None = None) -> Document:
    """A real document with up to four changes."""
    document = copy.deepcopy(draw(st.sampled_from(sources or VALID)))
    for _ in range(draw(st.integers(0, 4))):
        found = list(places(document))
        place = found[draw(st.integers(0, len(found) - 1))]
        inner = at(document, place)
        match draw(st.sampled_from(["replace", "remove", "add", "move", "repeat"])):
            case "add" if isinstance(inner, dict):
                inner[draw(st.sampled_from(KEYS))] = draw(VALUES)
            case "add" if isinstance(inner, list):
                inner.append(draw(VALUES))
            case "repeat" if isinstance(inner, list):
                inner.extend(copy.deepcopy(inner))
            case "remove" if place:
                del at(document, place[:-1])[place[-1]]
            case "move" if place:
                other = found[draw(st.integers(0, len(found) - 1))]
                at(document, place[:-1])[place[-1]] = copy.deepcopy(at(document, other))
            case _ if place:
                at(document, place[:-1])[place[-1]] = draw(VALUES)
            case _:
                pass
    return document


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes], pieces: list[bytes] | None = None) -> bytes:
    """Real bytes with up to five changes: cut, repeated, replaced, or with something put in."""
    data = draw(st.sampled_from(originals))
    other = st.binary(max_size=12) | st.sampled_from(pieces or [b"\0"]) | st.sampled_from(originals)
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + draw(st.sampled_from([0, 1, 8, 200])))))
        middle = data[start:end]
        match draw(st.sampled_from(["put in", "cut", "repeat", "flip", "end"])):
            case "put in":
                middle = draw(other)
            case "cut":
                middle = b""
            case "repeat":
                middle *= draw(st.sampled_from([2, 3, 50]))
            case "flip" if middle:
                middle = bytes([middle[0] ^ 1 << draw(st.integers(0, 7))]) + middle[1:]
            case "end":
                data = data[:end]
                continue
            case _:
                pass
        data = data[:start] + middle + data[end:]
    return data
