"""What a server says of itself is optional: while the requests themselves work, it stops nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from exporter.observation import Failure, Outcome
from exporter.pb import fmaas_pb2 as pb
from exporter.plan.targets import Facts
from exporter.probes.router.protocol import LONGEST_PAGE
from tests.processes import free_port
from tests.router.openai_server import MODELS, chat_server
from tests.router.parts import Probing, target, workload

PAGES: dict[str, tuple[int, bytes]] = {
    **{str(status): (status, b'{"error": {"message": "no"}}') for status in (400, 401, 403, 404, 405, 429, 500, 501)},
    **{str(status): (status, b"<html>down</html>") for status in (301, 307, 502, 503, 504)},
    "html": (200, b"<!doctype html><html>sign in</html>"),
    "an empty list": (200, b'{"object": "list", "data": []}'),
    "nothing": (200, b""),
    "an error with status 200": (200, b'{"error": {"message": "invalid api key"}}'),
    "a bare list": (200, b"[]"),
    "null": (200, b"null"),
    "a number": (200, b"1" * 10_000),
    "other names": (200, b'{"models": [{"name": "x"}]}'),
    "other kinds": (200, b'{"data": {"id": 3}}'),
    "lists of names": (200, b'{"data": ["x", 3, null]}'),
    "nested too deeply": (200, b"[" * 100_000),
    "a link in the words": (400, b"see https://docs.example"),
    "no text": (200, b"\xff\xfe\x00"),
    "more than anyone would say": (200, b" " * (LONGEST_PAGE + 1)),
    "a limit of nothing": (200, b'{"data": [{"id": "m", "max_model_len": 0}]}'),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_list_of_models_that_fails_stops_nothing_where_the_model_is_named(page: tuple[int, bytes]) -> None:
    with chat_server(page=lambda: page) as server, server.client(model="m") as client:
        assert client.prober.connect(5.0).advice == ""
        assert client.probe(workload(), 2).outcome is Outcome.OK
        assert {body["model"] for body in server.bodies} == {"m"}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_facts_that_fail_stop_nothing_at_a_tgi_router(page: tuple[int, bytes]) -> None:
    with chat_server(page=lambda: page) as server, server.client(door="tgi") as client:
        facts = client.prober.connect(5.0)
        assert (facts.protocol, facts.advice) == ("http/tgi", "")


def test_a_failing_page_is_not_asked_before_each_probe() -> None:
    with chat_server(page=lambda: (403, b"")) as server, server.client(model="m") as client:
        for _ in range(5):
            assert client.probe(workload(), 1).outcome is Outcome.OK
        assert server.pages == 1


def test_a_page_that_takes_long_costs_its_time_once() -> None:
    with chat_server(slow_page=threading.Event()) as server, server.client(model="m") as client:
        client.prober.connect(1.0)
        for _ in range(3):  # while the page is still not answered
            assert client.probe(workload(), 4).outcome is Outcome.OK
        assert server.pages == 1


def test_a_page_that_does_not_answer_is_told_from_one_that_refuses() -> None:
    with chat_server(slow_page=threading.Event()) as server, server.client(model="m") as client:
        assert client.prober.connect(1.0).page == "silent"
    with chat_server(page=lambda: (403, b"")) as server, server.client(model="m") as client:
        assert client.prober.connect(5.0).page == "refused"


def test_what_the_server_said_of_itself_stays_known_when_its_page_fails() -> None:
    page = (200, b'{"data": [{"id": "m", "max_model_len": 100}]}')
    with chat_server(page=lambda: page) as server, server.client() as client:
        known = client.prober.connect(5.0)
        assert (known.model, known.max_total_tokens) == ("m", 100)
        page = (500, b"")
        assert client.prober.connect(5.0) == known
        assert client.probe(workload(), 1).outcome is Outcome.OK
        assert server.bodies[-1]["model"] == "m"


def test_a_list_that_is_empty_for_a_while_does_not_unname_the_model() -> None:
    page = (200, MODELS)
    with chat_server(page=lambda: page) as server, server.client() as client:
        client.prober.connect(5.0)
        page = (200, b'{"data": []}')
        assert client.prober.connect(5.0).advice == ""
        assert client.probe(workload(), 1).outcome is Outcome.OK
        assert server.bodies[-1]["model"] == "m"


NO_MODEL = [name for name in PAGES if name not in ("429", "502", "503", "504", "a limit of nothing")]


@pytest.mark.parametrize("name", NO_MODEL)
def test_where_no_model_is_named_the_line_asks_for_one_and_says_what_the_list_said(name: str) -> None:
    refused = (404, b'{"object": "error", "message": "The model `` does not exist.", "code": 404}')
    with chat_server(page=lambda: PAGES[name], refuse=lambda body: refused) as server, server.client() as client:
        advice = client.prober.connect(5.0).advice
        result = client.probe(workload(), 1)
    assert "/v1/models" in advice
    assert advice.endswith("it names no model: set model: to the one to ask for")
    assert (result.outcome, result.code) == (Outcome.REJECTED, "NOT_FOUND")
    assert advice in result.detail
    assert "\n" not in result.detail
    if name == "an error with status 200":
        assert "invalid api key" in result.detail


def test_plain_text_to_a_port_with_tls_is_told_by_the_first_probe() -> None:
    told = (400, b"The plain HTTP request was sent to HTTPS port")
    with chat_server(page=lambda: told, refuse=lambda body: told) as server, server.client(model="m") as client:
        assert client.probe(workload(), 1).detail.endswith("; change the address to https://…")


def test_a_server_that_wants_no_model_is_probed_without_one() -> None:
    with chat_server(page=lambda: (404, b"")) as server, server.client() as client:
        assert client.probe(workload(), 1).outcome is Outcome.OK


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_list_of_models_that_fails_for_now_is_waited_for_where_it_is_needed(status: int) -> None:
    with chat_server(page=lambda: (status, b"")) as server, server.client() as client:
        with pytest.raises(Failure) as caught:
            client.prober.connect(5.0)
        assert caught.value.outcome in (Outcome.OVERLOADED, Outcome.UNREACHABLE, Outcome.TIMEOUT)
        assert "set model:" in caught.value.detail
        assert not server.bodies


# --- tokens and paths


@pytest.mark.parametrize("status", [401, 403])
def test_a_probe_that_is_forbidden_names_where_its_token_is_from(
    status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("ROUTER_TOKEN", "s3cret")
    file = tmp_path / "token"
    file.write_text("s3cret")
    sources = {
        "bearer_token_env: ROUTER_TOKEN": {"bearer_token_env": "ROUTER_TOKEN"},
        f"bearer_token_file: {file}": {"bearer_token_file": str(file)},
        "no token was sent: set bearer_token_env or bearer_token_file": {},
    }
    with chat_server(refuse=lambda body: (status, b"no")) as server:
        for words, keys in sources.items():
            with server.client(model="m", **keys) as client:
                result = client.probe(workload(), 1)
            assert result.outcome is Outcome.REJECTED
            assert words in result.detail
            assert "s3cret" not in result.detail


@pytest.mark.parametrize("base", ["/v1", "/team/v1", "/v1/chat/completions", "/v1/"])
def test_a_path_that_is_not_there_is_named_with_the_slip_it_comes_from(base: str) -> None:
    with (
        chat_server(refuse=lambda body: (404, b"not here")) as server,
        Probing(target("chat", server.address + base, None, model="m")) as client,
    ):
        result = client.probe(workload(), 1)
    assert result.detail.count(f"asked for POST {base.rstrip('/')}/v1/chat/completions") == 1
    assert f"remove {base[base.index('/v1') :].rstrip('/')} from the address" in result.detail


# --- fmaas


class Adapter(grpc.GenericRpcHandler):
    """`fmaas`, whose every call but GenerateStream ends with `code`; None: it works."""

    def __init__(self, code: grpc.StatusCode, streams: bool = True) -> None:
        self.code, self.streams = code, streams
        self.truncated: list[int] = []

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method.endswith("/GenerateStream"):
            return grpc.unary_stream_rpc_method_handler(self.stream) if self.streams else None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: context.abort(self.code, "not for you"))

    def stream(self, request: bytes, context: Any) -> Any:
        asked = pb.SingleGenerationRequest.FromString(request)
        wanted = asked.params.stopping.max_new_tokens
        self.truncated.append(asked.params.truncate_input_tokens)
        prompt = min(len(asked.request.text.split()) + 1, asked.params.truncate_input_tokens)
        for count in range(1, wanted + 1):
            reason = pb.MAX_TOKENS if count == wanted else pb.NOT_FINISHED
            yield pb.GenerationResponse(
                generated_token_count=count, text="a", input_token_count=prompt, stop_reason=reason
            ).SerializeToString()


def served(adapter: Adapter) -> tuple[Any, str]:
    server = grpc.server(ThreadPoolExecutor(8), handlers=[adapter])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


CODES = [
    code
    for code in grpc.StatusCode
    if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
]


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_calls_beside_the_stream_that_fail_stop_nothing(code: grpc.StatusCode) -> None:
    adapter = Adapter(code)
    server, address = served(adapter)
    try:
        with Probing(target("fmaas", None, address)) as client:
            result = client.probe(workload(), 2)
            assert result.outcome is Outcome.OK, result.detail
            assert [stream.prompt_tokens for stream in result.streams] == [32, 32]
            assert client.probe(workload(), 2).corrections == 0
    finally:
        server.stop(None)


def test_a_server_without_the_stream_itself_is_told_as_what_it_is() -> None:
    server, address = served(Adapter(grpc.StatusCode.UNIMPLEMENTED, streams=False))
    try:
        with Probing(target("fmaas", None, address)) as client:
            result = client.probe(workload(), 2)
            assert (result.outcome, result.code) == (Outcome.REJECTED, "UNIMPLEMENTED")
            assert result.detail.endswith("it speaks gRPC, but not that of kind fmaas; try kind: shard, vllm or sglang")
    finally:
        server.stop(None)


@pytest.mark.parametrize("door", ["chat", "tgi", "fmaas"])
def test_nobody_at_the_address_stays_unreachable(door: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    keys = {"model": "m"} if door == "chat" else {}
    with Probing(target(door, nowhere, nowhere, **keys)) as client, pytest.raises(Failure) as caught:
        client.prober.connect(5.0)
    assert caught.value.outcome is Outcome.UNREACHABLE


def test_facts_are_the_same_however_their_page_was_answered() -> None:
    assert Facts("http/chat", 1) == Facts("http/chat", 1, page="silent", advice="set model:")
