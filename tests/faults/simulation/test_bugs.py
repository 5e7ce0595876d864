"""The simulation can fail: it finds every bug that is put in on purpose."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.simulation.bugs import BUGS, ROOT, Bug, find

by_name = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))


@pytest.mark.faults
@by_name
def test_a_bug_put_in_on_purpose_is_found(
    bug: Bug, tmp_path: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    found = find(bug, tmp_path)
    record_property("seed", found.seed)
    with capsys.disabled():
        print(f"\n{bug.name}: found with seed {found.seed} after {found.hours:.2f} hours: {found.broken}")


@by_name
def test_the_text_of_each_bug_is_in_the_code_once(bug: Bug) -> None:
    assert (ROOT / "exporter" / bug.file).read_text("utf-8").count(bug.right) == 1, bug.name
