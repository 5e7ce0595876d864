"""Hides secrets in texts for people, in any form in which a server may repeat them. Pure."""

import re
from collections.abc import Mapping

HIDDEN = "…"
# A key with one of these words in its name probably holds a secret.
SECRET_KEYS = ("key", "token", "secret", "password", "authorization")
# HTML entities. Any character may also be written as a number.
_SHORT = {'"': "&quot;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;"}
# JSON inside JSON has several backslashes. Bounded, so that a page full of them costs no time.
_BACKSLASHES = r"\\{1,8}"
_LONGEST_SPELLING = 16


# A spelling of a character that was cut.
_CUT_SPELLING = re.compile(r"(?:\\{1,8}(?:u[0-9a-fA-F]{0,3})?|%[0-9a-fA-F]{0,3}|&\w*|&\#\w*)$")


class Secret:
    """One secret, of printable ASCII; empty: there is none."""

    def __init__(self, text: str) -> None:
        self.longest = len(text) * _LONGEST_SPELLING  # the most characters that it takes in a text
        parts = re.findall(r"\\+| +|[^\\ ]", text)
        self._pattern = re.compile("".join(map(_spellings, parts)))
        # Matched one by one, a backslash of the next character could not be given back.
        self._parts = [re.compile(_spellings(part, r"\\(?!u00)")) for part in parts]

    def hidden(self, text: str) -> str:
        """The text without the secret, as it is and as JSON, URLs and HTML write it, or any mix of them."""
        return self._pattern.sub(HIDDEN, text) if self.longest else text

    def hidden_cut(self, text: str) -> str:
        """As `hidden`, for a line that may be cut (its last character is `…`): a part of the secret is hidden too."""
        text = self.hidden(text)
        if not self.longest or not text.endswith(HIDDEN):
            return text
        kept = text[: -len(HIDDEN)]
        for end in (len(kept), len(_CUT_SPELLING.sub("", kept))):
            begins = (begin for begin in range(end) if self._continues(kept[:end], begin))
            kept = kept[: next(begins, len(kept))]
        return kept + HIDDEN

    def _continues(self, text: str, begin: int) -> bool:
        """Whether the text from `begin` to its end is the beginning of the secret."""
        for part in self._parts:
            found = part.match(text, begin)
            if found is None:
                return False
            begin = found.end()
            if begin == len(text):
                return True
        return False


class Secrets:
    """Several of them, hidden together. None of them, or an empty one: there is none."""

    def __init__(self, *texts: str) -> None:
        self._secrets = [Secret(text) for text in texts if text]
        self.longest = max((secret.longest for secret in self._secrets), default=0)

    def hidden(self, text: str) -> str:
        """As `Secret.hidden`."""
        for secret in self._secrets:
            text = secret.hidden(text)
        return text

    def hidden_cut(self, text: str) -> str:
        """As `Secret.hidden_cut`."""
        for secret in self._secrets:
            text = secret.hidden_cut(text)
        return text


def _spellings(part: str, backslash: str = r"\\") -> str:
    """A pattern for one character of the secret, or for a run of backslashes or spaces."""
    code = f"{ord(part[0]):x}"
    numbers = rf"(?i:{_BACKSLASHES}u00{code}|%(?:25)?{code}|&\#x0*{code};)|&\#0*{ord(part[0])};"
    if part[0] == "\\":
        return rf"(?:(?:{numbers}|{backslash}){{{len(part)},{8 * len(part)}}})"
    if part[0] == " ":
        return rf"(?:{numbers}|[ +]){{1,{len(part)}}}"  # a line for people has single spaces
    spelled = [numbers]
    if part in '"/':
        spelled.append(_BACKSLASHES + part)
    if part in _SHORT:
        spelled.append(_SHORT[part])
    spelled.append(re.escape(part))  # last, because matching one by one does not backtrack
    return f"(?:{'|'.join(spelled)})"


def masked(value: object, hide: bool = False) -> object:
    """The same, with `<hidden>` for each text under a key that looks as if it held a secret, at any depth."""
    if isinstance(value, Mapping):
        return {key: masked(inner, hide or is_secret(str(key))) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, hide) for inner in value]
    return "<hidden>" if hide and isinstance(value, str) else value


def secret_values(mapping: Mapping[str, str]) -> list[str]:
    """The values under keys that look as if they held a secret."""
    return [value for key, value in mapping.items() if is_secret(key)]


def is_secret(key: str) -> bool:
    """Whether a key with this name probably holds a secret."""
    return any(word in key.lower() for word in SECRET_KEYS)
