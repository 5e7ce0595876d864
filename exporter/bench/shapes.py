"""Named shapes of requests: typical lengths of prompts and answers, in tokens. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    sequence_length: int
    decode_length: int
    what: str


SHAPES = {
    "chat": Shape(512, 256, "a conversation: a short history, an answer of some paragraphs"),
    "rag": Shape(3072, 256, "an answer from documents: long prompt, short answer"),
    "code": Shape(1024, 64, "completion of code: a file as prompt, a few lines as answer"),
}
