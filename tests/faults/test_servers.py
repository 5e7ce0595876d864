"""Servers that fail: of every kind, at every moment, all at once under one daemon."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.faults.broken import Broken, allowed, broken_servers
from tests.faults.servers import KINDS, Server

SHARDS = tuple(name for name, kind in KINDS.items() if kind.is_shard)
ROUTERS = tuple(name for name in KINDS if name not in SHARDS)
ALL = (*SHARDS, *ROUTERS)
OVER_HTTP = ("tgi", "openai")
STATUSES = {
    "internal": "rejected",
    "unknown": "rejected",
    "unavailable": "unreachable",
    "resource_exhausted": "overloaded",
    "cancelled": "unreachable",
}
HTTP_499 = {"cancelled": "timeout"}  # nginx' word for a client that did not wait


@dataclass(frozen=True, slots=True)
class Case:
    """A fault by command at a moment, the kinds it is for, and the outcomes that are right."""

    fault: str
    moment: str
    outcomes: frozenset[str]
    kinds: Sequence[str] = ALL
    over_http: str = ""

    def right(self, kind: str) -> frozenset[str]:
        """The right outcomes for a kind of target. HTTP may have no word for what gRPC says."""
        return frozenset((self.over_http,)) if self.over_http and kind in OVER_HTTP else self.outcomes

    def __str__(self) -> str:
        return f"{self.fault}-{self.moment}"


def case(fault: str, moment: str, *outcomes: str, kinds: Sequence[str] = ALL, over_http: str = "") -> Case:
    return Case(fault, moment, frozenset(outcomes), kinds, over_http)


FIRST = [
    *(case(status, "prefill", right, over_http=HTTP_499.get(status, "")) for status, right in STATUSES.items()),
    *(case(status, "decode", right) for status, right in STATUSES.items()),
    case("hang", "", "timeout"),
    case("kill", "prefill", "unreachable"),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    with broken_servers(tmp_path_factory.mktemp("faults"), ALL) as broken:
        yield broken


@pytest.mark.parametrize("one", FIRST, ids=str)
def test_a_failing_server_has_the_right_outcome_and_recovers(broken: Broken, one: Case) -> None:
    def break_it(server: Server) -> None:
        server.fault(one.fault, one.moment)

    seen = broken.run(one.kinds, break_it)
    for kind, what in seen.items():
        print(kind, what)
    for kind, what in seen.items():
        assert set(what.outcomes) - {"quarantined"} <= one.right(kind), (kind, what)
        assert what.recovery <= allowed(what), (kind, what)
        assert what.left == 0, (kind, what)
