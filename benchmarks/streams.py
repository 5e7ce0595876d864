"""What a load generator adds: ours, a bare client and two public tools on the same simulated router, in turns.

All requests of a run are in flight at once; each has a prompt of 64 tokens and an answer of 64. What a client reports
for a request is held against the router's own record of it. The bare client is that of `router_doors`: sockets opened
and requests made before the start, bytes stamped as they are read. The public tools live in environments of their own
(`make load-tools`); without them their rows say so.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import router_doors
from benchmarks.report import Part, Ratio, Table, milliseconds, quantile
from exporter.plan.prompts import Prompts
from exporter.plan.words import WORDS

TOOLS = Path(".cache/load-tools")
STREAMS = (64, 500)
# A turn of ours and of the bare client, with 64 and with 500 streams, takes about so long.
TURN_SECONDS = 15.0
OURS, BARE = "tgi-probe", "bare client"
# Ratios to the bare client's TTFT, median and 99th percentile; the floor is one slice of the scheduler.
TTFT_LIMITS, TTFT_FLOOR = (1.5, 2.0), 0.003
GAP_LIMIT, GAP_FLOOR = 1.5, 0.0005
TOKENS = 64
MODEL = "embedded/llama-3-8b"
ROUTER = (
    *("-m", "exporter", "simulate", "--router-http", "127.0.0.1:0", "--admin-address", "127.0.0.1:0"),
    *("--max-concurrent-requests", "1000", "--max-batch-prefill-tokens", "65536", "--jitter", "0"),
    *("--record-limit", "5000"),
)
MOST_SECONDS = 150.0


@dataclass(frozen=True, slots=True)
class ReportedRequest:
    """One request as a client reports it, in seconds. `key` finds it in the router's record."""

    key: str
    ttft: float
    gaps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RouterPlace:
    """Where a run's router listens, and a folder for the client."""

    url: str
    folder: Path


Client = Callable[[RouterPlace, int], list[ReportedRequest]]


def ours(place: RouterPlace, streams: int) -> list[ReportedRequest]:
    return _in_a_process("ours", place, streams)


def bare(place: RouterPlace, streams: int) -> list[ReportedRequest]:
    return _in_a_process("bare", place, streams)


def _in_a_process(client: str, place: RouterPlace, streams: int) -> list[ReportedRequest]:
    file = place.folder / "requests.json"
    _call([sys.executable, "-m", "benchmarks.streams", client, place.url, str(streams), str(file)])
    return [ReportedRequest(key, ttft, tuple(gaps)) for key, ttft, gaps in json.loads(file.read_text())]


def probe(url: str, streams: int) -> list[ReportedRequest]:
    """The prober, in the process made for it."""
    from exporter.analysis import timeline
    from exporter.config.target import Target
    from exporter.config.workload import Workload
    from exporter.probes.router.http_protocol import HttpProtocol
    from exporter.probes.router.prober import StreamProber

    class Keeping(HttpProtocol):
        """Keeps the prompts, in the order of the streams."""

        def request(self, prompt: str, workload: Workload, seed: int) -> Any:
            prompts.append(prompt)
            return super().request(prompt, workload, seed)

    prompts: list[str] = []
    sys.setswitchinterval(0.0005)
    target = Target(name="r", kind="http", address=url, api="completions")
    workload = Workload.model_validate({"name": "w", "sequence_length": 64, "decode_length": TOKENS, "timeout": "2m"})
    prober = StreamProber(target, Keeping(target))
    prober.connect(5.0)
    result = prober.probe(workload, streams, lambda: False)
    prober.close()
    requests = []
    for prompt, stream in zip(prompts[-streams:], result.streams, strict=True):
        arrivals = [step.arrived for step in stream.steps for _ in range(step.tokens)]
        requests.append(
            ReportedRequest(prompt[:64], timeline.time_to_first_token(stream) or 0.0, tuple(_gaps(arrivals)))
        )
    return requests


