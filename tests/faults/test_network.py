"""A network between daemon and servers that cuts, resets, holds back, delays, drips, or leads to another server."""

from collections.abc import Iterator
from typing import cast

import pytest

from tests.faults.broken import Broken, broken_servers
from tests.faults.cases import ALL, ELSEWHERE, NETWORK, ONE_LINK, Case
from tests.faults.checking import check, parameters
from tests.faults.network import Network, NetworkFault
from tests.faults.servers import Server


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    folder = tmp_path_factory.mktemp("faults")
    with Network() as network, broken_servers(folder, ALL, network) as broken:
        yield broken


@pytest.mark.parametrize("one", parameters([*NETWORK, *ONE_LINK]))
def test_trouble_in_the_network_has_the_right_outcome_and_leaves_nothing(broken: Broken, one: Case) -> None:
    kind = cast(NetworkFault, one.fault)
    rank = cast(int | None, one.more.get("rank"))
    check(broken, one, lambda server: server.trouble(kind, one.moment, rank), Server.mend_network)


@pytest.mark.parametrize("one", parameters(ELSEWHERE))
def test_another_server_at_the_address_has_the_right_outcome(broken: Broken, one: Case) -> None:
    other = broken.servers[one.fault].authority
    check(broken, one, lambda server: server.trouble("elsewhere", elsewhere=other), Server.mend_network)
