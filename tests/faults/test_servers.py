"""Servers that fail or lie: of every kind, at every moment, all at once under one daemon."""

from collections.abc import Iterator

import pytest

from tests.faults.broken import Broken, broken_servers
from tests.faults.cases import ALL, COMMANDED, RESTARTS, Case
from tests.faults.checking import check, parameters
from tests.faults.servers import Server


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    with broken_servers(tmp_path_factory.mktemp("faults"), ALL) as broken:
        yield broken


@pytest.mark.parametrize("one", parameters(COMMANDED))
def test_a_fault_has_the_right_outcome_and_leaves_nothing(broken: Broken, one: Case) -> None:
    check(broken, one, lambda server: server.fault(one.fault, one.moment, **one.more))


def stop_during_prefill(server: Server) -> None:
    server.fault("hang", "prefill" if server.kind.is_shard else "")
    server.await_call("prefill")
    server.terminate()


BREAKS = {"exit-any": Server.terminate, "exit-prefill": stop_during_prefill, "kill-any": Server.kill}


@pytest.mark.parametrize("one", parameters(RESTARTS))
def test_a_server_that_comes_back_on_its_address_is_probed_again(broken: Broken, one: Case) -> None:
    """Also where the file of its old socket is still there."""
    check(broken, one, BREAKS[str(one)])
