"""The references are what the code says, and the pages' links lead somewhere."""

import re
from pathlib import Path

import pytest

from docs import generate

DOCS = Path(generate.__file__).parent
PAGES = sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"])


def test_the_references_are_what_the_code_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert generate.main() == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_finds_it(page: Path) -> None:
    for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


MESSAGES = (
    "no such socket",
    "is the server up, and its directory shared with this container?",
    "this shard keeps a paged KV cache, and a probe would overwrite",
    "the web file is wrong, what was read before stays in force",
    "is not a known key; check the spelling, or remove it",
    "standing still",
    "nobody listens on this socket",
    "without trailers, which hold the status",
    "does it want a certificate of ours?",
)


@pytest.mark.parametrize("message", MESSAGES)
def test_troubleshooting_quotes_messages_as_they_are(message: str) -> None:
    code = "".join(file.read_text("utf-8") for file in sorted((DOCS.parent / "exporter").rglob("*.py")))
    # In the code a message may be broken over lines.
    assert re.sub(r'["\s]', "", message) in re.sub(r'"\s+f?"|["\s]', "", code)
    assert message in (DOCS / "troubleshooting.md").read_text("utf-8")
