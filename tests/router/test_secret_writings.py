"""However a server writes the token that it was sent, and wherever a line is cut, nothing of it stays."""

import html
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.secrets import Secret
from exporter.observation import Failure
from exporter.probes.router.http_protocol import LONGEST_ERROR, EventStreamReader
from exporter.probes.router.server_errors import refused, shortened
from exporter.wire.http_codec import End

TOKEN = 'QWX"RT\\Y/VZ&K<J8947Z'
WRITINGS = {
    "as it is": TOKEN,
    "JSON": json.dumps(TOKEN)[1:-1],
    "JSON in JSON": json.dumps(json.dumps(TOKEN))[3:-3],
    "JSON with slashes escaped": json.dumps(TOKEN)[1:-1].replace("/", "\\/").replace("&", "\\u0026"),
    "JSON in numbers": "".join(f"\\u{ord(character):04X}" for character in TOKEN),
    "percent": quote(TOKEN, safe=""),
    "percent in small letters": "".join(f"%{ord(character):02x}" for character in TOKEN),
    "a path": quote(TOKEN),
    "HTML": html.escape(TOKEN),
}


def ended(body: bytes, status: int = 401, kind: str = "text/plain") -> str:
    answer = EventStreamReader("tgi", Secret(TOKEN))
    answer.head(status, {"content-type": kind})
    try:
        answer.body(0.0, body)
        answer.end(0.0, End())
        answer.tokens()
    except Failure as failure:
        return failure.detail
    raise AssertionError("no failure")


def leaks(detail: str) -> bool:
    """The first characters of the token are in no other text here."""
    return "QW" in detail or "%51" in detail or "u0051" in detail or TOKEN[-6:] in detail


@pytest.mark.parametrize("writing", WRITINGS)
def test_an_echo_is_hidden_wherever_the_line_is_cut(writing: str) -> None:
    for before in range(240):
        for body in ("x" * before + WRITINGS[writing], json.dumps({"error": "x" * before + WRITINGS[writing]})):
            assert not leaks(ended(body.encode()))
            assert not leaks(ended(body.encode(), 200))


@pytest.mark.parametrize("writing", WRITINGS)
def test_an_echo_in_an_event_is_hidden_wherever_the_line_is_cut(writing: str) -> None:
    for before in range(150, 210):
        text = "x" * before + WRITINGS[writing]
        for event in (json.dumps({"error": text}), text, json.dumps([text])):
            assert not leaks(ended(f"data: {event}\n\n".encode(), 200, "text/event-stream"))


@pytest.mark.parametrize("writing", WRITINGS)
def test_what_was_cut_before_it_came_to_us_keeps_no_part_of_the_token(writing: str) -> None:
    secret = Secret(TOKEN)
    for before in range(120, 210):
        assert not leaks(secret.hidden_cut(shortened("x" * before + WRITINGS[writing])))
        assert not leaks(secret.hidden_cut(refused(401, json.dumps({"error": "x" * before + TOKEN}).encode()).detail))


def test_an_echo_where_a_long_page_is_cut_is_hidden() -> None:
    for over in range(1, len(TOKEN)):
        body = b" " * (LONGEST_ERROR - over) + TOKEN.encode() + b"x" * 1000
        assert not leaks(ended(body))


def test_a_content_type_does_not_give_the_token_away() -> None:
    for before in range(170, 200):
        assert not leaks(ended(b"", 200, "x" * before + TOKEN).upper())


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1).map(str.strip).filter(bool), st.text())
def test_any_token_is_hidden_in_any_text(token: str, around: str) -> None:
    secret = Secret(token)
    for written in (token, json.dumps(token)[1:-1], quote(token, safe=""), html.escape(token)):
        assert secret.hidden(f"…{written}…{around}").startswith("……")


def test_without_a_token_nothing_is_hidden() -> None:
    assert Secret("").hidden("abc") == Secret("").hidden_cut("abc…")[:-1] == "abc"


def test_a_page_full_of_backslashes_takes_no_time_worth_naming() -> None:
    Secret('a\\"b').hidden("\\" * LONGEST_ERROR + 'a\\"c' * 1000)  # would take minutes if it were quadratic
