"""A tokenizer that a test can predict by hand: pieces of at most four characters, each digit a token of its own."""

import re
import zlib

_PIECE = re.compile(r"\d|[^\s\d]{1,4}")
_VOCABULARY = 32000
_WORDS = ("the", "of", "and", "light", "water", "stone", "river", "under", "open", "small", "north", "seven")
# A router streams text, and text is not ASCII: two, three and four bytes in UTF-8, which a network may cut anywhere.
_ANSWER_WORDS = (*_WORDS[:9], "été", "水", "🌊")


def pieces(text: str) -> list[str]:
    """The tokens of a text, in order: "a river" is ["a", "rive", "r"], "b42" is ["b", "4", "2"]."""
    return _PIECE.findall(text)


def spans(text: str) -> list[tuple[int, int]]:
    """Where each token of a text starts and ends, in characters."""
    return [piece.span() for piece in _PIECE.finditer(text)]


def tokenised(text: str, special: bool = False) -> list[str]:
    """All tokens of a prompt. A server makes them all, and only then cuts."""
    return [*(["<s>"] if special else []), *pieces(text)]


def truncated(tokens: list[str], truncate: int) -> list[str]:
    """The tokens which stay of a prompt. It is cut from the left to `truncate`; 0 does not cut."""
    return tokens[-truncate:] or ["<pad>"]


def prompt_tokens(text: str, truncate: int, special: bool = False) -> list[str]:
    return truncated(tokenised(text, special), truncate)


def generated_word(request_id: int, index: int) -> str:
    """The token number `index` of an answer: any word will do, but always the same one."""
    return _word(_WORDS, request_id, index)


def answer_word(request_id: int, index: int) -> str:
    """As generated_word, for a router's answers: some words are not ASCII."""
    return _word(_ANSWER_WORDS, request_id, index)


def _word(words: tuple[str, ...], request_id: int, index: int) -> str:
    return " " + words[(request_id * 7 + index * 5 + index // len(words)) % len(words)]


def token_id(token: str) -> int:
    return zlib.crc32(token.encode()) % _VOCABULARY
