"""The table of what is broken: faults, moments, kinds of target, and the outcomes that are right.

`test_servers` and `test_network` make each of it happen; `report` prints what was seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.faults.servers import KINDS

SHARDS = tuple(name for name, kind in KINDS.items() if kind.is_shard)
HTTP = ("tgi", "openai")
ROUTERS = ("fmaas", *HTTP)
ALL = (*SHARDS, *ROUTERS)


@dataclass(frozen=True, slots=True)
class Case:
    """A fault at a moment, and the outcomes that are right: `otherwise` by kind, where they differ.

    `quarantines`: the kinds whose batch is not sent again, since the server ended during it; `may_quarantine`: where it
    depends on the instant. `in_minutes`: part of `make test`. `more`: of the command to the simulator. `of`: what has
    the fault, the server or the network.
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
    of: str = "server"

    def __str__(self) -> str:
        place = self.kinds[0] if self.fault in KINDS else ""  # of a server that answers there
        return "-".join(
            filter(None, (self.fault, self.moment or place or "any", "one-rank" * bool(self.more.get("rank"))))
        )

    @property
    def key(self) -> str:
        """One name for it in the whole table: the server and the network may fail in ways of the same name."""
        return f"{self.of} {self}"

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

ONCE = {"count": 1, "rank": 0}
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
    Case("freeze", "info", ("timeout",), otherwise={"fmaas": ("timeout", "unreachable")}, more=ONCE),
    # A rank that had not begun its call gets none when it goes on: see docs/reliability.md.
    Case("freeze", "prefill", ("timeout",), ("shard", "shard-v2", *ROUTERS), more=ONCE),
    Case("freeze", "decode", ("timeout",), ("shard", "shard-v2", *ROUTERS), more=ONCE),
    Case("crash", "decode", ("unreachable",), SHARDS, quarantines=SHARDS, more={"rank": 0}),
]

RANK_CASES = [
    Case("crash", "prefill", ("unreachable",), ("shard-2-ranks",), quarantines=("shard-2-ranks",), more={"rank": 1}),
    Case("hang", "decode", ("timeout",), ("shard-2-ranks",), more={"rank": 1}, in_minutes=True),
    Case("hang", "clear", ("timeout",), ("shard-2-ranks",), more={"rank": 1}),
]

LIES = [
    Case("other_ids", "prefill", ("malformed",), SHARDS),
    Case("other_ids", "decode", ("malformed",), SHARDS, in_minutes=True),
    Case("missing", "prefill", ("malformed",), SHARDS),
    Case("missing", "decode", ("malformed",), SHARDS),
    # A gateway may cut a router's text anew, so more pieces than tokens are no lie by themselves.
    Case("extra", "prefill", ("malformed",), otherwise=dict.fromkeys(ROUTERS, ("ok", "malformed"))),
    Case("extra", "decode", ("malformed",), SHARDS),
    Case("no_tokens", "prefill", ("malformed",), in_minutes=True),
    Case("no_tokens", "decode", ("ok",), SHARDS),
    # A router's answer has more tokens than were asked for, and no end: it is cancelled when the timeout is over.
    Case("endless", "decode", ("malformed",), otherwise=dict.fromkeys(ROUTERS, ("timeout",)), in_minutes=True),
    Case("absurd_times", "prefill", ("ok",), SHARDS, in_minutes=True),
    Case("absurd_times", "decode", ("ok",), SHARDS),
    Case("huge", "prefill", ("ok", "timeout"), SHARDS),
    Case("garbage", "discovery", ("malformed",), SHARDS),
    Case("garbage", "info", ("malformed",), otherwise=OPTIONAL),
    Case("garbage", "prefill", ("malformed",), in_minutes=True),
    Case("garbage", "decode", ("malformed",), SHARDS),
]

# By signals from outside.
RESTARTS = [
    Case("exit", "", ("unreachable",), may_quarantine=SHARDS),
    Case("exit", "prefill", ("unreachable",)),
    Case("kill", "", ("unreachable",), may_quarantine=SHARDS),  # its socket's file stays
]

COMMANDED = [*STATUS_CASES, *PROCESS_CASES, *RANK_CASES, *LIES]


# By what the bytes happen to mean; gRPC may wait for the rest of a frame.
GARBLED = ("unreachable", "malformed", "rejected", "timeout")


def _network() -> list[Case]:
    cases = []
    for moment in ("", "info", "prefill", "decode"):
        info = moment == "info"
        # A call that reaches one rank and not the other makes the first wait until it ends: see docs/reliability.md.
        one_rank = tuple(kind for kind in SHARDS if kind != "shard-2-ranks")
        kinds = ALL if info else (*one_rank, *ROUTERS)
        grpc = tuple(kind for kind in kinds if kind not in HTTP)
        ended = () if info else one_rank  # a server that is cut off during a batch looks like one that ended
        unsaid = OPTIONAL if info else {}
        silent = ("timeout",) if moment else ("timeout", "unreachable")
        torn: dict[str, Sequence[str]] = dict.fromkeys(ROUTERS, ("ok", "unreachable")) if info else {}
        add = [
            Case("reset", moment, ("unreachable",), kinds, may_quarantine=ended, in_minutes=moment == "decode"),
            Case("close", moment, ("unreachable",), kinds, may_quarantine=ended),
            Case("hold", moment, silent, kinds, unsaid, in_minutes=moment == "prefill"),
            Case("delay", moment, ("ok",), in_minutes=not moment),
            Case("drip", moment, silent, kinds, unsaid),
            Case("truncate", moment, ("unreachable", "malformed"), kinds, torn, may_quarantine=ended),
            Case("garbage", moment, GARBLED, kinds, torn, may_quarantine=ended),
            Case("http", moment, GARBLED, kinds, torn, may_quarantine=ended),
            Case("goaway", moment, ("unreachable", "ok"), grpc, may_quarantine=ended, in_minutes=not moment),
            Case("goaway_late", moment, ("ok",), grpc),
        ]
        cases += [replace(case, of="network") for case in add]
    return cases


NETWORK = _network()
# One of two ranks only.
ONE_LINK = [
    Case("delay", "decode", ("ok",), ("shard-2-ranks",), more={"rank": 1}, in_minutes=True, of="network"),
    Case("delay", "prefill", ("ok",), ("shard-2-ranks",), more={"rank": 1}, of="network"),
    Case("reset", "info", ("unreachable",), ("shard-2-ranks",), more={"rank": 1}, of="network"),
    Case("hold", "info", ("timeout",), ("shard-2-ranks",), more={"rank": 1}, of="network"),
    Case("garbage", "info", GARBLED, ("shard-2-ranks",), more={"rank": 1}, of="network"),
]
# Another server answers at the address: `fault` is its kind. The connections to the first one end, in a probe too.
ELSEWHERE = [
    Case("shard-v2", "", ("ok", "unreachable"), ("shard",), may_quarantine=SHARDS, in_minutes=True, of="network"),
    Case("fmaas", "", ("rejected", "unreachable"), ("shard", "shard-v2"), may_quarantine=SHARDS, of="network"),
    Case(
        "tgi",
        "",
        ("rejected", "malformed", "unreachable"),
        ("shard", "shard-v2", "fmaas"),
        may_quarantine=SHARDS,
        in_minutes=True,
        of="network",
    ),
    Case("shard-v2", "", ("rejected", "unreachable"), ("fmaas",), of="network"),
    Case("fmaas", "", GARBLED, HTTP, of="network"),
]
