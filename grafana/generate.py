"""Writes grafana/dashboards/*.json. With `--check` it writes nothing, and fails if a file differs."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import batch_sizes, exporter, fleet, latency, slo

FOLDER = Path(__file__).parent / "dashboards"
DASHBOARDS: dict[str, Callable[[], Dashboard]] = {
    "batch-sizes": batch_sizes.build,
    "slo": slo.build,
    "latency": latency.build,
    "fleet": fleet.build,
    "exporter": exporter.build,
}


def texts() -> dict[Path, str]:
    """File → content."""
    return {
        FOLDER / f"{name}.json": json.dumps(build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for name, build in DASHBOARDS.items()
    }


def main(arguments: Sequence[str]) -> int:
    wanted = texts()
    if "--check" in arguments:
        there = {path: path.read_text() for path in FOLDER.glob("*.json")}
        different = sorted(path.name for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))
        if different:
            print(
                f"differs from what grafana/*.py make: {', '.join(different)}; run `make dashboards`", file=sys.stderr
            )
        return 1 if different else 0
    FOLDER.mkdir(exist_ok=True)
    for path, text in wanted.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
