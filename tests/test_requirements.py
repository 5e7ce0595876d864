"""The lock files, as far as they can be checked without the network.

Known vulnerabilities and withdrawn releases are not among that: `make audit` asks PyPI for them.
"""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Of each lock file, what pyproject.toml asks for.
RUN = PROJECT["project"]["dependencies"]
GROUPS = PROJECT["dependency-groups"]
WANTED = {
    "run": RUN,
    "dev": [*RUN, *PROJECT["project"]["optional-dependencies"]["screen"], *GROUPS["dev"]],
    "peers": GROUPS["peers"],
    "build": GROUPS["build"],
}


def locked(file: Path) -> list[tuple[Requirement, list[str]]]:
    """Each requirement with its hashes. A line that is neither fails."""
    found: list[tuple[Requirement, list[str]]] = []
    for line in file.read_text("utf-8").replace(" \\\n", " ").splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            found.append((Requirement(requirement), hashes))
    return found


def versions(file: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for requirement, _ in locked(file):
        found.setdefault(name(requirement), set()).add(str(requirement.specifier).removeprefix("=="))
    return found


def name(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def stem(file: Path) -> str:
    return file.stem


def test_every_lock_file_is_known_here() -> None:
    assert {file.stem for file in LOCKS} == set(WANTED)


@pytest.mark.parametrize("file", LOCKS, ids=stem)
def test_every_requirement_is_one_release_from_the_index_with_its_hashes(file: Path) -> None:
    assert locked(file)
    for requirement, hashes in locked(file):
        assert requirement.url is None, requirement
        assert [one.operator for one in requirement.specifier] == ["=="], requirement
        assert "*" not in str(requirement.specifier), requirement
        assert hashes, f"{requirement} has no hashes"
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in hashes), requirement


@pytest.mark.parametrize("file", LOCKS, ids=stem)
def test_the_locked_releases_are_those_that_the_project_asks_for(file: Path) -> None:
    have = versions(file)
    assert not list(wrong(WANTED[file.stem], have))


def wrong(wanted: Iterable[object], have: dict[str, set[str]]) -> Iterable[str]:
    for text in wanted:
        requirement = Requirement(str(text))
        found = have.get(name(requirement), set())
        if not found or not all(requirement.specifier.contains(version, prereleases=True) for version in found):
            yield f"{requirement}: locked is {found or 'none'}"


@pytest.mark.parametrize("smaller", ["run", "build"])
def test_what_is_tested_is_what_is_shipped(smaller: str) -> None:
    """run.txt and build.txt are subsets of dev.txt, with the same versions."""
    tested = versions(ROOT / "requirements" / "dev.txt")
    assert not {
        one: found
        for one, found in versions(ROOT / "requirements" / f"{smaller}.txt").items()
        if found != tested.get(one)
    }


def test_a_release_outside_of_the_bounds_would_be_seen() -> None:
    assert list(wrong(["h11>=0.16,<1"], {"h11": {"0.15.0"}}))
    assert list(wrong(["h11>=0.16,<1"], {}))
