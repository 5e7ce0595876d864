"""The bounds that the tests of this folder keep, and how many examples they get."""

import pytest

from tests.faults.fuzz import examples


@pytest.mark.parametrize(
    ("expression", "at_length"),
    [("faults", True), ("slow or faults", True), ("not alone and not slow and not faults", False), ("", False)],
)
def test_the_marker_chooses_the_number_of_examples(expression: str, at_length: bool) -> None:
    assert examples.chosen(expression) is at_length


def test_what_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "HANGS_AFTER", 0.05)

    def run() -> None:
        with examples.ends("this"):
            while True:
                pass

    with pytest.raises(AssertionError, match=r"no end after 0\.05 s: 'this'"):
        run()


def test_what_takes_too_much_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"2\.0 MiB, and at most 1\.0 MiB"), examples.takes_at_most(examples.MIB):
        bytes(2 * examples.MIB)
