"""Every claim of docs/security.md has a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
CLAIMS = [line for line in PAGE.splitlines() if line.startswith("|") and "`tests/" in line]
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_the_page_makes_claims() -> None:
    assert len(CLAIMS) > 20
    assert len(NAMED) >= len(CLAIMS)


@pytest.mark.parametrize("table", re.findall(r"(?m)^\| claim \| test \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE))
def test_every_claim_names_a_test(table: str) -> None:
    assert not [row for row in table.splitlines() if not re.search(r"\| `tests/[\w/]+\.py::\w+`.* \|$", row)]


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
