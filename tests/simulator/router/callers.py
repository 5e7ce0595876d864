"""Plain clients of a simulated router, independent of the product's probes: gRPC's own library and http.client."""

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc

from exporter.pb import fmaas_pb2 as wire
from exporter.simulator import Roofline, RouterConfig
from exporter.simulator.router import Router

PROMPT = "north river stone"  # with its <s> seven tokens


def fast(**changes: Any) -> RouterConfig:
    """A router whose passes take no time worth waiting for."""
    return replace(RouterConfig(roofline=Roofline(speed=100_000)), **changes)


@contextmanager
def slow(**changes: Any) -> Iterator[Router]:
    """A router that needs a long time for every token, to do something meanwhile."""
    with Router(fast(**changes)) as router:
        router.slow_down(100_000.0)
        yield router


def await_true(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


class Rpc:
    """Calls over a channel of its own; every call has a deadline, so that a broken server fails a test."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = (
            grpc.secure_channel(address, credentials, options)
            if credentials
            else grpc.insecure_channel(address, options)
        )

    def stream(self, request: wire.SingleGenerationRequest, **metadata: str) -> Any:
        call: Any = self.channel.unary_stream(
            "/fmaas.GenerationService/GenerateStream",
            lambda message: message.SerializeToString(),
            wire.GenerationResponse.FromString,
        )
        return call(request, timeout=20, metadata=[(name.replace("_", "-"), value) for name, value in metadata.items()])

    def call(self, method: str, request: Any, answer: Any) -> Any:
        call: Any = self.channel.unary_unary(
            f"/fmaas.GenerationService/{method}", lambda message: message.SerializeToString(), answer.FromString
        )
        return call(request, timeout=20)

    def failure(self, request: wire.SingleGenerationRequest) -> tuple[grpc.StatusCode, str]:
        """The status and details that a stream ends with."""
        call = self.stream(request)
        try:
            list(call)
        except grpc.RpcError:
            return call.code(), call.details()
        raise AssertionError("it did not fail")

    def __enter__(self) -> "Rpc":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


def single(new: int = 5, text: str = PROMPT, **stopping: Any) -> wire.SingleGenerationRequest:
    return wire.SingleGenerationRequest(
        request=wire.GenerationRequest(text=text),
        params=wire.Parameters(stopping=wire.StoppingCriteria(max_new_tokens=new, **stopping)),
    )


class Http:
    """One kept-alive connection."""

    def __init__(self, address: str, context: ssl.SSLContext | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
            if context
            else http.client.HTTPConnection(host, int(port), timeout=20)
        )

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
        answer = self.open(method, path, body, **headers)
        return answer.status, answer.read()

    def open(self, method: str, path: str, body: object = None, **headers: str) -> http.client.HTTPResponse:
        sent = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, sent, {"content-type": "application/json", **lines})
        return self.connection.getresponse()

    def events(self, path: str, body: object) -> list[Any]:
        """The values of a stream's events; [DONE] as it is."""
        status, told = self.ask("POST", path, body)
        assert status == 200, told
        return events_of(told)

    def __enter__(self) -> "Http":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def events_of(told: bytes) -> list[Any]:
    events = told.decode().split("\n\n")
    assert events.pop() == ""
    data = [event.removeprefix("data: ") for event in events]
    return [one if one == "[DONE]" else json.loads(one) for one in data]
