"""Headers that a target wants with each request: which may be set, and how they must be written."""

import re
from collections.abc import Mapping
from typing import Annotated, NoReturn

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
LONGEST_VALUE = 4096
MOST_HEADERS = 32
# What a request needs to be understood is not for the configuration. `grpc-` is gRPC's own prefix.
OURS = frozenset(
    {
        *("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "te", "trailer"),
        *("connection", "keep-alive", "proxy-connection", "upgrade", "expect", "accept", "accept-encoding"),
        *("traceparent", "user-agent"),
    }
)


def _checked(headers: object) -> object:
    """The same with names in lower case, as HTTP/2 has them."""
    if not isinstance(headers, Mapping):
        return headers
    found: dict[str, str] = {}
    for name, value in headers.items():
        # A value is never repeated: it may be a secret.
        if not isinstance(name, str) or not NAME.fullmatch(name):
            _refuse("the name of a header must be of letters, digits and hyphens")
        lower = name.lower()
        if lower in OURS or lower.startswith("grpc-"):
            _refuse(f"{lower} is set by tgi-probe itself; remove it")
        if lower.endswith("-bin"):
            _refuse(f"{lower}: binary headers (-bin) cannot be set; remove it")
        if lower in found:
            _refuse(f"{lower} stands there twice; remove one")
        if not isinstance(value, str):
            _refuse(f"{lower} must be text (put it in quotes)")
        if not (value and value.isascii() and value.isprintable() and value == value.strip()):
            _refuse(f"{lower} must be one line of ASCII, without spaces around it")
        if len(value) > LONGEST_VALUE:
            _refuse(f"{lower} must be at most {LONGEST_VALUE} characters long")
        found[lower] = value
    return found


def _refuse(why: str) -> NoReturn:
    raise PydanticCustomError("headers", "{why}", {"why": why})


RequestHeaders = Annotated[dict[str, str], Field(max_length=MOST_HEADERS), BeforeValidator(_checked)]
