"""Simulates worlds without pytest: python -m tests.faults.simulation --seed 17 --worlds 1 --hours 24."""

import argparse
import logging
import sys
import time

import exporter
from tests.faults.simulation.world import simulate


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    parser.add_argument("--worlds", type=int, default=1, help="how many, each with the next seed")
    parser.add_argument("--hours", type=float, default=24.0, help="of each world")
    parser.add_argument("--events", action="store_true", help="print every event")
    parser.add_argument("--progress", action="store_true", help="a line for each world")
    asked = parser.parse_args()
    logger = logging.getLogger("tgi_probe")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    print(f"testing {exporter.__path__[0]}", flush=True)
    began, done, probes = time.process_time(), 0.0, 0
    for seed in range(asked.seed, asked.seed + asked.worlds):
        summary = simulate(seed, asked.hours, print if asked.events else None)
        if asked.progress:
            print(f"{seed}: {summary.probes} probes", file=sys.stderr)
        done, probes = done + summary.hours, probes + summary.probes
        if summary.problem is not None:
            print(summary.problem)
            return 1
    took = time.process_time() - began
    print(f"{done:.0f} hours, {probes} probes in {took:.1f} s of CPU: {done / took:.0f} hours per second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
