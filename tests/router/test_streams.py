"""A probe through a router in every way it can go, over both protocols; the router runs in this process."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from exporter.analysis import slo, timeline
from exporter.config.slo import Slo
from exporter.observation import Failure, Observation, Outcome, Series
from exporter.probes.interface import Abandoned, Result
from exporter.probes.router.pool import Pool
from exporter.simulator.batcher import AdmissionLimits
from exporter.simulator.faults import Fault
from exporter.simulator.record import AnsweredRequest
from exporter.simulator.roofline import Roofline
from exporter.simulator.router import Router
from exporter.simulator.router_options import RouterConfig
from exporter.wire.connection import ClientConnection
from exporter.wire.exchanges import Exchange
from tests.processes import free_port, wait_until
from tests.router.parts import DOORS, Probing, target, workload

FAST = RouterConfig(roofline=replace(Roofline(), speed=20.0))


def probing(door: str, router: Router, **keys: Any) -> Probing:
    return Probing(target(door, router.http, router.grpc, **keys))


def requests(router: Router) -> list[AnsweredRequest]:
    """The generations that the router wrote down."""
    return [entry for entry in router.record() if entry.max_new_tokens]


@pytest.fixture(params=sorted(DOORS))
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def router() -> Iterator[Router]:
    with Router(FAST) as router:
        yield router


def test_each_request_is_a_stream_of_its_own_with_exact_lengths(door: str, router: Router) -> None:
    with probing(door, router) as client:
        client.probe(workload(), 4)
        result = client.probe(workload(), 4)
    assert (result.outcome, result.code, result.detail) == (Outcome.OK, "OK", "")
    assert [(s.requests, s.prompt_tokens, timeline.generated_tokens(s)) for s in result.streams] == [(1, 32, 8)] * 4
    assert all(s.sent < s.steps[0].arrived <= s.steps[-1].arrived <= s.ended for s in result.streams)
    assert len({entry.prompt_start.split()[0] for entry in requests(router)}) == len(requests(router))


def test_the_requests_of_a_batch_are_all_in_flight_at_once(door: str, router: Router) -> None:
    with probing(door, router) as client:
        result = client.probe(workload(decode_length=32), 16)
    assert result.outcome is Outcome.OK
    wait_until(lambda: len(requests(router)) >= 16, "all are written down")
    entries = requests(router)[-16:]
    assert max(entry.received_ns for entry in entries) < min(entry.finished_ns for entry in entries)


SERVERS: dict[str, RouterConfig] = {
    "several tokens in a message": replace(FAST, tokens_per_message=3),
    "messages without a token": replace(FAST, empty_messages=True),
    "no early message": replace(FAST, early_message=False),
    "over gRPC's own library": replace(FAST, grpc_server="library", tokens_per_message=2),
    "answers in single bytes": replace(FAST, fragment=1),
    "answers in pieces of seven bytes": replace(FAST, fragment=7),
}


@pytest.mark.parametrize("config", SERVERS.values(), ids=SERVERS)
def test_tokens_are_counted_right_however_they_come(door: str, config: RouterConfig) -> None:
    with Router(config) as router, probing(door, router) as client:
        result = client.probe(workload(decode_length=10), 3)
    assert result.outcome is Outcome.OK, result.detail
    assert [timeline.generated_tokens(stream) for stream in result.streams] == [10] * 3
    if config.tokens_per_message == 3:
        assert all(len(stream.steps) < 10 for stream in result.streams)


def test_an_answer_that_ends_early_counts_the_tokens_that_came() -> None:
    with Router(replace(FAST, eos=0.2)) as router, probing("tgi", router) as client:
        result = client.probe(workload(decode_length=64), 8)
        wait_until(lambda: len(requests(router)) >= 8, "all are written down")
        by_start = {entry.prompt_start: len(entry.token_ns) for entry in requests(router)}
    assert result.outcome is Outcome.OK
    counts = [timeline.generated_tokens(stream) for stream in result.streams]
    assert counts == [by_start[prompt[:64]] for prompt in client.prompts]
    assert min(counts) < 64


# --- prompts and caches


def test_a_prompt_never_hits_the_prefix_cache_unless_it_is_asked_to(door: str) -> None:
    limits = AdmissionLimits(prefix_caching=True)
    with Router(replace(FAST, limits=limits)) as router, probing(door, router) as client:
        for _ in range(5):
            client.probe(workload(sequence_length=200), 2)
        wait_until(lambda: len(requests(router)) >= 10, "all are written down")
        assert {entry.cached_tokens for entry in requests(router)} == {0}
        count = len(requests(router))
        client.probe(workload(sequence_length=200, prompt_cache="hit", name="hit"), 1)
        wait_until(lambda: len(requests(router)) >= count + 2, "all are written down")
        assert requests(router)[-1].cached_tokens > 100


@pytest.mark.parametrize("length", [8, 100, 1000])
def test_prompts_have_the_wanted_length_to_one_percent(door: str, router: Router, length: int) -> None:
    with probing(door, router) as client:
        for _ in range(3):
            result = client.probe(workload(sequence_length=length), 2)
            if door == "chat" and length == 8 and result.outcome is not Outcome.OK:
                return
            assert all(abs(s.prompt_tokens - length) <= max(0.5, length / 100) for s in result.streams)


# --- how it can end


def test_a_server_at_its_limit_is_overloaded_and_what_it_took_is_still_good(door: str) -> None:
    config = replace(FAST, limits=AdmissionLimits(max_concurrent_requests=2), roofline=replace(Roofline(), speed=2.0))
    with Router(config) as router, probing(door, router) as client:
        result = client.probe(workload(decode_length=32), 6)
    assert result.outcome is Outcome.OVERLOADED
    assert result.code == ("RESOURCE_EXHAUSTED" if door == "fmaas" else "TOO_MANY_REQUESTS")
    endings = Counter(stream.outcome for stream in result.streams)
    assert endings == {Outcome.OK: 2, Outcome.OVERLOADED: 4}
    assert "4 of 6 requests (4 overloaded)" in result.detail
    verdicts = slo.judge(Slo(name="s", workload="w", availability=True), observed(result, 6))
    assert (verdicts.good, verdicts.bad) == (2, 4)


def observed(result: Result, batch_size: int) -> Observation:
    return Observation(
        Series("router", "w", batch_size), 0, 0, 1, result.outcome, result.code, result.detail, result.streams
    )


def test_a_refusal_by_status_is_overloaded_too() -> None:
    config = replace(FAST, limits=AdmissionLimits(max_concurrent_requests=1), stream_errors="status")
    with Router(config) as router, probing("chat", router) as client:
        result = client.probe(workload(), 4)
    assert Outcome.OVERLOADED in {stream.outcome for stream in result.streams}
    assert result.outcome is Outcome.OVERLOADED


def test_a_probe_out_of_time_is_cancelled_on_the_server(door: str) -> None:
    with Router(RouterConfig()) as router, probing(door, router) as client:
        client.probe(workload(), 1)
        router.slow_down(500)
        result = client.probe(workload(timeout="300ms", decode_length=100), 3)
        assert (result.outcome, result.code) == (Outcome.TIMEOUT, "DEADLINE_EXCEEDED")
        assert {stream.outcome for stream in result.streams} == {Outcome.TIMEOUT}
        assert all(not stream.steps for stream in result.streams)
        assert ": workload w: timeout 300ms is over " in result.detail
        wait_until(lambda: router.state()["in_flight"] == 0, "the server has let go")
        assert {entry.code for entry in requests(router)[-3:]} <= {"CANCELLED", "DEADLINE_EXCEEDED"}
        router.slow_down(1)
        assert client.probe(workload(), 3).outcome is Outcome.OK


def test_a_stop_abandons_the_probe_and_cancels_it_on_the_server(door: str) -> None:
    with Router(RouterConfig()) as router, probing(door, router) as client:
        client.probe(workload(), 1)
        router.slow_down(500)
        with pytest.raises(Abandoned):
            client.prober.probe(workload(), 2, lambda: router.state()["in_flight"] == 2)
        wait_until(lambda: router.state()["in_flight"] == 0, "the server has let go")


def once_in_flight(router: Router, then: Callable[[], None]) -> threading.Thread:
    """Does it in a thread of its own, as soon as a request is in flight."""

    def wait_and_do() -> None:
        wait_until(lambda: router.state()["in_flight"], "a request is in flight")
        then()

    thread = threading.Thread(target=wait_and_do)
    thread.start()
    return thread


def test_closing_from_another_thread_ends_the_probe(door: str) -> None:
    with Router(RouterConfig()) as router, probing(door, router) as client:
        client.probe(workload(), 1)
        router.slow_down(500)
        closer = once_in_flight(router, client.prober.close)
        with pytest.raises(Abandoned):
            client.prober.probe(workload(), 1, lambda: False)
        closer.join()


def test_a_server_that_dies_in_the_middle_is_unreachable(door: str) -> None:
    with Router(RouterConfig()) as router, probing(door, router) as client:
        client.probe(workload(), 1)
        router.slow_down(50)
        killer = once_in_flight(router, router.restart)
        result = client.prober.probe(workload(decode_length=200), 2, lambda: False)
        killer.join()
        assert result.outcome is Outcome.UNREACHABLE
        router.slow_down(1)
        assert client.probe(workload(), 2).outcome is Outcome.OK


def test_nobody_at_the_address_is_unreachable(door: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    with Probing(target(door, nowhere, nowhere)) as client, pytest.raises(Failure) as caught:
        client.prober.connect(5.0)
    assert (caught.value.outcome, caught.value.code) == (Outcome.UNREACHABLE, "UNAVAILABLE")
    assert "Connection refused" in caught.value.detail
    assert nowhere in caught.value.detail


def test_an_error_of_the_server_is_rejected(door: str, router: Router) -> None:
    with probing(door, router) as client:
        client.prober.connect(5.0)
        router.fault(Fault("internal"))
        result = client.prober.probe(workload(), 2, lambda: False)
    assert result.outcome is Outcome.REJECTED
    assert result.code == ("INTERNAL" if door == "fmaas" else "INTERNAL_SERVER_ERROR")


@pytest.mark.parametrize("door", ["fmaas", "tgi"])  # the OpenAI forms do not tell their limits
def test_a_workload_over_the_servers_limits_is_refused_and_never_sent(door: str) -> None:
    config = replace(FAST, limits=AdmissionLimits(max_total_tokens=64))
    with Router(config) as router, probing(door, router) as client:
        client.prober.connect(5.0)
        with pytest.raises(Failure) as caught:
            client.prober.probe(workload(sequence_length=60, decode_length=8), 1, lambda: False)
        assert caught.value.outcome is Outcome.REFUSED
        assert "sequence_length + decode_length is 68, over the server's max_total_tokens 64" in caught.value.detail
        assert not requests(router)


def test_the_wrong_protocol_at_the_address_is_one_line(router: Router) -> None:
    with Probing(target("fmaas", None, router.http)) as client, pytest.raises(Failure) as caught:
        client.prober.connect(5.0)
    assert caught.value.outcome is Outcome.UNREACHABLE
    with Probing(target("tgi", router.grpc, None)) as client, pytest.raises(Failure) as caught:
        client.prober.connect(5.0)
    assert caught.value.outcome in (Outcome.UNREACHABLE, Outcome.MALFORMED)


# --- connections


def test_connections_are_kept_and_their_setting_up_is_told_once(door: str, router: Router) -> None:
    with probing(door, router) as client:
        first = client.probe(workload(), 3)
        second = client.probe(workload(), 3)
    assert len(first.setups) == 3
    assert all(setup.begun < setup.ready < min(s.sent for s in first.streams) for setup in first.setups)
    assert second.setups == ()


def test_a_batch_of_which_one_request_cannot_be_made_leaves_no_connection_open(
    door: str, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[ClientConnection] = []
    take = Pool.take

    def kept(pool: Pool, *timeout: float) -> ClientConnection:
        taken.append(take(pool, *timeout))
        return taken[-1]

    with probing(door, router) as client:
        assert client.probe(workload(), 1).outcome is Outcome.OK
        exchange, made = client.prober.builder.exchange, count()

        def second_fails(*args: Any) -> Exchange:
            if next(made) == 1:
                raise Failure(Outcome.UNREACHABLE, "UNAVAILABLE", "gone")
            return exchange(*args)

        monkeypatch.setattr(client.prober.builder, "exchange", second_fails)
        monkeypatch.setattr(Pool, "take", kept)
        result = client.prober.probe(workload(), 3, lambda: False)
        assert (result.outcome, result.detail) == (Outcome.UNREACHABLE, "gone")
        assert [connection.socket.fileno() for connection in taken] == [-1] * 3
        assert client.probe(workload(), 3).outcome is Outcome.OK


def test_connections_that_the_server_closed_meanwhile_are_replaced(door: str, router: Router) -> None:
    with probing(door, router) as client:
        client.probe(workload(), 3)
        router.restart()
        result = client.probe(workload(), 3)
    assert result.outcome is Outcome.OK
    assert len(result.setups) == 3


# --- giving way


@pytest.mark.parametrize("kind", ["fmaas", "tgi"])
def test_users_in_the_queue_are_seen_in_the_routers_metrics(kind: str, router: Router) -> None:
    keys = {"yield_to_users": True, "metrics_url": f"http://{router.http}/metrics"}
    with probing(kind, router, **keys) as client, probing("tgi", router) as user:
        client.prober.connect(5.0)
        assert not client.prober.users_wait()
        user.prober.connect(5.0)
        router.fault(Fault("hang"))
        users = threading.Thread(target=lambda: user.prober.probe(workload(timeout="5m"), 4, lambda: False))
        users.start()
        try:
            wait_until(client.prober.users_wait, "the users are seen")
        finally:
            router.fault(None)
            users.join()
        wait_until(lambda: not client.prober.users_wait(), "the users are gone")


def test_a_page_without_a_queue_is_a_failure_that_names_it(router: Router) -> None:
    url = f"http://{router.http}/health"
    with probing("fmaas", router, yield_to_users=True, metrics_url=url) as client, pytest.raises(Failure) as caught:
        client.prober.users_wait()
    assert "/health names no queue (such as tgi_queue_size), which yield_to_users goes by" in caught.value.detail


def test_a_metrics_page_that_cannot_be_reached_is_a_failure(router: Router) -> None:
    url = f"http://127.0.0.1:{free_port()}/metrics"
    with probing("fmaas", router, yield_to_users=True, metrics_url=url) as client, pytest.raises(Failure) as caught:
        client.prober.users_wait()
    assert caught.value.outcome is Outcome.UNREACHABLE


# --- tokens


def test_a_bearer_token_comes_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_TOKEN", "s3cret")
    with Router(replace(FAST, token="s3cret")) as router:
        with probing("chat", router, bearer_token_env="ROUTER_TOKEN") as client:
            assert client.probe(workload(), 2).outcome is Outcome.OK
        with probing("chat", router) as client:
            result = client.probe(workload(), 1)
    assert (result.outcome, result.code) == (Outcome.REJECTED, "UNAUTHORIZED")


def test_a_bearer_token_comes_from_a_file_and_a_new_one_counts_at_once(tmp_path: Any) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    with Router(replace(FAST, token="s3cret")) as router, probing("tgi", router, bearer_token_file=str(file)) as client:
        assert client.probe(workload(), 1).outcome is Outcome.OK
        file.write_text("other\n")
        result = client.probe(workload(), 1)
        assert result.code == "UNAUTHORIZED"
        assert "other" not in result.detail


@pytest.mark.parametrize(
    ("keys", "detail"),
    [
        ({"bearer_token_env": "NO_SUCH_TOKEN"}, "bearer_token_env: the variable NO_SUCH_TOKEN is not set"),
        (
            {"bearer_token_file": "/no/such/token"},
            "bearer_token_file: /no/such/token cannot be read: No such file or directory",
        ),
        ({"bearer_token_file": "/dev/zero"}, "bearer_token_file: /dev/zero is too long for a token"),
    ],
)
def test_a_missing_token_is_one_line(router: Router, keys: dict[str, str], detail: str) -> None:
    with probing("tgi", router, **keys) as client, pytest.raises(Failure) as caught:
        client.prober.connect(5.0)
    assert caught.value.detail == f"http://{router.http}: {detail}"


def test_a_base_path_stands_in_front_of_every_request(router: Router) -> None:
    base = target("tgi", f"{router.http}/no/such/base", None)
    with Probing(base) as client:
        client.prober.connect(5.0)  # what says nothing of itself is no failure
        result = client.prober.probe(workload(), 1, lambda: False)
    assert (result.outcome, result.code) == (Outcome.REJECTED, "NOT_FOUND")
