"""What must not be in a line for people, though others may repeat it to us. Pure."""

import re
from collections.abc import Mapping

HIDDEN = "…"
# In the names of keys whose text is likely to be one.
TELLING = ("key", "token", "secret", "password", "authorization")
# How JSON and HTML write these where they are not written as they are; any character may be a number instead.
_SHORT = {'"': "&quot;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;"}
# JSON inside JSON has several backslashes. Bounded, so that a page full of them costs no time.
_BACKSLASHES = r"\\{1,8}"
_LONGEST_WRITING = 16


# What may be left of a writing where a text was cut.
_CUT_WRITING = re.compile(r"(?:\\{1,8}(?:u[0-9a-fA-F]{0,3})?|%[0-9a-fA-F]{0,3}|&\w*|&\#\w*)$")


class Secret:
    """One text that is to be kept, of printable ASCII; empty: there is none."""

    def __init__(self, text: str) -> None:
        self.longest = len(text) * _LONGEST_WRITING  # characters that it takes up at most
        parts = re.findall(r"\\+| +|[^\\ ]", text)
        self._pattern = re.compile("".join(map(_writings, parts)))
        # One by one there is no way back from a backslash that belongs to the next character.
        self._parts = [re.compile(_writings(part, r"\\(?!u00)")) for part in parts]

    def hidden(self, text: str) -> str:
        """The text without the secret, as it is and as JSON, URLs and HTML write it, or any mix of them."""
        return self._pattern.sub(HIDDEN, text) if self.longest else text

    def hidden_cut(self, text: str) -> str:
        """As `hidden`, of a line that was cut before, which its last character says: nor does a part of it stay."""
        text = self.hidden(text)
        if not self.longest or not text.endswith(HIDDEN):
            return text
        kept = text[: -len(HIDDEN)]
        for end in (len(kept), len(_CUT_WRITING.sub("", kept))):
            begins = (begin for begin in range(end) if self._runs(kept[:end], begin))
            kept = kept[: next(begins, len(kept))]
        return kept + HIDDEN

    def _runs(self, text: str, begin: int) -> bool:
        """Whether everything from there to the end is the beginning of the secret."""
        for part in self._parts:
            found = part.match(text, begin)
            if found is None:
                return False
            begin = found.end()
            if begin == len(text):
                return True
        return False


def _writings(part: str, backslash: str = r"\\") -> str:
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
    spelled.append(re.escape(part))  # last: one by one there is no way back
    return f"(?:{'|'.join(spelled)})"


def masked(value: object, telling: bool = False) -> object:
    """The same, with `<hidden>` for each text under a key that looks as if it held a secret, at any depth."""
    if isinstance(value, Mapping):
        return {key: masked(inner, telling or _tells(str(key))) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, telling) for inner in value]
    return "<hidden>" if telling and isinstance(value, str) else value


def _tells(key: str) -> bool:
    return any(word in key.lower() for word in TELLING)
