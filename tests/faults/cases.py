"""The table of what is broken: faults, moments, kinds of target, and the outcomes that are right.

`test_servers` and `test_network` make each of it happen; `report` prints what was seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.servers import KINDS

SHARDS = tuple(name for name, kind in KINDS.items() if kind.is_shard)
HTTP = ("tgi", "openai")
ROUTERS = ("fmaas", *HTTP)
ALL = (*SHARDS, *ROUTERS)


@dataclass(frozen=True, slots=True)
class Case:
    """A fault at a moment, and the outcomes that are right: `otherwise` by kind, where they differ.

    `quarantines`: the kinds whose batch is not sent again, since the server ended during it. `in_minutes`: part of
    `make test`. `how`: what the fault is, for people. `more`: of the command to the simulator.
    """

    fault: str
    moment: str
    outcomes: Sequence[str]
    kinds: Sequence[str] = ALL
    otherwise: Mapping[str, Sequence[str]] = field(default_factory=dict)
    quarantines: Sequence[str] = ()
    may_quarantine: Sequence[str] = ()
    in_minutes: bool = False
    more: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        place = self.kinds[0] if self.fault in KINDS else ""  # of a server that answers there
        return "-".join(filter(None, (self.fault, self.moment or place or "any", "one-rank" * ("rank" in self.more))))

    def right(self, kind: str) -> frozenset[str]:
        return frozenset(self.otherwise.get(kind, self.outcomes))

    @property
    def harmless(self) -> list[str]:
        """The kinds whose probes may be answered well meanwhile."""
        return [kind for kind in self.kinds if "ok" in self.right(kind)]


def http(outcome: str) -> dict[str, Sequence[str]]:
    return dict.fromkeys(HTTP, (outcome,))


# HTTP says some of it in other words: 499 is nginx' status for a client that left, 424 TGI's for a failed generation.
# A router need not say what it is.
OPTIONAL: dict[str, Sequence[str]] = dict.fromkeys(ROUTERS, ("ok",))
STATUSES: dict[str, str] = {
    "internal": "rejected",
    "unknown": "rejected",
    "unavailable": "unreachable",
    "resource_exhausted": "overloaded",
    "cancelled": "unreachable",
}
QUICK = {("internal", "decode"), ("unavailable", "prefill"), ("resource_exhausted", "prefill"), ("internal", "info")}


def _statuses() -> list[Case]:
    cases = []
    for status, outcome in STATUSES.items():
        for moment in ("discovery", "info", "prefill", "decode", "clear"):
            kinds = SHARDS if moment in ("discovery", "clear") else ALL
            otherwise = http("timeout") if status == "cancelled" else {}
            if moment == "info":
                otherwise = OPTIONAL if outcome != "unreachable" else http("ok")
            quick = (status, moment) in QUICK
            cases.append(Case(status, moment, (outcome,), kinds, otherwise, in_minutes=quick))
    return cases


STATUS_CASES = _statuses()

PROCESS_CASES = [
    Case("hang", "prefill", ("timeout",), SHARDS, in_minutes=True),
    Case("hang", "decode", ("timeout",), SHARDS),
    Case("hang", "clear", ("timeout",), SHARDS),
    Case("hang", "info", ("timeout",), SHARDS),
    Case("hang", "discovery", ("timeout",), SHARDS),
    Case("hang", "", ("timeout",), ROUTERS),
    Case("kill", "discovery", ("unreachable",), SHARDS),
    Case("kill", "info", ("unreachable",)),
    Case("kill", "prefill", ("unreachable",), quarantines=SHARDS),
    Case("kill", "decode", ("unreachable",), quarantines=SHARDS, in_minutes=True),
    Case("freeze", "info", ("timeout",), more={"count": 1, "rank": 0}),
    Case("freeze", "prefill", ("timeout",), more={"count": 1, "rank": 0}),
    Case("freeze", "decode", ("timeout",), more={"count": 1, "rank": 0}),
    Case("crash", "decode", ("unreachable",), SHARDS, quarantines=SHARDS, more={"rank": 0}),
]

RANK_CASES = [
    Case("crash", "prefill", ("unreachable",), ("shard-2-ranks",), quarantines=("shard-2-ranks",), more={"rank": 1}),
    Case("hang", "decode", ("timeout",), ("shard-2-ranks",), more={"rank": 1}, in_minutes=True),
    Case("internal", "decode", ("rejected",), ("shard-2-ranks",), more={"rank": 1, "count": 1}),
    Case("hang", "clear", ("timeout",), ("shard-2-ranks",), more={"rank": 1}),
]

LIES = [
    Case("other_ids", "prefill", ("malformed",), SHARDS),
    Case("other_ids", "decode", ("malformed",), SHARDS, in_minutes=True),
    Case("missing", "prefill", ("malformed",), SHARDS),
    Case("missing", "decode", ("malformed",), SHARDS),
    Case("extra", "prefill", ("malformed",), (*SHARDS, *ROUTERS)),
    Case("extra", "decode", ("malformed",), SHARDS),
    Case("no_tokens", "prefill", ("malformed",), in_minutes=True),
    Case("no_tokens", "decode", ("ok",), SHARDS),
    # A router's answer has more tokens than were asked for, and no end: it is cancelled when the timeout is over.
    Case("endless", "decode", ("malformed",), otherwise=dict.fromkeys(ROUTERS, ("timeout",)), in_minutes=True),
    Case("absurd_times", "prefill", ("ok",), SHARDS, in_minutes=True),
    Case("absurd_times", "decode", ("ok",), SHARDS),
    Case("huge", "prefill", ("ok",), SHARDS, dict.fromkeys(ROUTERS, ("malformed",))),
    Case("garbage", "discovery", ("malformed",), SHARDS),
    Case("garbage", "info", ("malformed",), otherwise=OPTIONAL),
    Case("garbage", "prefill", ("malformed",), in_minutes=True),
    Case("garbage", "decode", ("malformed",), SHARDS),
]

COMMANDED = [*STATUS_CASES, *PROCESS_CASES, *RANK_CASES, *LIES]


def _network() -> list[Case]:
    cases = []
    for moment in ("", "info", "prefill", "decode"):
        died = SHARDS if moment in ("prefill", "decode") else ()
        torn = http("malformed") | {"fmaas": ("unreachable", "malformed")} if moment == "decode" else {}
        for fault in ("reset", "close"):
            cases.append(
                Case(fault, moment, ("unreachable",), ALL, torn, may_quarantine=died, in_minutes=moment == "decode")
            )
        cases.append(Case("hold", moment, ("timeout",), in_minutes=moment == "prefill"))
        cases.append(Case("delay", moment, ("ok",), in_minutes=moment == ""))
        cases.append(Case("drip", moment, ("timeout",)))
        cases.append(Case("truncate", moment, ("unreachable", "malformed"), may_quarantine=died))
        cases.append(Case("garbage", moment, ("unreachable", "malformed", "rejected"), may_quarantine=died))
        cases.append(Case("http", moment, ("unreachable", "malformed", "rejected"), may_quarantine=died))
        grpc = (*SHARDS, "fmaas")
        cases.append(Case("goaway", moment, ("unreachable",), grpc, may_quarantine=died, in_minutes=moment == ""))
        cases.append(Case("goaway_late", moment, ("ok",), grpc))
    return cases


NETWORK = _network()
# One of two ranks only.
ONE_LINK = [
    Case("reset", "decode", ("unreachable",), ("shard-2-ranks",), may_quarantine=SHARDS, more={"rank": 1}),
    Case("hold", "decode", ("timeout",), ("shard-2-ranks",), more={"rank": 1}, in_minutes=True),
    Case("delay", "decode", ("ok",), ("shard-2-ranks",), more={"rank": 1}),
    Case("hold", "prefill", ("timeout",), ("shard-2-ranks",), more={"rank": 1}),
]
# Another server answers at the address: `fault` is its kind.
ELSEWHERE = [
    Case("shard-v2", "", ("ok",), ("shard",), in_minutes=True),
    Case("fmaas", "", ("rejected",), ("shard", "shard-v2")),
    Case("tgi", "", ("rejected", "malformed"), ("shard", "shard-v2", "fmaas"), in_minutes=True),
    Case("shard-v2", "", ("rejected",), ("fmaas",)),
    Case("fmaas", "", ("unreachable", "malformed", "rejected"), HTTP),
]
