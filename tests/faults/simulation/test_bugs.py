"""The simulation can fail: it finds every bug that is put in on purpose."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.simulation.bugs import BUGS, ROOT, Bug

WORLDS, HOURS = 200, 10


def simulated(folder: Path) -> subprocess.CompletedProcess[str]:
    """With the exporter in this folder."""
    command = [sys.executable, "-m", "tests.faults.simulation", "--worlds", str(WORLDS), "--hours", str(HOURS)]
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.faults
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_bug_put_in_on_purpose_is_found(
    bug: Bug, tmp_path: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "exporter", tmp_path / "exporter", ignore=shutil.ignore_patterns("__pycache__"))
    bug.put_into(tmp_path / "exporter")
    done = simulated(tmp_path)
    assert f"testing {tmp_path / 'exporter'}" in done.stdout, done.stderr
    found = re.search(r"^seed (\d+), virtual instant (\S+) s: ([^:]+):", done.stdout, re.MULTILINE)
    assert found is not None, f"not found: {bug.name}; a property is missing\n{done.stdout}{done.stderr}"
    record_property("seed", found[1])
    with capsys.disabled():
        print(f"\n{bug.name}: found with seed {found[1]} after {float(found[2]) / 3600:.2f} hours: {found[3]}")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_each_bug_still_fits_the_code(bug: Bug) -> None:
    assert (ROOT / "exporter" / bug.file).read_text("utf-8").count(bug.right) == 1, bug.name
