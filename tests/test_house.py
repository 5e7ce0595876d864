"""Rules of the house: a class name means one thing, a folder's docstring lists its files, files are short."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "exporter"
FILES = sorted(file for file in ROOT.rglob("*.py") if ROOT / "pb" not in file.parents)
FOLDERS = sorted({file.parent for file in FILES} - {ROOT})
LONGEST_FILE = 400  # lines


def place(path: Path) -> str:
    return str(path.relative_to(ROOT.parent))


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(place(file))
    assert not {name: found for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize("folder", FOLDERS, ids=place)
def test_the_docstring_of_a_folder_names_files_that_exist(folder: Path) -> None:
    """A line of the list begins with a name and at least two spaces."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    listed = re.findall(r"^([a-z0-9_]+/?) {1,}(?= )", docstring, re.MULTILINE)
    assert not [name for name in listed if not (folder / name).is_dir() and not (folder / f"{name}.py").is_file()]


@pytest.mark.parametrize("folder", FOLDERS, ids=place)
def test_the_docstring_of_a_folder_names_each_of_its_files(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert not files - set(re.findall(r"\w+", docstring))


@pytest.mark.parametrize("file", FILES, ids=place)
def test_no_file_is_too_long_to_read(file: Path) -> None:
    assert len(file.read_text("utf-8").splitlines()) <= LONGEST_FILE
