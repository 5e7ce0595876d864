"""The bare client: the thinnest that grpcio allows. A synchronous stub, bytes made before, nothing else.

`python -m benchmarks.bare ADDRESS PERIOD_SECONDS` makes one Decode each period, at computed due times. It answers each
line on standard input with its calls since the last line, as JSON.
"""

import json
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TypeAlias

import grpc

from benchmarks.processes import Process
from exporter.pb import generate_v3_pb2 as pb
from exporter.plan import shard_prompts

SERVICE = "/generate.v3.TextGenerationService/"
ENDLESS = 2**31
Stub: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"


@dataclass(frozen=True, slots=True)
class BareCall:
    """Instants around one call, what the server says it took, and how long after its due time it began; seconds."""

    asked: float
    arrived: float
    server: float
    late: float = 0.0

    @property
    def added(self) -> float:
        return self.arrived - self.asked - self.server


class Bare:
    """One batch, its requests made as bytes once and sent again and again."""

    def __init__(
        self,
        address: str,
        batch_size: int = 1,
        sequence_length: int = 10,
        decode_length: int = ENDLESS,
        texts: Sequence[str] | None = None,
    ) -> None:
        self._steps = decode_length - 1
        self._channel = grpc.insecure_channel(address)
        self._prefill: Stub = self._channel.unary_unary(f"{SERVICE}Prefill")
        self._decode: Stub = self._channel.unary_unary(f"{SERVICE}Decode")
        rng = random.Random()
        batch = pb.Batch(id=shard_prompts.batch_id(rng), size=batch_size)
        texts = texts or shard_prompts.prompts(batch_size, sequence_length, rng)
        for request_id, text in zip(shard_prompts.request_ids(batch_size, rng), texts, strict=True):
            request = batch.requests.add(id=request_id, inputs=text, truncate=sequence_length)
            request.input_chunks.chunks.add(text=text)
            request.parameters.CopyFrom(pb.NextTokenChooserParameters(temperature=1, top_p=1, typical_p=1))
            request.stopping_parameters.max_new_tokens = decode_length
        self._prefill_bytes = pb.PrefillRequest(batch=batch).SerializeToString()
        self._decode_bytes = pb.DecodeRequest(batches=[pb.CachedBatch(id=batch.id)]).SerializeToString()

    def prefill(self) -> BareCall:
        return self._call(self._prefill, self._prefill_bytes)

    def decode(self) -> BareCall:
        return self._call(self._decode, self._decode_bytes)

    def batch(self) -> list[BareCall]:
        """Prefill and all Decodes."""
        return [self.prefill(), *(self.decode() for _ in range(self._steps))]

    def close(self) -> None:
        self._channel.close()

    @staticmethod
    def _call(call: Stub, data: bytes) -> BareCall:
        asked = time.perf_counter()
        answer = call(data)
        arrived = time.perf_counter()
        return BareCall(asked, arrived, pb.DecodeResponse.FromString(answer).total_ns * 1e-9)


class BareClient(Process):
    """The bare client in a process of its own: one Decode each `period` seconds; with 0, one after the other."""

    def __init__(self, address: str, period: float, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(["-m", "benchmarks.bare", address, str(period)], environ)
        self.read()

    def calls(self) -> list[BareCall]:
        """Those since the last call of this method."""
        return [BareCall(*values) for values in json.loads(self.ask("calls"))]


def main() -> None:
    address, period = sys.argv[1], float(sys.argv[2])
    bare = Bare(address)
    seen: list[BareCall] = []

    def loop() -> None:
        bare.prefill()
        due = time.perf_counter()
        while True:
            due = max(due + period, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
            late = time.perf_counter() - due
            seen.append(replace(bare.decode(), late=late))

    threading.Thread(target=loop, daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        calls = seen[:]
        del seen[: len(calls)]
        print(json.dumps([astuple(call) for call in calls]), flush=True)


if __name__ == "__main__":
    main()