def exchange(url: str, streams: int) -> list[ReportedRequest]:
    """The bare client, in the process made for it."""
    place = url.removeprefix("http://")
    requests = []
    for stream in router_doors.run("http", router_doors.http_stream, place, streams, "bare"):
        arrivals = stream.parse(stream)
        requests.append(ReportedRequest(stream.key, arrivals[0] - stream.sent, tuple(_gaps(arrivals))))
    return requests


def inference_perf(place: RouterPlace, streams: int) -> list[ReportedRequest]:
    lengths = {"min": TOKENS, "max": TOKENS, "mean": TOKENS, "std_dev": 0, "total_count": streams}
    config = {
        "api": {"type": "completion", "streaming": True},
        "data": {"type": "random", "input_distribution": lengths, "output_distribution": lengths},
        "load": {
            "type": "concurrent",
            "num_workers": 1,
            "worker_max_concurrency": streams,
            "stages": [{"concurrency_level": streams, "num_requests": streams}],
        },
        "server": {"type": "vllm", "model_name": MODEL, "base_url": place.url, "ignore_eos": False},
        "tokenizer": {"pretrained_model_name_or_path": "local/words"},
        "report": {"request_lifecycle": {"summary": True, "per_stage": True, "per_request": True}},
        "storage": {"local_storage": {"path": str(place.folder / "out")}},
    }
    file = place.folder / "config.json"  # JSON is YAML
    file.write_text(json.dumps(config))
    _call([str(tool("inference-perf")), "--config_file", str(file)], place.folder)
    requests = []
    for entry in json.loads((place.folder / "out" / "per_request_lifecycle_metrics.json").read_text()):
        arrivals = entry["info"]["response_metrics"]["output_token_times"]
        prompt = json.loads(entry["request"])["prompt"]
        requests.append(ReportedRequest(prompt[:64], arrivals[0] - entry["start_time"], tuple(_gaps(arrivals))))
    return requests


def aiperf(place: RouterPlace, streams: int) -> list[ReportedRequest]:
    texts = Prompts(Random()).texts(streams, TOKENS)
    file = place.folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = f"profile --model {MODEL} --url {place.url} --endpoint-type completions --streaming --ui none"
    words += f" --concurrency {streams} --request-count {streams} --input-file {file} --tokenizer local/words"
    words += f" --custom-dataset-type single_turn --extra-inputs max_tokens:{TOKENS} --export-level records"
    words += f" --output-artifact-dir {place.folder / 'out'}"
    _call([str(tool("aiperf")), *words.split()], place.folder)
    requests = []
    for line in (place.folder / "out" / "profile_export.jsonl").read_text().splitlines():
        entry = json.loads(line)
        waits = entry["metrics"]
        gaps = tuple(gap / 1e3 for gap in waits["inter_chunk_latency"]["value"])
        ttft = waits["time_to_first_token"]["value"] / 1e3
        requests.append(ReportedRequest(entry["metadata"]["x_request_id"], ttft, gaps))
    return requests


CLIENTS: dict[str, Client] = {OURS: ours, BARE: bare, "inference-perf": inference_perf, "aiperf": aiperf}


def tool(name: str) -> Path:
    return TOOLS.absolute() / name / "bin" / name


