"""The admin page: look, slow down, break, restart."""

import gc
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import pytest

from exporter.simulator import Admin, Shard
from exporter.simulator.admin import ServerGroup
from exporter.simulator.router import Router
from exporter.simulator.router_options import RouterConfig
from tests.simulator.caller import Caller, fast, prefill_of


@pytest.fixture
def shard() -> Iterator[Shard]:
    with Shard(fast()) as shard:
        yield shard


@pytest.fixture
def caller(shard: Shard) -> Iterator[Caller]:
    caller = Caller(shard.addresses[0])
    yield caller
    caller.close()


@pytest.fixture
def page(shard: Shard) -> Iterator[str]:
    with Admin(shard, "127.0.0.1:0") as admin:
        yield f"http://{admin.address}"


def ask(url: str, post: bool = False) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="POST" if post else "GET"), timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_state_shows_what_is_kept(page: str, caller: Caller) -> None:
    caller.call("Prefill", prefill_of(5))
    [rank] = json.loads(ask(page + "/state")[1])["ranks"]
    assert rank["batches"] == [{"id": 5, "size": 2, "request_ids": [0, 1], "tokens": 66}]
    assert rank["calls"] == {"Prefill": 1}


def test_a_record_without_calls_has_no_line(page: str) -> None:
    assert ask(page + "/record")[1] == ""


def test_record_is_json_lines(page: str, caller: Caller) -> None:
    caller.call("Info")
    caller.call("Health")
    lines = ask(page + "/record")[1].splitlines()
    assert [json.loads(line)["method"] for line in lines] == ["Info", "Health"]


def test_slowdown_stretches_every_pass(page: str, shard: Shard) -> None:
    assert ask(page + "/slowdown?factor=3", post=True)[0] == 200
    assert shard.state()["slowdown"] == 3


@pytest.mark.parametrize(("kind", "code"), [("unavailable", "UNAVAILABLE"), ("internal", "INTERNAL")])
def test_a_fault_with_a_count_hits_that_many_calls(page: str, caller: Caller, kind: str, code: str) -> None:
    assert ask(f"{page}/fault?kind={kind}&count=2", post=True)[0] == 200
    assert [caller.failure("Health")[0].name for _ in range(2)] == [code, code]
    caller.call("Health")


def test_a_hanging_shard_goes_on_when_the_fault_is_taken_back(page: str, caller: Caller) -> None:
    ask(f"{page}/fault?kind=hang", post=True)
    assert caller.failure("Health", timeout=0.2)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    ask(f"{page}/fault?kind=none", post=True)
    caller.call("Health")


def test_a_restarted_shard_listens_at_the_same_place_without_a_batch(page: str, shard: Shard, caller: Caller) -> None:
    caller.call("Prefill", prefill_of(1))
    before = list(shard.addresses)
    assert ask(page + "/restart", post=True)[0] == 200
    again = Caller(shard.addresses[0])
    again.call("Health")
    again.close()
    state = shard.state()
    assert (shard.addresses, state["restarts"], state["ranks"][0]["batches"]) == (before, 1, [])


def test_what_breaks_shard_and_router_together_is_what_both_know(shard: Shard) -> None:
    with (
        Router(RouterConfig()) as router,
        Admin(ServerGroup({"shard": shard, "router": router}), "127.0.0.1:0") as admin,
    ):
        said = ask(f"http://{admin.address}/fault?kind=fire", post=True)
    assert said[0] == 400
    assert said[1].startswith("kind: expected one of none, unavailable, hang, internal, cancelled")
    assert "cut" not in said[1]
    assert "crash" not in said[1]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/slowdown", 400, "factor: expected a number above 0, such as /slowdown?factor=2"),
        ("/slowdown?factor=fast", 400, "factor: expected a number from 0"),
        (
            "/fault?kind=fire",
            400,
            "kind: expected one of none, unavailable, hang, internal, cancelled, unknown, resource_exhausted, kill, "
            "freeze, crash, other_ids, missing, extra, absurd_times, no_tokens, endless, huge, garbage",
        ),
        ("/fault?kind=cut", 400, "kind: a shard has no streams to cut"),
        ("/restart?seconds=-1", 400, "seconds: expected a number from 0"),
        (
            "/reset",
            404,
            "known here: POST /slowdown?factor=, POST /fault?kind=&seconds=&count=&method=&at=&rank=, "
            "POST /restart?seconds=",
        ),
    ],
)
def test_a_bad_command_says_what_is_expected(page: str, path: str, status: int, words: str) -> None:
    assert ask(page + path, post=True) == (status, words + "\n")


def test_a_client_that_is_just_being_accepted_at_the_stop_leaves_no_socket_open() -> None:
    for _ in range(50):
        with Router(RouterConfig(http="127.0.0.1:0")) as router:
            assert router.http
            host, port = router.http.split(":")
            clients = [socket.create_connection((host, int(port))) for _ in range(3)]
        for client in clients:
            client.close()
    gc.collect()  # what is left open now warns, which is an error
