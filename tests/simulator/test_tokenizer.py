import pytest

from exporter.simulator.tokenizer import pieces, prompt_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("a river", ["a", "rive", "r"]),
        (" two  words ", ["two", "word", "s"]),
        ("b42 x", ["b", "4", "2", "x"]),
    ],
)
def test_words_are_cut_into_pieces_of_four_and_digits_stand_alone(text: str, tokens: list[str]) -> None:
    assert pieces(text) == tokens


def test_truncation_keeps_the_end_of_the_prompt() -> None:
    assert prompt_tokens("one two six", truncate=2) == ["two", "six"]


def test_the_special_token_counts_as_one_and_is_cut_first() -> None:
    assert prompt_tokens("one two", truncate=3, special=True) == ["<s>", "one", "two"]
    assert prompt_tokens("one two", truncate=2, special=True) == ["one", "two"]


def test_an_empty_prompt_is_one_token_of_padding() -> None:
    assert prompt_tokens("", truncate=4) == ["<pad>"]
