"""YAML files, read and written: a repeated key is an error, and a number is what it looks like.

PyYAML reads YAML 1.1, where `0644` is 420 and `1:30` is 90: both are refused. `1e3` is a number here, as in YAML 1.2.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from exporter.config.bounded_read import read_bounded
from exporter.config.errors import SettingsError

# Room for thousands of targets. To read a file takes up to 135 times its size in memory, and a small pod has little.
LARGEST_FILE = 512 * 1024
# Values and keys, counted as often as anchors repeat them. Ten lines of aliases of aliases can mean more than fits in
# any memory, and PyYAML takes about a kilobyte for each.
MOST_VALUES = 100_000
LONGEST_INTEGER_BITS = 8192  # Python writes no number of more than 4300 digits
INTEGER, FLOAT, MERGE = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:merge"
OCTAL = re.compile(r"[-+]?0[0-7]+")
EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?|\.[0-9]+)(?:[0-9]+)?[eE][-+]?[0-9]+")
STARTS_OF_NUMBERS = list("-+.0123456789")


class Refused(yaml.constructor.ConstructorError):
    """Valid YAML that is not accepted: too much of it, or a number that YAML reads as another one than people do."""


class Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice in one mapping, which plain YAML would silently drop."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = 0
        self._values_in: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        before, is_alias = self._values, self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is not None:
            # One that holds itself is not finished yet: it counts once.
            self._values += self._values_in.get(node, 1) if is_alias else 1
            self._values_in.setdefault(node, self._values - before)
            if self._values > MOST_VALUES:
                what = f"has over {MOST_VALUES} values; write less, and look for anchors (&) of anchors"
                raise Refused(None, None, what, node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == MERGE:
                continue  # `<<: *anchor`; what it brings in may be overruled
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands there twice", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def _integer(self, node: yaml.ScalarNode) -> int:
        found = self.construct_yaml_int(node)
        text = node.value.replace("_", "")
        if found.bit_length() > LONGEST_INTEGER_BITS:
            raise Refused(None, None, "the number is too large; write a smaller one", node.start_mark)
        if ":" in text or (OCTAL.fullmatch(text) and int(text) != found):
            self._refuse(node, found)
        return int(found)

    def _float(self, node: yaml.ScalarNode) -> float:
        found = self.construct_yaml_float(node)
        if ":" in node.value:
            self._refuse(node, found)
        return float(found)

    def _refuse(self, node: yaml.ScalarNode, found: float) -> None:
        if abs(found) > sys.float_info.max:
            raise Refused(None, None, "the number is too large; write a smaller one", node.start_mark)
        how = "base 60" if ":" in node.value else "octal"
        mend = f"{node.value} is {found:g} to YAML ({how}); write the number that is meant, or put it in quotes"
        raise Refused(None, None, mend, node.start_mark)


class Dumper(yaml.SafeDumper):
    """Writes what `Loader` reads as the same."""

    def _text(self, text: str) -> yaml.ScalarNode:
        """PyYAML takes a few characters (U+0085) for line ends only when it reads them."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"')


Dumper.add_representer(str, Dumper._text)
Loader.add_constructor(INTEGER, Loader._integer)
Loader.add_constructor(FLOAT, Loader._float)
for _either in (Loader, Dumper):
    _either.add_implicit_resolver(FLOAT, EXPONENT, STARTS_OF_NUMBERS)


def dump(document: object) -> str:
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file; `keys` are those that an error names. Errors: SettingsError."""
    try:
        document = yaml.load(read_text(path), Loader=Loader)
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}; check the path and its permissions"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{path}: is not UTF-8 text; save it as UTF-8"]) from None
    except yaml.reader.ReaderError as error:
        raise SettingsError([f"{path}: is not YAML: {error.reason} (character {error.position})"]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        what = "" if isinstance(error, Refused) else "is not YAML: "
        raise SettingsError([f"{place}: {what}{getattr(error, 'problem', None) or error}"]) from None
    except RecursionError:
        raise SettingsError([f"{path}: is nested too deeply; write it flatter"]) from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # PyYAML's own, as for 2026-13-01
        raise SettingsError([f"{path}: holds a value that cannot be read: {' '.join(str(error).split())}"]) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError([f"{path}: must be a mapping" + (f" with the keys {', '.join(keys)}" if keys else "")])
    return {str(key): value for key, value in document.items()}


def read_text(path: Path) -> str:
    """The text of a file. Errors: OSError, UnicodeDecodeError, SettingsError when it is too large."""
    data = read_bounded(path, LARGEST_FILE)
    if len(data) > LARGEST_FILE:
        raise SettingsError([f"{path}: is larger than {LARGEST_FILE >> 10} KiB; is it the right file?"])
    return data.decode()
