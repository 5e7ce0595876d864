"""A shard with a fixed service time that adds next to nothing of its own: HTTP/2 and gRPC by hand on blocking sockets.

A gRPC server in Python takes about half a millisecond around its handler, and no one could tell it from the client's
share. This one reads a request in one call and writes the answer in another; its own record of a call, `total_ns`,
begins when the last byte of the request is in and ends right before the answer goes out. It speaks just enough of
generate.v3 to be probed (padded), and answers only well-behaved clients on this machine.

Run as a process: `python -m benchmarks.server ADDRESS SERVICE_SECONDS [RANKS]`, one for each rank, whose address ends
in -0, -1 and so on. It prints `ready ADDRESS`, then answers each line on standard input with the number of batches it
still holds, and ends with its input.
"""

import socket
import struct
import sys
import threading
import time
from typing import Any

from exporter.pb import generate_v3_pb2 as pb

PREFACE = 24
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
# HPACK, nothing indexed: `:status: 200`, `content-type: application/grpc`; and `grpc-status: 0`.
ANSWER_HEADERS = b"\x88" + b"\x0f\x10\x10application/grpc"
TRAILERS = b"\x00\x0bgrpc-status\x010"
LARGE_WINDOW = 2**31 - 1 - 65535


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Shard:
    """The batches of one shard. An answer comes without `total_ns`, which is appended when it is known."""

    def __init__(self, address: str, ranks: int) -> None:
        self._generates = ranks == 1 or address.endswith("-0")  # the first rank answers for all
        urls = [address] if ranks == 1 else [f"{address.rpartition('-')[0]}-{rank}" for rank in range(ranks)]
        # One message that reads as ServiceDiscoveryResponse (field 1 as text) and as InfoResponse (field 1 as bool).
        self._about = (
            pb.ServiceDiscoveryResponse(urls=urls).SerializeToString()
            + pb.InfoResponse(requires_padding=True, dtype="float32", device_type="cpu").SerializeToString()
        )
        self.batches: dict[int, tuple[int, bytes, bytes]] = {}

    def answer(self, request: bytes) -> tuple[bytes, bool]:
        """The answer to a request's bytes, and whether it is one that takes the service time.

        A path would have to be read out of compressed headers; the messages tell the calls apart as well.
        """
        if not request:
            return self._about, False
        if request[0] == 0x08:
            self.batches.pop(pb.ClearCacheRequest.FromString(request).id, None)
            return b"", False
        if len(request) < 16:
            return self._decode(pb.DecodeRequest.FromString(request).batches[0].id), True
        return self._prefill(pb.PrefillRequest.FromString(request).batch), True

    def _prefill(self, batch: Any) -> bytes:
        steps = batch.requests[0].stopping_parameters.max_new_tokens - 1
        ids = [request.id for request in batch.requests]
        step = pb.DecodeResponse(batch=pb.CachedBatch(id=batch.id, request_ids=ids, size=len(ids)))
        last = pb.DecodeResponse()
        for request_id in ids if self._generates else ():
            tokens = {"ids": [1], "logprobs": [-1.0], "texts": [" word"], "is_special": [False]}
            step.generations.add(request_id=request_id, tokens=tokens)
            end = {"text": " word", "generated_tokens": steps + 1}
            last.generations.add(request_id=request_id, tokens=tokens, generated_text=end)
        self.batches[batch.id] = (steps, step.SerializeToString(), last.SerializeToString())
        return self._advance(batch.id)

    def _decode(self, batch_id: int) -> bytes:
        return self._advance(batch_id)

    def _advance(self, batch_id: int) -> bytes:
        left, step, last = self.batches[batch_id]
        if left == 0:
            del self.batches[batch_id]
            return last
        self.batches[batch_id] = (left - 1, step, last)
        return step


class Connection:
    """One client. Requests are answered in the order in which they end, one at a time."""

    def __init__(self, connection: socket.socket, shard: Shard, service: float) -> None:
        self._socket = connection
        self._shard = shard
        self._service = service
        self._buffer = b""
        self._bodies: dict[int, bytearray] = {}

    def run(self) -> None:
        try:
            self._serve()
        except (ConnectionError, EOFError):
            pass
        finally:
            self._socket.close()

    def _serve(self) -> None:
        self._read(PREFACE)
        # 4: the window of each stream. Both are as large as can be, so that no request ever waits for more.
        settings = struct.pack(">HI", 4, 2**31 - 1)
        self._socket.sendall(
            frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGE_WINDOW))
        )
        while True:
            header = self._read(9)
            kind, flags = header[3], header[4]
            stream = int.from_bytes(header[5:9], "big") & 0x7FFFFFFF
            payload = self._read(int.from_bytes(header[:3], "big"))
            if kind == DATA:
                self._bodies.setdefault(stream, bytearray()).extend(payload)
            elif kind == SETTINGS and not flags & ACK:
                self._socket.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self._socket.sendall(frame(PING, ACK, 0, payload))
            elif kind == GOAWAY:
                return
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self._answer(stream, bytes(self._bodies.pop(stream, b"")[5:]))

    def _answer(self, stream: int, request: bytes) -> None:
        began = time.perf_counter()
        message, takes_time = self._shard.answer(request)
        if takes_time:
            if self._service:
                time.sleep(max(0.0, began + self._service - time.perf_counter()))
            # total_ns is field 5 of both answers, and protobuf takes fields in any order.
            message += b"\x28" + varint(int((time.perf_counter() - began) * 1e9))
        body = b"\x00" + struct.pack(">I", len(message)) + message
        frames = [frame(HEADERS, END_HEADERS, stream, ANSWER_HEADERS)]
        frames += [frame(DATA, 0, stream, body[at : at + 16384]) for at in range(0, len(body), 16384)]
        frames.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS))
        self._socket.sendall(b"".join(frames))

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            more = self._socket.recv(262144)
            if not more:
                raise EOFError
            self._buffer += more
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


def listen(address: str) -> tuple[socket.socket, str]:
    """A listening socket for `unix:///path` or `host:port`, and the address to reach it (port 0 made real)."""
    if address.startswith("unix://"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address.removeprefix("unix://"))
    else:
        host, port = address.rsplit(":", 1)
        listener = socket.create_server((host, int(port)))
        address = f"{host}:{listener.getsockname()[1]}"
    listener.listen(512)
    return listener, address


def serve(address: str, service: float, ranks: int) -> None:
    sys.setswitchinterval(0.0001)
    listener, reachable = listen(address)
    shard = Shard(reachable, ranks)
    threading.Thread(target=_accept, args=(listener, shard, service), daemon=True).start()
    print(f"ready {reachable}", flush=True)
    for _ in sys.stdin:
        print(len(shard.batches), flush=True)


def _accept(listener: socket.socket, shard: Shard, service: float) -> None:
    while True:
        connection, _ = listener.accept()
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Connection(connection, shard, service).run, daemon=True).start()


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 1)
