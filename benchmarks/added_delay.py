"""How much longer a call takes than the server says, beside the bare client; and with several ranks."""

import contextlib
import tempfile
import time

from benchmarks.bare import Bare
from benchmarks.processes import Server, socket_address
from benchmarks.report import Part, Ratio, Table, milliseconds, quantile
from exporter.analysis import certainty
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.observation import Observation, Outcome, Series, Stream
from exporter.probes.shard.prober import ShardProber

SERVICE_SECONDS = 0.005
BATCH_SIZES = (1, 32, 128)
SEQUENCE_LENGTH = 128
DECODE_LENGTH = 4
BLOCKS = 5
RANKS = (1, 2, 4, 8)
# Enough calls that what each is late adds up to more than the tolerance of one.
RANKS_DECODE_LENGTH = 32
RANKS_SECONDS = 0.02


def run(seconds: float) -> list[Table]:
    return [against_bare(seconds * 0.7), several_ranks(seconds * 0.3)]


def several_ranks(seconds: float) -> Table:
    rows = []
    for ranks in RANKS:
        calls, late, recorded, probes = measure_ranks(ranks, seconds / len(RANKS))
        cells = (milliseconds(quantile(values, q)) for values in (calls, late) for q in (0.5, 0.99))
        rows.append((str(ranks), *cells, f"{recorded} of {probes}"))
    notes = (
        f"As above: Decode, batch size 1, {RANKS_SECONDS * 1e3:g} ms of service, each rank a process. Late: how much "
        f"earlier than noted the slowest rank may have answered, or been asked later. Recorded: probes of "
        f"{RANKS_DECODE_LENGTH} tokens whose decode throughput is certain. From 4 ranks on the servers wait for each "
        "other's processors on a small machine.",
    )
    columns = ("ranks", "added p50", "added p99", "late p50", "late p99", "recorded")
    return Table("Several ranks", columns, tuple(rows), notes)


def measure_ranks(ranks: int, seconds: float) -> tuple[list[float], list[float], int, int]:
    """Of each Decode what was added and how late it may be, in seconds; recorded and all probes."""
    workload = Workload(
        name="benchmark", sequence_length=SEQUENCE_LENGTH, decode_length=RANKS_DECODE_LENGTH, batch_sizes=(1,)
    )
    calls: list[float] = []
    late: list[float] = []
    found: list[bool] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for rank in range(ranks):
            stack.enter_context(Server(f"unix://{folder}/shard-{rank}", RANKS_SECONDS, ranks))
        prober = ShardProber(Target(name="benchmark", address=f"unix://{folder}/shard-0"))
        prober.connect(5.0)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not found:
            streams = prober.probe(workload, 1, lambda: False).streams
            calls += added(streams[0])[1:]
            late += [step.late for step in streams[0].steps[1:]]
            observation = Observation(
                Series("benchmark", "benchmark", 1), 0, 0, 0, Outcome.OK, "OK", "", tuple(streams)
            )
            found.append(certainty.recorded(observation).decode_rate is not None)
        prober.close()
    return calls, late, sum(found), len(found)


def against_bare(seconds: float) -> Table:
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for transport, address in (("unix socket", socket_address(folder)), ("TCP", "127.0.0.1:0")):
            with Server(address, SERVICE_SECONDS) as server:
                for batch_size in BATCH_SIZES:
                    ours, bare = measure(server.address, batch_size, seconds / 2 / len(BATCH_SIZES))
                    for method in ("Prefill", "Decode"):
                        rows.append(row(transport, method, batch_size, ours[method], bare[method]))
    notes = (
        f"Client wall time minus the server's own total, {SERVICE_SECONDS * 1e3:g} ms of service, prompts of "
        f"{SEQUENCE_LENGTH} tokens. One probe and the same calls of the bare client take turns on one connection each. "
        f"Ratios of the medians and of the 99th percentiles; blocks: the ratios in each of {BLOCKS} parts of the run.",
    )
    columns = (
        *("", "batch", "added p50", "bare p50", "ratio p50", "blocks p50"),
        *("added p99", "bare p99", "ratio p99", "blocks p99", "calls"),
    )
    return Table("Added delay per call", columns, tuple(rows), notes)


def measure(address: str, batch_size: int, seconds: float) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Added seconds of each call, ours and the bare client's, by method."""
    prober = ShardProber(Target(name="benchmark", address=address))
    workload = Workload(
        name="benchmark", sequence_length=SEQUENCE_LENGTH, decode_length=DECODE_LENGTH, batch_sizes=(batch_size,)
    )
    bare = Bare(address, batch_size, SEQUENCE_LENGTH, DECODE_LENGTH)
    ours: dict[str, list[float]] = {"Prefill": [], "Decode": []}
    theirs: dict[str, list[float]] = {"Prefill": [], "Decode": []}
    prober.connect(5.0)
    for _ in range(3):  # not measured: connections, caches
        prober.probe(workload, batch_size, lambda: False)
        bare.batch()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        keep(ours, added(prober.probe(workload, batch_size, lambda: False).streams[0]))
        keep(theirs, [call.added for call in bare.batch()])
    prober.close()
    bare.close()
    return ours, theirs


def added(stream: Stream) -> list[float]:
    """Seconds of each step beyond the server's total."""
    steps = [(step, step.server.total) for step in stream.steps if step.server]
    return [step.arrived - step.asked - total for step, total in steps if total is not None]


def keep(values: dict[str, list[float]], batch: list[float]) -> None:
    values["Prefill"].append(batch[0])
    values["Decode"].extend(batch[1:])


def row(transport: str, method: str, batch_size: int, ours: list[float], bare: list[float]) -> tuple[str, ...]:
    cells: list[str] = []
    for q, limit in ((0.5, 1.15), (0.99, 1.5)):
        whole = Ratio(quantile(ours, q), quantile(bare, q), limit)
        parts = [quantile(a, q) / quantile(b, q) for a, b in blocks(ours, bare)]
        cells += [
            milliseconds(whole.figure),
            milliseconds(whole.bare),
            str(whole),
            f"from {min(parts):.2f} to {max(parts):.2f}",
        ]
    return (f"{method}, {transport}", str(batch_size), *cells, str(len(ours)))


def blocks(ours: list[float], bare: list[float]) -> list[tuple[list[float], list[float]]]:
    """Both in BLOCKS pieces, in the order of time."""
    return [
        (
            ours[n * len(ours) // BLOCKS : (n + 1) * len(ours) // BLOCKS],
            bare[n * len(bare) // BLOCKS : (n + 1) * len(bare) // BLOCKS],
        )
        for n in range(BLOCKS)
    ]


PART = Part(
    "added-delay",
    "Added delay per call",
    run,
    "threads with synchronous stubs, no event loop; requests are bytes before the clock is read, the clock is read "
    "right beside the call, answers are parsed after it. The bare client makes its bytes once, a probe makes new ones "
    "right before its Prefill, which then begins with colder caches. The parsing between two steps (0.07 ms for a "
    "batch of 1, 0.2 ms for 128) is in no number: durations of a shard are sums of its calls. Each further rank is "
    "called by a thread of its own: gRPC's futures hand an answer through several threads, each of which may wait for "
    "a CPU, so no decode throughput of two ranks was certain.",
)
