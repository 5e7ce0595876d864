"""A tokenizer small enough to predict by hand: words cut into pieces of at most four characters."""

import zlib

_PIECE = 4
_VOCABULARY = 32000
_WORDS = ("the", "of", "and", "light", "water", "stone", "river", "under", "open", "small", "north", "seven")


def pieces(text: str) -> list[str]:
    """The tokens of a text, in order: "a river" is ["a", "rive", "r"]."""
    return [word[at : at + _PIECE] for word in text.split() for at in range(0, len(word), _PIECE)]


def prompt_tokens(text: str, truncate: int, special: bool = False) -> list[str]:
    """The tokens which stay of a prompt. It is cut from the left to `truncate`; 0 does not cut."""
    tokens = [*(["<s>"] if special else []), *pieces(text)]
    return tokens[-truncate:] or ["<pad>"]


def generated_word(request_id: int, index: int) -> str:
    """The token number `index` of an answer: any word will do, but always the same one."""
    return " " + _WORDS[(request_id * 7 + index * 5 + index // len(_WORDS)) % len(_WORDS)]


def token_id(token: str) -> int:
    return zlib.crc32(token.encode()) % _VOCABULARY
