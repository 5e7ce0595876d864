"""An argument parser whose errors name the option or command that was probably meant."""

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from exporter.config.errors import closest

NEGATIVE_NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")


class Parser(argparse.ArgumentParser):
    """argparse with better errors for unknown options, and the usage of the command that they belong to."""

    commands: "argparse._SubParsersAction[Parser] | None" = None

    def add_subparsers(self, **keys: Any) -> "argparse._SubParsersAction[Parser]":  # type: ignore[override]  # of this class
        self.commands = super().add_subparsers(**keys)
        return self.commands

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        words = list(args or ())
        if self.commands is not None:
            self._check_command(words[:1], self.commands.choices)
        else:
            self._check_options(words)
        found, rest = super().parse_known_args(words, namespace)
        for word in rest:
            if word != "--":
                mend = f"; did you mean --config {word}?" if "--config" in self._options() else ""
                self.error(f"takes no {word!r}{mend}")
        return found, rest

    def _check_command(self, first: Sequence[str], names: Iterable[str]) -> None:
        for word in first:
            if word.startswith("-") and not any(option.startswith(word) for option in self._options()):
                mend = _did_you_mean(word, self._options()) or f"; the command comes first: {self.prog} check {word} …"
                self.error(f"no such option here: {word}{mend}")
            if not word.startswith("-") and word not in names:
                self.error(f"no such command: {word}{_did_you_mean(word, names) or '; there is: ' + ', '.join(names)}")

    def _check_options(self, words: Iterable[str]) -> None:
        options = self._options()
        for word in _options_in(words):
            name = word.partition("=")[0]
            if not any(option.startswith(name) for option in options):
                self.error(f"no such option: {name}{_did_you_mean(name, options)}")

    def _options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def _options_in(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            return
        if word.startswith("-") and word != "-" and not NEGATIVE_NUMBER.fullmatch(word):
            yield word


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = closest(word, known)
    if re.fullmatch("-[a-z]", word):
        near = next((option for option in known if option.startswith(f"-{word}")), None)
    return f"; did you mean {near}?" if near else ""
