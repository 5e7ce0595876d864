"""What was seen, one line of JSON for each case and kind of target, in the file that FAULTS_RESULTS names."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tests.faults.broken import Seen
from tests.faults.cases import Case

VARIABLE = "FAULTS_RESULTS"


def keep(case: Case, seen: Mapping[str, Seen]) -> None:
    """Append, so that several processes can write."""
    file = os.environ.get(VARIABLE)
    if not file:
        return
    lines = [json.dumps({"case": case.key, "kind": kind, **asdict(what)}) for kind, what in seen.items()]
    with Path(file).open("a", encoding="utf-8") as out:
        out.write("".join(f"{line}\n" for line in lines))
