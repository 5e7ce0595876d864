"""How true the simulated router's own record is: `python -m benchmarks.router_doors [STREAMS …]`.

The router has a process of its own. The client is as small as can be: one thread, connections opened and requests made
before the start, bytes stamped when they are read and parsed at the end. What is left between its instants and the
router's is the kernel, the scheduler, and errors of the record.
"""

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

from exporter.pb import fmaas_pb2

TOKENS, PROMPT = 64, 64
MOST_SECONDS = 60.0
COLUMNS = (
    "door",
    "streams",
    "TTFT, record",
    "added p50",
    "added p99",
    "gap error p50",
    "gap error p99",
    "late p50",
    "late p99",
)


@dataclass
class Stream:
    """One request: what it sends, and what came back when (seconds of perf_counter)."""

    key: str
    socket: socket.socket
    request: bytes
    parse: "Callable[[Stream], list[float]]"
    sent: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    machine: h2.connection.H2Connection | None = None


def http_stream(address: tuple[str, int], key: str, text: str) -> Stream:
    connected = socket.create_connection(address)
    connected.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    connected.recv(65536)  # now the router has really accepted it
    body = json.dumps({"inputs": text, "parameters": {"max_new_tokens": TOKENS}}).encode()
    head = f"POST /generate_stream HTTP/1.1\r\nhost: x\r\nx-request-id: {key}\r\nconnection: close\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    return Stream(key, connected, request, http_tokens)


def http_tokens(stream: Stream) -> list[float]:
    return [at for at, data in stream.pieces for _ in range(data.count(b"data: "))]


def grpc_stream(address: tuple[str, int], key: str, text: str) -> Stream:
    """The connection's window is wide enough for the whole answer, so that nothing is sent meanwhile."""
    connected = socket.create_connection(address)
    machine = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    machine.initiate_connection()
    connected.sendall(machine.data_to_send())
    machine.receive_data(connected.recv(65536))
    stopping = fmaas_pb2.StoppingCriteria(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    message = fmaas_pb2.SingleGenerationRequest(
        request=fmaas_pb2.GenerationRequest(text=text), params=fmaas_pb2.Parameters(stopping=stopping)
    ).SerializeToString()
    path = "/fmaas.GenerationService/GenerateStream"
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "content-type": "application/grpc",
    }
    machine.send_headers(1, [*fields.items(), ("te", "trailers"), ("x-correlation-id", key)])
    machine.send_data(1, b"\0" + len(message).to_bytes(4) + message, end_stream=True)
    return Stream(key, connected, machine.data_to_send(), grpc_tokens, machine=machine)


def grpc_tokens(stream: Stream) -> list[float]:
    assert stream.machine is not None
    instants: list[float] = []
    buffer = b""
    for at, data in stream.pieces:
        for event in stream.machine.receive_data(data):
            buffer += event.data if isinstance(event, h2.events.DataReceived) else b""
        while len(buffer) >= 5 and len(buffer) >= (size := 5 + int.from_bytes(buffer[1:5])):
            count = fmaas_pb2.GenerationResponse.FromString(buffer[5:size]).generated_token_count
            instants += [at] * (count - len(instants))
            buffer = buffer[size:]
    return instants


def exchange(streams: list[Stream]) -> None:
    """Send all requests one right after the other, then only read and stamp."""
    selector = selectors.DefaultSelector()
    for stream in streams:
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    for stream in streams:
        stream.sent = time.perf_counter()
        stream.socket.sendall(stream.request)
    waiting, deadline = len(streams), time.perf_counter() + MOST_SECONDS
    while waiting and time.perf_counter() < deadline:
        for ready, _ in selector.select(1.0):
            data = ready.data.socket.recv(65536)
            ready.data.pieces.append((time.perf_counter(), data))
            if not data or _ended(data):
                selector.unregister(ready.data.socket)
                ready.data.socket.close()
                waiting -= 1
    selector.close()


def _ended(data: bytes) -> bool:
    """The last chunk of HTTP/1.1, or the trailers: END_STREAM and END_HEADERS on stream 1."""
    return data.endswith(b"0\r\n\r\n") or b"\x01\x05\x00\x00\x00\x01" in data


def run(
    door: str, make: Callable[[tuple[str, int], str, str], Stream], place: str, count: int, name: str
) -> list[Stream]:
    """That many streams at once, no two with the same prompt."""
    host, _, port = place.rpartition(":")
    streams = []
    for number in range(count):
        key = f"{door}-{count}-{name}-{number}"
        streams.append(make((host, int(port)), key, " ".join([key, *(f"{word:x}" for word in range(PROMPT))])))
    exchange(streams)
    return streams


def measured(door: str, streams: list[Stream], admin: str) -> tuple[str, ...]:
    """A row of the table, in milliseconds."""
    with urllib.request.urlopen(f"{admin}/record") as page:
        record = {entry["correlation"]: entry for entry in map(json.loads, page.read().splitlines())}
    own, added, gaps, late = [], [], [], []
    for stream in streams:
        entry, heard = record[stream.key], stream.parse(stream)
        said = [instant / 1e9 for instant in entry["token_ns"]]
        assert len(heard) == len(said) == TOKENS, f"{stream.key}: {len(heard)} tokens came, {len(said)} were sent"
        own.append(said[0] - entry["received_ns"] / 1e9)
        added.append(heard[0] - stream.sent - own[-1])
        late += [a - b for a, b in zip(heard, said, strict=True)]
        gaps += [abs((heard[n] - heard[n - 1]) - (said[n] - said[n - 1])) for n in range(1, TOKENS)]
    figures = [statistics.mean(own), *(share(values, part) for values in (added, gaps, late) for part in (0.5, 0.99))]
    return (door, str(len(streams)), *(f"{figure * 1e3:.2f}" for figure in figures))


def share(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router_doors", description=__doc__)
    parser.add_argument("streams", nargs="*", type=int, default=[1, 8, 64], help="at once (default 1 8 64)")
    parser.add_argument("--grpc-server", default="h2", choices=("h2", "library"))
    options = parser.parse_args()
    doors = "--router-http 127.0.0.1:0 --router-grpc 127.0.0.1:0 --admin-address 127.0.0.1:0"
    words = f"{doors} --max-concurrent-requests 4096 --grpc-server {options.grpc_server}"
    command = [sys.executable, "-m", "exporter", "simulate", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as router:
        try:
            assert router.stdout is not None
            http, grpc, admin = (router.stdout.readline().split()[-1] for _ in range(3))
            print("Milliseconds. " + " | ".join(COLUMNS))
            for count in options.streams:
                for door, make, place in (("http", http_stream, http[7:]), ("grpc", grpc_stream, grpc)):
                    run(door, make, place, count, "warm")
                    print(" | ".join(measured(door, run(door, make, place, count, "true"), admin)), flush=True)
        finally:
            router.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
