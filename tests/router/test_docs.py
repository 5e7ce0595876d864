"""Every configuration in the documentation is one that `tgi-probe check` takes."""

import re
from pathlib import Path

import pytest

from exporter.cli import main

ROOT = Path(__file__).parents[2]
BLOCKS = [
    (file.name, number, block)
    for file in (ROOT / "docs" / "router.md",)
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", file.read_text("utf-8"), re.DOTALL))
]


@pytest.mark.parametrize(("name", "number", "block"), BLOCKS, ids=[f"{name}-{number}" for name, number, _ in BLOCKS])
def test_a_configuration_in_the_documentation_is_taken(
    name: str, number: int, block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"{name}-{number}.yaml"
    file.write_text(block, "utf-8")
    assert main(["check", "--syntax-only", "--config", str(file)]) == 0, capsys.readouterr().err


def test_there_are_configurations_in_the_documentation() -> None:
    assert len(BLOCKS) >= 4
