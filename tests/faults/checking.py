"""Break servers as a case says, keep what was seen, and check it."""

from collections.abc import Callable, Sequence

import pytest

from tests.faults.broken import RECOVERY, Broken
from tests.faults.cases import Case
from tests.faults.results import keep
from tests.faults.servers import Server


def parameters(cases: Sequence[Case]) -> list[object]:
    """For `pytest.mark.parametrize`. The whole table is `make faults`; some of it runs always."""
    return [pytest.param(one, id=str(one), marks=() if one.in_minutes else pytest.mark.faults) for one in cases]


def check(
    broken: Broken, one: Case, break_it: Callable[[Server], None], mend: Callable[[Server], None] = Server.mend
) -> None:
    seen = broken.run(one.kinds, break_it, mend, one.harmless)
    keep(one, seen)
    for kind, what in seen.items():
        shown = f"{one} {kind}: {what}"
        assert set(what.outcomes) - {"quarantined"} <= one.right(kind), shown
        if kind not in one.may_quarantine:
            assert ("quarantined" in what.outcomes) == (kind in one.quarantines), shown
        assert what.recovery <= RECOVERY, shown
        assert what.left == 0, shown
