"""Servers that fail or lie: of every kind, at every moment, all at once under one daemon."""

from collections.abc import Iterator

import pytest

from tests.faults.broken import Broken, broken_servers
from tests.faults.cases import ALL, COMMANDED, Case
from tests.faults.checking import check, parameters
from tests.faults.servers import Server


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    with broken_servers(tmp_path_factory.mktemp("faults"), ALL) as broken:
        yield broken


@pytest.mark.parametrize("one", parameters(COMMANDED))
def test_a_fault_has_the_right_outcome_and_leaves_nothing(broken: Broken, one: Case) -> None:
    check(broken, one, lambda server: server.fault(one.fault, one.moment, **one.more))


EXIT = Case("exit", "prefill", ("unreachable",), in_minutes=True)
GONE = Case("exit", "", ("unreachable",))
KILLED = Case("kill", "", ("unreachable",))


@pytest.mark.faults
def test_a_server_that_stops_during_a_prefill_and_comes_back_on_its_address(broken: Broken) -> None:
    def stop(server: Server) -> None:
        server.fault("hang", "prefill" if server.kind.is_shard else "")
        server.await_call("prefill")
        server.terminate()

    check(broken, EXIT, stop)
