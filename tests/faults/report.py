"""Writes docs/reliability.md from what `make faults` has seen: `python -m tests.faults.report RESULTS`.

A run of some cases only does not change the page.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.cases import COMMANDED, ELSEWHERE, NETWORK, ONE_LINK, RESTARTS, Case
from tests.faults.servers import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
FAULTS = {
    "internal": "answers INTERNAL (HTTP: 424)",
    "unknown": "answers UNKNOWN (HTTP: 500)",
    "unavailable": "answers UNAVAILABLE (HTTP: 503)",
    "resource_exhausted": "answers RESOURCE_EXHAUSTED (HTTP: 429)",
    "cancelled": "answers CANCELLED (HTTP: 499)",
    "hang": "does not answer",
    "kill": "is killed (SIGKILL)",
    "exit": "stops (SIGTERM) and starts again on its address",
    "freeze": "is stopped (SIGSTOP) for longer than the timeout",
    "crash": "one rank ends, and takes the others along",
    "other_ids": "answers with ids of other requests",
    "missing": "leaves a request out",
    "extra": "answers a request twice; a router: 1,000 tokens too many",
    "no_tokens": "answers without a token",
    "endless": "never ends the answer",
    "absurd_times": "says that it took 584 years",
    "huge": "sends a token of 100 MB",
    "garbage": "sends bytes that are no message",
}
NETWORK_FAULTS = {
    "reset": "connection reset (RST)",
    "close": "connection closed",
    "hold": "nothing passes, and no connection ends",
    "delay": "every packet 1 ms later",
    "drip": "one byte every 50 ms",
    "truncate": "half of an answer, then the end",
    "garbage": "bytes that are no answer",
    "http": "an HTTP/1.1 error instead of an answer",
    "goaway": "GOAWAY: nothing was processed",
    "goaway_late": "GOAWAY: what is under way may end",
}
SERVERS = {"shard-v2": "a shard of protocol v2", "fmaas": "a router over gRPC", "tgi": "an HTTP router"}
MOMENTS = {"": "any time", "info": "facts (Info)", "decode": "k-th decode, mid-stream", "clear": "decode, then clear"}

TEXT = """<!-- Written by `make faults` from what it has seen. Do not edit. -->

# What happens when things break

`make faults` breaks servers and the network between, on purpose, under one running daemon: servers of every kind at
once, with two healthy ones beside them. Servers are processes of their own, and each fault comes at an exact moment.
For each fault the suite asserts:

- The attempt has the right `outcome` in `tgi_probe_attempts_total`.
- No failed probe gave a latency: the histograms hold as many values as there were answers.
- The log has no exception.
- After the end of the fault the next probe is answered, or, where one was under way, the one after it. It is due once
  the pause after failures is over: half a second to a second after the first failure, doubled by each one in a row,
  30 s at most.
- The server holds no batch and no request of ours, and nobody else's batch was cleared.
- The healthy targets were probed meanwhile, and none of their probes failed.

A cell has the outcome, and which probe after the end of the fault was answered. `(+2)`: two due times, a second apart,
passed before it, in the pause after failures or while the attempt that had met the fault was not over (a server that
says nothing is waited for up to 10 s, to connect and to clear a batch). With the default interval of 30 s most of them
are 0. `quarantined`: the shard ended during the batch, so the batch is not sent again until a person
[allows it](safety.md#when-a-server-ended-during-a-probe); the probes count from then. `ok` means that the fault does no
harm to a probe: it is answered.
"""
END = """
## What the suite does not break

- **A call that reaches one rank and not the other.** A rank that computes waits for the others, and in the end ends the
  whole shard. Ranks on one machine are called over unix sockets, which no network cuts, and the probe always calls all
  of them at once. What remains: tgi-probe is killed between two of its calls ([safety.md](safety.md#after-a-kill)), or
  the shard itself is stopped (SIGSTOP, a paused virtual machine) for longer than the probe's `timeout` when only some
  ranks have begun. Such a shard ended here after its ranks' own timeout, and so it does where one rank answers an error
  to a call that the other is computing.
- **Real GPUs.** The servers are the simulated ones, with the calls and errors of the real ones.
"""


def main(arguments: Sequence[str]) -> int:
    [results] = map(Path, arguments)
    seen = read(results.read_text("utf-8").splitlines())
    lacking = [f"{case.key} {kind}" for case in every_case() for kind in case.kinds if (case.key, kind) not in seen]
    if lacking:
        print(f"docs/reliability.md stays as it is: {len(lacking)} cases were not run, such as {lacking[0]}")
        return 0
    day = datetime.fromtimestamp(results.stat().st_mtime, UTC).strftime("%Y-%m-%d")
    PAGE.write_text(page(seen, day), "utf-8")
    print(f"docs/reliability.md: {len(seen)} results")
    return 0


def every_case() -> list[Case]:
    return [*COMMANDED, *RESTARTS, *NETWORK, *ONE_LINK, *ELSEWHERE]


def read(lines: Iterable[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """By case and kind; of several runs the newest."""
    return {(row["case"], row["kind"]): row for row in map(json.loads, lines)}


def page(seen: dict[tuple[str, str], dict[str, Any]], day: str) -> str:
    parts = [
        TEXT,
        f"{sum(len(case.kinds) for case in every_case())} results, seen on {day}:",
        "\n## The server\n",
        *table([*COMMANDED, *RESTARTS], "the server", FAULTS, seen),
        "\n## The network\n",
        *table([*NETWORK, *ONE_LINK], "the network", NETWORK_FAULTS, seen),
        "\n## Another server at the address\n",
        *table(ELSEWHERE, "what answers there", SERVERS, seen),
        END,
    ]
    return "\n".join(parts)


def table(
    cases: Sequence[Case], title: str, names: dict[str, str], seen: dict[tuple[str, str], dict[str, Any]]
) -> list[str]:
    lines = [f"| {title} | when | {' | '.join(KINDS)} |", f"|---|---|{'---|' * len(KINDS)}"]
    for case in cases:
        cells = [cell(seen.get((case.key, kind))) for kind in KINDS]
        lines.append(f"{beginning(case, names)}{' | '.join(cells)} |")
    return lines


def beginning(case: Case, names: dict[str, str]) -> str:
    """Of the case's line."""
    name = names[case.fault] + (", one rank of two" if case.more.get("rank") else "")
    return f"| {name} | {MOMENTS.get(case.moment, case.moment)} | "


def rows(page: str, case: Case) -> dict[str, str]:
    """The cells of a case on the page, by kind; those that are not empty. Several lines may begin in the same way."""
    names = SERVERS if case in ELSEWHERE else NETWORK_FAULTS if case.of == "network" else FAULTS
    found = dict.fromkeys(KINDS, "")
    for line in page.splitlines():
        if line.startswith(beginning(case, names)):
            cells = [cell.strip() for cell in line.strip("|").split("|")[2:]]
            found |= {kind: shown for kind, shown in zip(KINDS, cells, strict=True) if shown}
    return {kind: shown for kind, shown in found.items() if shown and kind in case.kinds}


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    outcomes = sorted(row["outcomes"], key=lambda outcome: outcome == "quarantined")
    waited = row["pause"] + row["busy"]
    pause = f" (+{waited})" if waited else ""
    left = f", left: {row['left']}" if row["left"] else ""
    return f"{', '.join(outcomes)}: {row['recovery']}{pause}{left}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
