"""How much longer a Prefill is than one of exact text, on a shard with a slow tokeniser.

A shard tokenises all the text that it gets, and truncates afterwards.
"""

import random
import tempfile
import time

from benchmarks.bare import Bare
from benchmarks.processes import Process, socket_address
from benchmarks.report import Part, Ratio, Table, median, milliseconds
from exporter.analysis import timeline
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.plan.words import WORDS
from exporter.probes.shard.prober import ShardProber

SEQUENCE_LENGTH = 512
BATCH_SIZES = (1, 8, 32)
# An NVIDIA H100 with a model of 8 billion parameters, and a smaller model, where tokenising is a larger share.
SHARDS = {"H100, 8 B": "1", "ten times as fast": "10"}
MICROSECOND = "0.000001"


def run(seconds: float) -> list[Table]:
    rows = []
    for name, speed in SHARDS.items():
        for batch_size in BATCH_SIZES:
            rows.append(measure(name, speed, batch_size, seconds / len(SHARDS) / len(BATCH_SIZES)))
    notes = (
        f"Prompts of {SEQUENCE_LENGTH} tokens, decode_length 1, a simulated shard that takes 1 µs for each token "
        "of text. In turns: a probe as it is recorded; the bare client with text of exactly as many tokens; the bare "
        "client with the longer text that is sent where the shard does not tell its tokens.",
    )
    columns = (
        "shard",
        "batch",
        "exact text p50",
        "ours p50",
        "ratio",
        "unknown text p50",
        "unknown text ratio",
        "turns",
    )
    return [Table("Prefill beside one of exact text", columns, tuple(rows), notes)]


def measure(name: str, speed: str, batch_size: int, seconds: float) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        # `--speed` makes the tokeniser faster too: undo it.
        tokenizer = str(float(MICROSECOND) * float(speed))
        options = ("--listen", socket_address(folder), "--jitter", "0", "--speed", speed, "--tokenizer", tokenizer)
        with Process(["-m", "exporter", "simulate", *options]) as server:
            address = server.read().split()[-1]
            try:
                ours, exact, unknown = turns(address, batch_size, seconds)
            finally:
                server.stop()
    return (
        name,
        str(batch_size),
        milliseconds(median(exact)),
        milliseconds(median(ours)),
        str(Ratio(median(ours), median(exact), 1.02)),
        milliseconds(median(unknown)),
        f"{median(unknown) / median(exact):.3f}",
        str(len(ours)),
    )


def turns(address: str, batch_size: int, seconds: float) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each Prefill: ours, of exact text, of text of an unknown length."""
    prober = ShardProber(Target(name="benchmark", address=address))
    workload = Workload(name="benchmark", sequence_length=SEQUENCE_LENGTH, decode_length=1, batch_sizes=(batch_size,))
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=SEQUENCE_LENGTH)) for _ in range(batch_size)]
    exact = Bare(address, batch_size, SEQUENCE_LENGTH, 1, texts)
    unknown = Bare(address, batch_size, SEQUENCE_LENGTH, 1)
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    prober.connect(5.0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[0]) < 5:
        [stream] = prober.probe(workload, batch_size, lambda: False).streams
        found[0].append(timeline.time_to_first_token(stream) or 0.0)
        for bare, kept in ((exact, found[1]), (unknown, found[2])):
            call = bare.prefill()
            kept.append(call.arrived - call.asked)
    prober.close()
    exact.close()
    unknown.close()
    return tuple(kept[2:] for kept in found)  # type: ignore[return-value]  # not measured: connections, caches


PART = Part(
    "prefill",
    "Prefill beside one of exact text",
    run,
    "before its first probe a shard is asked, with one small request, which of our words are one token each; prompts "
    "are made of those (`exporter/plan/workload.py`).",
)