@dataclass(slots=True)
class Added:
    """Seconds that a client added, over all turns: to each TTFT, to each gap (absolute), and CPU seconds."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    cpu: float = 0.0
    tokens: int = 0

    def add(self, requests: Sequence[ReportedRequest], record: Sequence[dict[str, Any]]) -> None:
        by_key = {entry[name]: entry for entry in record for name in ("correlation", "prompt_start") if entry[name]}
        for request in requests:
            entry = by_key[request.key]
            at = [instant / 1e9 for instant in entry["token_ns"]]
            self.tokens += len(at)
            self.ttft.append(request.ttft - (at[0] - entry["received_ns"] / 1e9))
            self.gaps += [abs(a - b) for a, b in zip(request.gaps, _gaps(at), strict=False)]


def run(seconds: float) -> list[Table]:
    """Each client in turn, on a fresh router. The public tools run once and take as long as they need."""
    turns = max(1, round(seconds / TURN_SECONDS))
    rows: list[tuple[str, ...]] = []
    for streams in STREAMS:
        found = {name: Added() for name in CLIENTS}
        for turn in range(turns):
            for name, client in CLIENTS.items():
                if name in (OURS, BARE) or (turn == 0 and tool(name).exists()):
                    measure(client, streams, found[name])
        rows += [row(streams, name, added, found[BARE]) for name, added in found.items()]
    notes = (
        f"All streams at once, {TOKENS} tokens in and out; ours and the bare client {turns} turns each. TTFT: what is "
        "added to the router's own, which begins when the request was there. Gap: the absolute difference of each wait "
        "for a token. CPU: of the whole run, start-up included. inference-perf spreads its starts over a second.",
    )
    columns = (
        *("streams", "client", "TTFT p50", "ratio TTFT p50", "TTFT p99", "ratio TTFT p99"),
        *("gap p50", "gap p99", "ratio gap p99", "CPU per 1,000 tokens"),
    )
    return [Table("Added by the client to what the router has recorded", columns, tuple(rows), notes)]


def measure(client: Client, streams: int, added: Added) -> None:
    command = [sys.executable, *ROUTER]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as router,
        tempfile.TemporaryDirectory() as folder,
    ):
        assert router.stdout is not None
        try:
            url, admin = (router.stdout.readline().split()[-1] for _ in range(2))
            _warm(url)
            before = _cpu()
            requests = client(RouterPlace(url, Path(folder)), streams)
            added.cpu += _cpu() - before
            time.sleep(1)
            record = [json.loads(line) for line in urllib.request.urlopen(f"{admin}/record").read().splitlines()]
        finally:
            router.terminate()
            router.wait()
    added.add(requests, record)


def row(streams: int, name: str, added: Added, bare: Added) -> tuple[str, ...]:
    if not added.tokens:
        return (str(streams), name, "not here: make load-tools", *[""] * 7)
    cells = []
    for q, limit in zip((0.5, 0.99), TTFT_LIMITS, strict=True):
        ratio = Ratio(quantile(added.ttft, q), quantile(bare.ttft, q), limit, TTFT_FLOOR)
        cells += [milliseconds(ratio.figure), str(ratio) if name == OURS else f"{ratio.value:.3f}"]
    gaps = Ratio(quantile(added.gaps, 0.99), quantile(bare.gaps, 0.99), GAP_LIMIT, GAP_FLOOR)
    return (
        *(str(streams), name, *cells, milliseconds(quantile(added.gaps, 0.5)), milliseconds(gaps.figure)),
        *(str(gaps) if name == OURS else f"{gaps.value:.3f}", f"{added.cpu / added.tokens * 1e3:.3f} s"),
    )


def _gaps(instants: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(instants)]


def _cpu() -> float:
    """Of the children that have ended, theirs included. The router still runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _warm(url: str) -> None:
    body = json.dumps({"model": MODEL, "prompt": "warm", "max_tokens": 2}).encode()
    headers = {"content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers)).read()


def _call(command: Sequence[str], folder: Path | None = None) -> None:
    environ = dict(os.environ)
    if folder is not None:
        environ |= _offline(folder)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=MOST_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")


def _offline(folder: Path) -> dict[str, str]:
    """A tokenizer of our own words where the tools look for one, so that they need no network."""
    model = folder / "hub" / "models--local--words"
    files = model / "snapshots" / "1"
    files.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("1")
    special = ["<unk>", "</s>", "<pad>"]
    tokens = [{"id": n, "content": text, "special": True} for n, text in enumerate(special)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [token | flags for token in tokens],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    (files / "tokenizer.json").write_text(json.dumps(tokenizer))
    (files / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | names))
    (files / "config.json").write_text("{}")
    return {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "hub")}


PART = Part("streams", "Many streams at once, beside a bare client and public load tools", run)

if __name__ == "__main__":
    inner = {"ours": probe, "bare": exchange}[sys.argv[1]]
    requests = inner(sys.argv[2], int(sys.argv[3]))
    Path(sys.argv[4]).write_text(json.dumps([(one.key, one.ttft, one.gaps) for one in requests]))
