"""A plain gRPC client of a simulated shard, independent of the product's probes, and well-formed requests for it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc

from exporter.pb import generate_v2_pb2, generate_v3_pb2
from exporter.simulator import Config, Roofline, Shard

FAST = Roofline(speed=100_000)
WORDS = " ".join(["word"] * 64)  # 64 tokens


def fast(**changes: Any) -> Config:
    """A Config whose passes take no time worth waiting for."""
    return replace(Config(roofline=replace(FAST, ranks=changes.pop("ranks", 1))), **changes)


class Caller:
    """Calls one rank; every call has a deadline, so that a broken server fails a test instead of hanging it."""

    def __init__(self, address: str, protocol: str = "v3") -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._prefix = f"/generate.{protocol}.TextGenerationService/"
        self._wire: Any = generate_v3_pb2 if protocol == "v3" else generate_v2_pb2

    def send(self, method: str, request: Any = None, timeout: float = 20.0) -> Any:
        """Start a call and answer its future."""
        call: Any = self._channel.unary_unary(
            self._prefix + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(self._wire, f"{method}Response").FromString,
        )
        return call.future(request or getattr(self._wire, f"{method}Request")(), timeout=timeout)

    def call(self, method: str, request: Any = None, timeout: float = 20.0) -> Any:
        return self.send(method, request, timeout).result()

    def failure(self, method: str, request: Any = None, timeout: float = 20.0) -> tuple[grpc.StatusCode, str]:
        """The status and details a call fails with."""
        error = self.send(method, request, timeout).exception()
        assert error is not None, f"{method} did not fail"
        return error.code(), error.details()

    def close(self) -> None:
        self._channel.close()


@contextmanager
def served(config: Config) -> Iterator[tuple[Shard, list[Caller]]]:
    """A running shard and one caller per rank."""
    with Shard(config) as shard:
        callers = [Caller(address, config.protocol) for address in shard.addresses]
        try:
            yield shard, callers
        finally:
            for caller in callers:
                caller.close()


def await_count(shard: Shard, what: str, method: str, count: int = 1, rank: int = 0) -> None:
    """Return once `count` calls of `method` were "received", or have begun ("calls"), on a rank."""
    deadline = time.monotonic() + 20
    while shard.state()["ranks"][rank][what].get(method, 0) < count:
        assert time.monotonic() < deadline, f"{count} {method} never came"
        time.sleep(0.001)


def request(request_id: int, max_new_tokens: int = 8, text: str = WORDS, **fields: Any) -> generate_v3_pb2.Request:
    return generate_v3_pb2.Request(
        id=request_id,
        input_chunks=generate_v3_pb2.Input(chunks=[generate_v3_pb2.InputChunk(text=text)]),
        truncate=fields.pop("truncate", 32),
        parameters=generate_v3_pb2.NextTokenChooserParameters(
            temperature=1, top_p=1, typical_p=1, repetition_penalty=1
        ),
        stopping_parameters=generate_v3_pb2.StoppingCriteriaParameters(max_new_tokens=max_new_tokens),
        **fields,
    )


def prefill(
    batch_id: int, requests: Sequence[generate_v3_pb2.Request], size: int | None = None, **fields: Any
) -> generate_v3_pb2.PrefillRequest:
    batch = generate_v3_pb2.Batch(id=batch_id, requests=requests, size=len(requests) if size is None else size)
    return generate_v3_pb2.PrefillRequest(batch=batch, **fields)


def prefill_of(batch_id: int, size: int = 2, max_new_tokens: int = 8) -> generate_v3_pb2.PrefillRequest:
    return prefill(batch_id, [request(index, max_new_tokens) for index in range(size)])


def decode(*batch_ids: int) -> generate_v3_pb2.DecodeRequest:
    return generate_v3_pb2.DecodeRequest(batches=[generate_v3_pb2.CachedBatch(id=batch_id) for batch_id in batch_ids])
