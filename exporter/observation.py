"""What a probe saw, as frozen raw facts: probes make an `Observation`; metrics, SLOs, tables and logs read it.

Nothing here is derived: `analysis` computes durations and rates. Instants are seconds of one monotonic clock
(`time.perf_counter`). Instants of different processes cannot be compared.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Instant(float):
    """When an event was noticed: it happened at this instant, or up to `late` seconds earlier."""

    __slots__ = ("late",)
    late: float

    def __new__(cls, at: float, late: float = 0.0) -> Self:
        instant = super().__new__(cls, at)
        instant.late = late
        return instant


def lateness(instant: float) -> float:
    """How many seconds earlier it may have happened; 0 for a plain float."""
    return instant.late if isinstance(instant, Instant) else 0.0


class Outcome(StrEnum):
    """How an attempt ended; the values are the label values of `tgi_probe_attempts_total`."""

    OK = "ok"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    REJECTED = "rejected"
    OVERLOADED = "overloaded"
    MALFORMED = "malformed"
    REFUSED = "refused"
    QUARANTINED = "quarantined"
    NOT_READY = "not_ready"
    DISTURBED = "disturbed"

    @property
    def judged(self) -> bool:
        """Whether SLOs count it. They do not where nothing was sent (refused, quarantined), the server was not warmed
        up yet, or this process or its machine was stopped, lacked CPU, or had its clock set forward while the probe ran
        (disturbed).
        """
        return self not in NOT_JUDGED


NOT_JUDGED = frozenset({Outcome.REFUSED, Outcome.QUARANTINED, Outcome.NOT_READY, Outcome.DISTURBED})


class SkipReason(StrEnum):
    """Why a probe that was due was not started; the label values of `tgi_probe_skipped_total`."""

    BUSY = "busy"
    DUTY_CYCLE = "duty_cycle"
    BACKOFF = "backoff"
    UNSAFE = "unsafe"


class Method(StrEnum):
    """The two measured calls of a shard."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class ServerTimings:
    """What the server says one call took, in seconds; None where it does not say."""

    forward: float | None = None
    decode: float | None = None
    concat: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One arrival of tokens.

    `asked` is the instant at which the waiting for it began: the call was sent (shard), or the arrival before it
    (stream). `tokens` counts the new tokens of all requests of the stream: with speculation a step carries several.
    `requests` is how many of them were in it; None: all of the stream.

    Both instants are the latest possible ones, because this process may have read late: the first of the tokens may
    have arrived up to `late` seconds before `arrived`, and the waiting may have begun `asked_late` before `asked`.
    `ranks`: how many calls it took, made at once. `worked`: for how much of `late` a CPU did the work of the call.
    """

    asked: float
    arrived: float
    tokens: int
    server: ServerTimings | None = None
    requests: int | None = None
    late: float = 0.0
    asked_late: float = 0.0
    ranks: int = 1
    worked: float = 0.0


@dataclass(frozen=True, slots=True)
class Stream:
    """The requests that share their arrivals: one request of a streaming server, or the whole batch of a shard.

    A shard answers all `requests` of a batch in the same call, so they share every instant. `sent` is when the first
    call or message left, `ended` when the last answer was in. The first step is the prefill, the others are decode.
    `intended` is when a background load wanted it sent, if durations count from that. `declined` is how long the server
    held the request before it answered that it had not begun it, and it was sent again. `prompt_estimated`: the server
    does not count prompts, so `prompt_tokens` is one per word. `generated_estimated`: its count of the generated tokens
    is missing or impossible.

    The request may have been sent up to `sent_late` seconds after `sent`, and ended up to `ended_late` before `ended`.
    `read_delay` is the longest time that an arrival may have waited to be read. `cached_tokens`: how many tokens of the
    prompt the server's prefix cache held; None where it does not say.
    """

    requests: int
    prompt_tokens: int
    sent: float
    ended: float
    steps: tuple[Step, ...]
    outcome: Outcome = Outcome.OK
    code: str = "OK"
    intended: float | None = None
    prompt_estimated: bool = False
    generated_estimated: bool = False
    sent_late: float = 0.0
    ended_late: float = 0.0
    read_delay: float = 0.0
    declined: float = 0.0
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """One connection that had to be opened: from the first packet to the instant at which a request could be sent.

    This process may have been stopped for up to `late` seconds of it.
    """

    begun: float
    ready: float
    late: float = 0.0


@dataclass(frozen=True, slots=True)
class Series:
    """Which series a probe belongs to: the labels `target`, `workload`, `batch_size`."""

    target: str
    workload: str
    batch_size: int


@dataclass(frozen=True, slots=True)
class Observation:
    """One attempt: of which series, when, what arrived, how it ended.

    `due` is when the schedule wanted it, `started` when it began, `ended` when it was over. `code` is the gRPC or HTTP
    status name. `detail` is one line for people, empty for a success. `streams` is empty where nothing was sent.
    `trace_id` is the one sent to the server, 32 hexadecimal digits. `corrections` counts the requests that were only
    sent to find or correct the length of prompts.
    """

    series: Series
    due: float
    started: float
    ended: float
    outcome: Outcome
    code: str
    detail: str = ""
    streams: tuple[Stream, ...] = ()
    setups: tuple[Setup, ...] = ()
    trace_id: str = ""
    corrections: int = 0

    @property
    def answered(self) -> bool:
        """Whether the server answered all requests well, though perhaps this process could not time it."""
        return bool(self.streams) and all(stream.outcome is Outcome.OK for stream in self.streams)


# The most characters of a detail, and of one fact that a server tells about itself.
LONGEST_DETAIL = 1000
LONGEST_FACT = 200


def legible(text: str, longest: int) -> str:
    """Text from outside as one printable line of at most `longest` characters.

    Half surrogate pairs, control characters, and invisible or direction-changing characters become U+FFFD.
    """
    line = " ".join(text[: 4 * longest].split())
    if len(line) > longest or len(text) > 4 * longest:
        line = line[: longest - 1] + "…"
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)


class Failure(Exception):
    """An attempt that ended early. A probe raises it, and the attempt turns it into an `Observation`.

    The detail may hold text of the server, so it is made `legible`. `corrections`: see `Observation`.
    `may_have_ended_server`: the server got the request and then failed or closed, so the request may be the reason.
    """

    def __init__(
        self, outcome: Outcome, code: str, detail: str, corrections: int = 0, may_have_ended_server: bool = False
    ) -> None:
        detail = legible(detail, LONGEST_DETAIL)
        super().__init__(outcome, code, detail)
        self.outcome = outcome
        self.code = code
        self.detail = detail
        self.corrections = corrections
        self.may_have_ended_server = may_have_ended_server

    def __str__(self) -> str:
        return f"{self.outcome} ({self.code}): {self.detail}"
