"""Any environment and any command line: taken, or refused in a line that says what is wrong."""

import argparse
import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.bench.options import precision_of, runs_of, target_and_workload
from exporter.cli import build_parser
from exporter.config import dump
from exporter.config.arguments import Parser
from exporter.config.daemon_address import daemon_address
from exporter.config.errors import SettingsError
from exporter.config.sources import load
from exporter.config.variables import PREFIX, SINGLE_TARGET
from tests.faults.fuzz.documents import KEYS, SCALARS, VALID, WORDS, Document, places
from tests.faults.fuzz.documents import at as value_at
from tests.faults.fuzz.examples import ends, fuzz, in_lines, raised

COMMANDS = ("run", "check", "rules", "slo", "health", "simulate", "bench", "demo")
PARTS = st.sampled_from([*(key.upper() for key in KEYS), "0", "1", "00", "x", "", "-1", "99", "²", "_"])
NAMES = st.sampled_from([*SINGLE_TARGET]) | st.lists(PARTS, min_size=1, max_size=4).map("__".join)
JSON = st.sampled_from(
    ["{", "[]", "{}", '{"a": 1, "a": 2}', "[" * 3000, '{"a":' * 3000, "[1, 2]", '"x"', "NaN", "null", "1" * 4000]
)
TEXTS = WORDS | JSON | SCALARS.filter(lambda value: not isinstance(value, bytes)).map(lambda value: f"{value!s:.5000}")


def possible(text: str) -> bool:
    """Whether a process can have such a variable or argument."""
    with contextlib.suppress(UnicodeEncodeError):
        return b"\0" not in os.fsencode(text)
    return False


def variables(document: Document) -> dict[str, str]:
    """A document as variables."""
    return {
        "__".join(map(str, place)).upper(): str(value)
        for place in places(document)
        if place and not isinstance(value := value_at(document, place), dict | list)
    }


ENVIRONMENTS = st.builds(
    lambda base, more: {f"{PREFIX}{name}": text for name, text in {**base, **more}.items()},
    st.just({}) | st.sampled_from(VALID).map(variables) | st.just({"TARGET": "h:1"}),
    st.dictionaries(NAMES.filter(possible), TEXTS.filter(possible), max_size=5),
)


@fuzz
@given(environment=ENVIRONMENTS)
def test_any_environment(environment: Mapping[str, str]) -> None:
    without = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with ends(environment), patch.dict(os.environ, {**without, **environment}, clear=True):
        daemon_address(None)
        error = raised(SettingsError, lambda: dump.text(load(None)))
    assert error is None or in_lines(error.problems), error.problems


def options(command: str) -> list[str]:
    parser = build_parser([command])
    assert parser.commands is not None
    chosen = parser.commands.choices[command]
    return [option for action in chosen._actions for option in action.option_strings]


def parse(parser: Parser, words: list[str]) -> argparse.Namespace | None:
    """The options; None where the parser has said what is wrong with them, or has helped."""
    said = io.StringIO()
    found: list[argparse.Namespace] = []
    with ends(words), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        ended = raised(SystemExit, lambda: found.append(parser.parse_args(words)))
    if ended is None:
        return found[0]
    assert ended.code == 0 or (ended.code == 2 and "error: " in said.getvalue())
    assert "Traceback" not in said.getvalue()
    return None


WORDS_OF_COMMANDS = st.sampled_from(COMMANDS).flatmap(
    lambda command: st.tuples(
        st.just(command),
        st.lists(
            st.sampled_from(options(command))
            | st.builds("{}={}".format, st.sampled_from(options(command)), TEXTS)
            | TEXTS
            | st.sampled_from(["--", "-", "-1", "/dev/null", "-h", "--version"]),
            max_size=6,
        ),
    )
)


@fuzz
@given(words=WORDS_OF_COMMANDS)
def test_any_command_line(words: tuple[str, list[str]]) -> None:
    """As far as the parser goes: no command is run."""
    command, rest = words
    parse(build_parser([command]), [command, *rest])


@fuzz
@given(
    words=st.lists(st.sampled_from(COMMANDS) | TEXTS, max_size=4).filter(
        lambda words: not set(words) & {"run", "demo", "simulate"}
    )
)
def test_any_first_words(words: list[str]) -> None:
    parse(build_parser(words[:1]), words)


FLAGS = st.sampled_from(options("bench")[2:]).flatmap(lambda option: st.tuples(st.just(option), TEXTS))


@fuzz
@given(flags=st.lists(FLAGS, max_size=4))
def test_any_options_of_a_sweep(flags: list[tuple[str, str]]) -> None:
    """`bench` reads its options like a configuration, before it connects."""
    words = ["bench", "--target", "unix:///nowhere", *(word for flag in flags for word in flag)]
    options = parse(build_parser(["bench"]), words)
    if options is not None:
        for read in (target_and_workload, precision_of, lambda given: runs_of(given.runs)):
            error = raised(SettingsError, lambda read=read: read(options))  # type: ignore[misc]
            assert error is None or in_lines(error.problems), error.problems


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative file names lead to nothing."""
    monkeypatch.chdir(tmp_path)
