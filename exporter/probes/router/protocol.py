"""What the two router protocols must be able to say; see `streams` for what they have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome, Step
from exporter.plan.targets import Facts
from exporter.wire.exchanges import AnswerReader
from exporter.wire.http_codec import End, HttpCodec, HttpRequest
from exporter.wire.sockets import Endpoint

# Sends one request that is no stream and answers its body. Raises Failure.
Ask = Callable[[HttpRequest], bytes]
# How a request ended: the outcome, the code, a line for people.
Ended = tuple[Outcome, str, str]
# Bytes. The metrics pages of routers have some hundred kilobytes.
LONGEST_PAGE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """What a finished answer says: the arrivals of its tokens, and its prompt's length where the server counts it.

    `estimated`: the server gave no count of the generated tokens that can be true.
    """

    steps: tuple[Step, ...]
    prompt_tokens: int | None
    estimated: bool = False


class TokenReader(AnswerReader, Protocol):
    """The answer to a request for a stream of tokens."""

    def told(self, sent: float) -> Told:
        """After the end. Raises Failure where the answer is not what it should be."""

    def so_far(self) -> int:
        """How many tokens had come, of an answer that was given up."""


class BodyReader(AnswerReader, Protocol):
    """The answer to a request that is no stream."""

    @property
    def content(self) -> bytes:
        """After the end: what was answered."""


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """Where something is to be had: one request to one server."""

    endpoint: Endpoint
    codec: HttpCodec
    request: HttpRequest


class RouterProtocol(Protocol):
    """One protocol of one target: how to codec, what to ask, what the answers mean.

    `truncates`: a request asks the server to cut its prompt to the wanted length.
    """

    truncates: bool

    def endpoint(self) -> Endpoint:
        """Where to connect. Reads certificates: raises Failure."""

    def codec(self, endpoint: Endpoint) -> HttpCodec:
        """The protocol of a new connection."""

    def warming(self) -> HttpRequest | None:
        """A cheap request that wakes an idle connection, where the protocol itself has no such thing."""

    def facts(self, ask: Ask) -> Facts:
        """Who is there, as far as it says so. Raises Failure where nobody is, or a needed fact is not to be had now."""

    def needs_facts(self) -> bool:
        """Whether no request can be made well without them."""

    def tokenize(self, ask: Ask, text: str) -> int | None:
        """How many tokens a text has, without anything being generated; None where the server does not say."""

    def count(self, ask: Ask, text: str, workload: Workload) -> int | None:
        """As `tokenize`, from a request of one token that is no stream."""

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        """One request for a stream of tokens. Raises Failure."""

    def answer(self, workload: Workload) -> TokenReader:
        """For the answer to `request`."""

    def asks_less(self, ends: Sequence[Ended]) -> bool:
        """Told how requests that were sent together ended. True where they may have been refused for an option that not
        every server knows: it is left out from now on, and they are worth another try, which is not the failure of a
        probe.
        """

    def forget(self) -> None:
        """Before a connection to what may be another server: it is asked for every option again."""

    def whole(self) -> BodyReader:
        """For the answer to any other request."""

    def discreet(self, failure: Failure) -> Failure:
        """Without our secrets: a server may repeat what it was sent, and a detail goes to the log."""

    def explained(self, failure: Failure) -> Failure:
        """The failure of a probe, with what to do about it where that is known."""

    def metrics(self) -> MetricsPage | None:
        """Where the router's own metrics are; None where the target does not name them. Raises Failure."""


class PageReader:
    """The whole body of an answer. `refused` makes the Failure of an error status; without it every status will do.

    A body longer than LONGEST_PAGE is malformed: it would fill our memory.
    """

    complete = False

    def __init__(self, refused: Callable[[int, bytes, Mapping[str, str]], Failure] | None = None) -> None:
        self.status = 0
        self._refused = refused
        self._headers: Mapping[str, str] = {}
        self._pieces: list[bytes] = []
        self._length = 0

    @property
    def content(self) -> bytes:
        return b"".join(self._pieces)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self._headers = headers

    def body(self, at: float, data: bytes) -> None:
        self._length += len(data)
        if self._length > LONGEST_PAGE:
            raise Failure(Outcome.MALFORMED, "OK", f"an answer of more than {LONGEST_PAGE >> 20} MiB")
        self._pieces.append(data)

    def end(self, at: float, end: End) -> None:
        if self._refused is not None and self.status >= 300:
            raise self._refused(self.status, self.content, self._headers)
