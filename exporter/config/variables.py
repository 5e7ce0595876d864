"""The environment as a source of settings: the variables that are read, and what their text means.

`TGI_PROBE_...`, nested with `__`, list items by number. A mapping may be written as JSON. A key inside `extra_body` is
JSON (`true`, `7`) where it can be read so, else text.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from exporter.config import paths
from exporter.config.errors import SettingsError, closest
from exporter.config.target import Target

PREFIX = "TGI_PROBE_"
# The variables that Kubernetes sets in every container for each Service of the namespace.
SERVICE_VARIABLE = re.compile(r"(?P<service>\w+?)_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE)
# The keys that hold mappings, in the items of each list.
MAPPINGS = {"targets": ("labels", "extra_body", "headers", "tls"), "workloads": ("parameters", "load"), "slos": ()}
# The single-target variables, without the prefix, and the key that each sets: a sidecar needs no file.
SINGLE_TARGET = {
    "TARGET": "targets.0.address",
    "KIND": "targets.0.kind",
    "KV_CACHE": "targets.0.kv_cache",
    **{key.upper(): f"targets.0.{key}" for key in Target.LIMITS},
    **{
        key.upper(): f"workloads.0.{key}"
        for key in ("batch_sizes", "sequence_length", "decode_length", "interval", "timeout")
    },
    "TTFT_SLO": "slos.0.ttft",
    "TTFT_OBJECTIVE": "slos.0.objective",
}


class WrongVariable(Exception):
    """The variable and the mend."""


def own(environ: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """The variables with our prefix, without those that Kubernetes has set. `known`: first words of keys, upper case.

    A variable of a Service is recognised by its name. Where the name could be a key too (Service `tgi-probe-web--x`),
    it is one if another variable holds the address of that Service.
    """
    firsts = set(known)
    found = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    services = {
        name.removesuffix("_PORT")
        for name, value in found.items()
        if name.endswith("_PORT") and SERVICE_ADDRESS.fullmatch(value)
    }

    def injected(name: str) -> bool:
        match = SERVICE_VARIABLE.fullmatch(name)
        return match is not None and (
            name.removeprefix(PREFIX).split("__")[0] not in firsts
            or any(name.startswith(f"{service}_") for service in services)
        )

    return {name: value for name, value in found.items() if not injected(name)}


def unknown(names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """A line for each variable that sets no key."""
    firsts = sorted(known)
    for name in sorted(names):
        first = name.removeprefix(PREFIX).split("__")[0]
        if first not in firsts:
            near = closest(first, firsts)
            listed = ", ".join(PREFIX + other for other in firsts)
            mend = f"did you mean {name.replace(first, near, 1)}?" if near else f"known are {listed}"
            yield f"{name}: is not a known variable; {mend}"


def conflicts(names: Iterable[str]) -> Iterator[str]:
    """A line for each variable that sets a block of which another variable sets a key."""
    ordered = sorted(names)
    for name in ordered:
        inner = next((other for other in ordered if other.startswith(f"{name}__")), None)
        if inner is not None and name != f"{PREFIX}WEB":
            yield f"{name}: cannot stand beside {inner}; remove one of the two"


def single_target(environ: Mapping[str, str]) -> dict[str, Any]:
    """The blocks `targets`, `workloads` and `slos` that the single-target variables mean; empty where none is set.

    Errors: SettingsError.
    """
    given = [name for name in SINGLE_TARGET if PREFIX + name in environ]
    if given and "TARGET" not in given:
        names = ", ".join(PREFIX + name for name in given)
        raise SettingsError([f"{names}: works together with {PREFIX}TARGET only; set it to the address of the server"])
    if "TTFT_OBJECTIVE" in given and "TTFT_SLO" not in given:
        raise SettingsError(
            [f"{PREFIX}TTFT_OBJECTIVE: works together with {PREFIX}TTFT_SLO only; set it, such as 200ms"]
        )
    found: dict[str, Any] = {}
    if given:
        found = {"targets": {"0": {"name": "default"}}, "workloads": {"0": {"name": "default"}}}
    if "TTFT_SLO" in given:
        found["slos"] = {"0": {"name": "ttft", "workload": "default"}}
    for name in given:
        block, number, key = SINGLE_TARGET[name].split(".")
        if environ[PREFIX + name] or key != "objective":  # an empty objective is the default
            found[block][number][key] = environ[PREFIX + name]
    return found


class Variables(EnvSettingsSource):
    """pydantic-settings' reading of variables, with mappings as JSON."""

    def __init__(self, settings: type[BaseSettings], environ: Mapping[str, str]) -> None:
        super().__init__(settings)
        self.env_vars = {name.lower(): value for name, value in environ.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """pydantic-settings knows only ValueError as the error of a text that is no JSON."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def __call__(self) -> dict[str, Any]:
        """The values by block, with absolute file names. Errors: WrongVariable."""
        # A variable that sets a whole block is in JSON already.
        found = super().__call__()
        values = {
            block: _items(block, value)
            if block in MAPPINGS and f"{PREFIX}{block}".lower() not in self.env_vars
            else value
            for block, value in found.items()
        }
        return paths.absolute(values, Path.cwd())


def _items(block: str, items: dict[str, Any]) -> dict[str, Any]:
    """The items of a block by number, each a text in JSON, or keys with the texts of their variables."""
    return {
        number: {key: _value(block, number, key, value) for key, value in item.items()}
        if isinstance(item, dict)
        else _mapping(item, block, number)
        for number, item in items.items()
    }


def _value(block: str, number: str, key: str, value: object) -> object:
    if key not in MAPPINGS[block]:
        return value
    if isinstance(value, dict) and key == "extra_body":
        return {inner: _scalar(one) for inner, one in value.items()}
    return _mapping(value, block, number, key)


def _mapping(value: object, *place: str) -> object:
    """The mapping in a JSON text. Any other value is returned as it is."""
    if not isinstance(value, str) or not value.strip().startswith("{"):
        return value
    try:
        return json.loads(value, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        name = PREFIX + "__".join(place).upper()
        raise WrongVariable(f'{name}: is not JSON ({error}); write it as in {{"key": true}}') from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)} stands there twice")
    return found


def _scalar(value: object) -> object:
    """The JSON value of a text such as `true`, `7`, `"7"` or `[1, 2]`. Any other text is returned as it is."""
    if isinstance(value, dict):
        return {key: _scalar(inner) for key, inner in value.items()}
    try:
        return json.loads(str(value), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the like are texts: JSON has no such numbers
