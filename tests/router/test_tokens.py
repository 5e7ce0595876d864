"""A bearer token from a variable or a file: what is taken for it, and what is said where it is none."""

from pathlib import Path

import pytest

from exporter.observation import Failure
from exporter.wire.credentials import bearer_token

FROM = ["variable", "file"]


def token_from(source: str, text: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str | None:
    """The token as it is sent, that was put into a variable or a file."""
    if source == "variable":
        monkeypatch.setenv("ROUTER_TOKEN", text)
        return bearer_token("h", "ROUTER_TOKEN", None)
    (folder / "token").write_text(text, "utf-8", newline="")
    return bearer_token("h", None, str(folder / "token"))


@pytest.mark.parametrize("source", FROM)
@pytest.mark.parametrize("around", ["%s", "%s\n", "%s\r\n", " %s", "\t%s \n\n", "\ufeff%s", "\ufeff %s\n"])
def test_what_stands_around_a_token_is_no_part_of_it(
    source: str, around: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert token_from(source, around % "sk-abc", monkeypatch, tmp_path) == "sk-abc"


@pytest.mark.parametrize("source", FROM)
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("sk-abc\nsk-def\n", "holds a line end in the middle"),
        ("sk-\u00e4", "holds a character that a header cannot have"),
        ("sk-\x01abc", "holds a character that a header cannot have"),
        ("Bearer sk-abc", "begins with the word Bearer"),
    ],
)
def test_what_is_wrong_with_a_token_is_said_and_the_token_is_not(
    source: str, text: str, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Failure) as caught:
        token_from(source, text, monkeypatch, tmp_path)
    assert what in caught.value.detail
    assert "sk-" not in caught.value.detail


def test_a_token_that_stands_where_the_name_of_its_variable_should_is_not_shown() -> None:
    with pytest.raises(Failure) as caught:
        bearer_token("h", "s3cret", None)
    assert "no variable of that name is set; give the name of a variable" in caught.value.detail
    assert "s3cret" not in caught.value.detail
    with pytest.raises(Failure, match="the variable ROUTER_TOKEN is not set"):
        bearer_token("h", "ROUTER_TOKEN", None)
