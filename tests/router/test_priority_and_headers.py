"""What asks a server or a gateway to serve users first: `priority` in the body, and headers of one's own."""

import json
from typing import Any

import pytest

from exporter.observation import Failure, Outcome
from tests.router.openai_server import chat_server
from tests.router.parts import DOORS, Probing, SimulatedRouter, protocol, simulated_router, target, workload

REFUSED = json.dumps({"error": {"message": "Got priority 10 but Priority scheduling is not enabled.", "code": 400}})


@pytest.fixture(scope="module")
def router() -> Any:
    with simulated_router("--speed", "1000") as router:
        yield router


@pytest.mark.parametrize("door", DOORS)
def test_headers_come_with_each_request(door: str, router: SimulatedRouter) -> None:
    headers = {"X-Request-Id": f"of {door}", "X-Correlation-Id": f"of {door}"}  # the simulated router records them
    with Probing(target(door, router.http, router.grpc, headers=headers)) as client:
        assert client.probe(workload(), 2).outcome is Outcome.OK
    assert [one["correlation"] for one in router.record()[-2:]] == [f"of {door}"] * 2


@pytest.mark.parametrize("door", ["fmaas", "chat"])
def test_the_other_requests_have_them_too(door: str) -> None:
    made = protocol(target(door, "h:1", "h:1", headers={"x-a": "b"}))
    sent = []

    def ask(request: Any) -> bytes:
        sent.append(request)
        raise Failure(Outcome.REJECTED, "FORBIDDEN", "no")

    made.facts(ask)
    made.count_prompt(ask, "text", workload())
    assert len(sent) == 2
    assert all(("x-a", "b") in request.headers for request in sent)


@pytest.mark.parametrize("door", ["completions", "chat"])
def test_the_priority_is_in_each_request_and_a_queue_in_its_order_takes_it(door: str) -> None:
    with (
        simulated_router("--speed", "1000", "--scheduling-policy", "priority") as router,
        Probing(target(door, router.http, router.grpc, priority=10)) as client,
    ):
        assert client.probe(workload(), 2).outcome is Outcome.OK
    with chat_server() as server, server.client(priority=10) as client:
        client.probe(workload(), 3)
        assert {body["priority"] for body in server.bodies} == {10}
    with chat_server() as server, server.client() as client:
        client.probe(workload(), 1)
        assert all("priority" not in body for body in server.bodies)


def test_a_server_that_refuses_it_is_told_with_what_to_do() -> None:
    with chat_server(refuse=lambda body: (400, REFUSED.encode())) as server, server.client(priority=10) as client:
        result = client.probe(workload(), 1)
    assert result.outcome is Outcome.REJECTED
    assert "start the server with priority scheduling (vLLM: --scheduling-policy priority)" in result.detail


@pytest.mark.parametrize("door", ["fmaas", "tgi"])
def test_a_header_that_looks_like_a_secret_is_in_no_message(door: str) -> None:
    made = protocol(target(door, "h:1", "h:1", headers={"x-api-key": "sk-123456", "x-plain": "visible"}))
    failure = made.without_secrets(Failure(Outcome.REJECTED, "FORBIDDEN", "no: sk-123456, visible"))
    assert failure.detail == "no: …, visible"
