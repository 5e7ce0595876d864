"""The trace context of probes: what the server is told, and what the metrics page says about it."""

import re
from concurrent import futures
from typing import Any

import grpc
import pytest

from exporter.config.settings import Settings
from exporter.config.target import Target
from exporter.config.workload import Workload
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, Step, Stream
from exporter.pb import generate_v3_pb2 as pb
from exporter.plan.targets import plans
from exporter.probes.shard.prober import ShardProber
from exporter.wire.trace_context import new_trace_id, trace_headers

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_the_header_is_as_the_standard_writes_it() -> None:
    [(name, value)] = trace_headers(new_trace_id())
    assert name == "traceparent"
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", value)
    assert trace_headers(TRACE) != trace_headers(TRACE)


@pytest.fixture
def shard() -> Any:
    """A server that answers one token and keeps the metadata of its calls."""
    seen: dict[str, list[str]] = {}

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            rpc = details.method.rpartition("/")[2]
            seen.setdefault(rpc, []).extend(v for k, v in details.invocation_metadata if k == "traceparent")

            def answer(request: bytes, _: Any) -> bytes:
                if rpc == "Info":
                    return pb.InfoResponse(requires_padding=True).SerializeToString()
                if rpc == "Prefill":
                    batch = pb.PrefillRequest.FromString(request).batch
                    generations = [
                        pb.Generation(
                            request_id=one.id,
                            tokens=pb.Tokens(ids=[1]),
                            generated_text=pb.GeneratedText(generated_tokens=1),
                        )
                        for one in batch.requests
                    ]
                    return pb.PrefillResponse(generations=generations).SerializeToString()
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", seen
    server.stop(None).wait()


def test_a_shard_is_told_the_trace_of_a_probe_and_of_nothing_else(shard: Any) -> None:
    address, seen = shard
    prober = ShardProber(Target(name="t", address=address))
    try:
        prober.connect(5.0)
        prober.probe(Workload(name="w", decode_length=1), 1, lambda: False, TRACE)
        prober.probe(Workload(name="w", decode_length=1), 1, lambda: False)
    finally:
        prober.close()
    [told] = seen["Prefill"]
    assert told.split("-")[1] == TRACE
    assert seen["Info"] == []


def test_a_bucket_of_the_time_to_first_token_names_the_trace_in_openmetrics_only() -> None:
    settings = Settings(
        targets=(Target(name="t", address="127.0.0.1:1"),),
        workloads=(Workload(name="w", batch_sizes=(1,)),),
    )
    metrics = Metrics(layout(settings), unix_time=lambda: 1e9)
    metrics.configure(settings)
    metrics.announce(plans(settings)["t"])
    stream = Stream(1, 10, 0.0, 0.25, (Step(0.0, 0.25, 1),))
    metrics.record(
        Observation(Series("t", "w", 1), 0.0, 0.0, 0.25, Outcome.OK, "OK", streams=(stream,), trace_id=TRACE)
    )
    openmetrics, text = (b"".join(pages.page(metrics.registry, form)).decode() for form in (OPENMETRICS, PLAIN_0_0_4))
    [line] = [line for line in openmetrics.splitlines() if TRACE in line]
    assert line.startswith("tgi_probe_time_to_first_token_seconds_bucket{")
    assert line.endswith(f' # {{trace_id="{TRACE}"}} 0.25 1000000000.0')
    assert TRACE not in text
