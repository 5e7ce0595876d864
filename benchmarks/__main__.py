"""`python -m benchmarks [PART …]`: measure, and print the tables as Markdown. See README.md for what they mean."""

import argparse
import sys
import time
from pathlib import Path

from benchmarks import (
    added_delay,
    against,
    buckets,
    company,
    disturbances,
    hostile,
    interpreter,
    pages,
    prefill,
    prometheus,
    report,
    scale,
    sidecar,
    soak,
    streams,
    users,
)
from benchmarks.report import Part

PARTS: tuple[Part, ...] = (
    added_delay.PART,
    prefill.PART,
    company.PART,
    interpreter.PART,
    scale.PART,
    pages.PART,
    prometheus.PART,
    sidecar.PART,
    buckets.PART,
    streams.PART,
    disturbances.PART,
    hostile.PART,
    users.PART,
    soak.PART,
)
HEAD = """\
# Results

Written by `python -m benchmarks {words}`.
One machine, one run: read ratios and reaches, not absolute times; [README.md](README.md) says what may be concluded.
✓ and ✗ say whether a figure is within its reach.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(names)}; all but soak when left out")
    parser.add_argument("--seconds", type=float, default=50.0, help="for each part (default 50)")
    parser.add_argument("--calls", type=int, default=20_000, help="of the soak (default 20000, half a minute)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables there as well")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="compare with a checkout that has its own .venv")
    parser.add_argument("--rounds", type=int, default=5, help="of a comparison (default 5)")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(names))
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [part for part in PARTS if part.name in (options.parts or set(names) - {soak.PART.name})]
    text = [HEAD.format(words=" ".join(sys.argv[1:])), *(f"- {line}" for line in report.machine())]
    for part in chosen:
        print(f"{part.title} …", file=sys.stderr, flush=True)
        began = time.perf_counter()
        tables = measured(part, options)
        text.append(f"\n## {part.title}\n")
        text += [f"{table.markdown()}\n" for table in tables]
        if part.decision and not options.against:
            text.append(f"**Decided by such figures:** {part.decision}\n")
        text.append(f"({time.perf_counter() - began:.0f} s)")
        print("\n".join(table.markdown() + "\n" for table in tables), flush=True)
    if options.write:
        options.write.write_text("\n".join(text) + "\n")
    return 0


def measured(part: Part, options: argparse.Namespace) -> list[report.Table]:
    if options.against:
        return [against.compare(part.name, options.seconds, options.against.resolve(), options.rounds)]
    if part is soak.PART:
        return soak.run(soak.LONGEST_SECONDS, options.calls)
    return part.run(options.seconds)


if __name__ == "__main__":
    sys.exit(main())
