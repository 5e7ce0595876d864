"""What a router's protocol must offer: `fmaas_protocol`, `engine_protocol` (gRPC) and `http_protocol` do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from exporter.config import notation
from exporter.config.target import Tls
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.plan.targets import Facts
from exporter.probes.router.token_counts import AnswerTokens
from exporter.wire.credentials import TlsContext
from exporter.wire.exchanges import AnswerReader
from exporter.wire.http_codec import End, HttpCodec, HttpRequest
from exporter.wire.message_framing import malformed
from exporter.wire.sockets import Endpoint, endpoint_of

# Sends one request that is no stream, and returns the body of the answer. Raises Failure.
Ask = Callable[[HttpRequest], bytes]
# How a request ended: the outcome, the code, a line for people.
Ending = tuple[Outcome, str, str]
# Bytes. The metrics pages of routers have some hundred kilobytes; more would fill our memory.
LONGEST_PAGE = 16 * 1024 * 1024


class TokenReader(AnswerReader, Protocol):
    """Reads the answer to a request for a stream of tokens."""

    def tokens(self) -> AnswerTokens:
        """After the end. Raises Failure where the answer is not what it should be."""

    def tokens_so_far(self) -> int:
        """How many tokens an unfinished answer has."""


class BodyReader(AnswerReader, Protocol):
    """Reads the answer to a request that is no stream."""

    @property
    def content(self) -> bytes:
        """The body, after the end."""


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """Where a router's own metrics are."""

    endpoint: Endpoint
    request: HttpRequest

    @classmethod
    def of(cls, url: str, tls: Tls | None = None, headers: tuple[tuple[str, str], ...] = ()) -> "MetricsPage":
        """Raises Failure where certificates cannot be read."""
        endpoint, parts = endpoint_of(url), notation.split_url(url, "metrics_url")
        if parts.scheme == "https":
            endpoint = TlsContext(url, tls or Tls(), "http/1.1").applied_to(endpoint)
        return cls(endpoint, HttpRequest("GET", parts.path or "/", headers))


class RouterProtocol(Protocol):
    """One target's protocol: where to connect, what to send, and what the answers mean.

    `truncates`: a request asks the server to cut its prompt to the wanted length. `tokenizes`: the server counts a
    prompt's tokens without generating any.
    """

    truncates: bool
    tokenizes: bool

    def endpoint(self) -> Endpoint:
        """Where to connect. Reads certificates: raises Failure."""

    def codec(self, endpoint: Endpoint) -> HttpCodec:
        """For a new connection."""

    def warming(self) -> HttpRequest | None:
        """A cheap request that warms an idle connection; None where the codec itself can do that."""
        return None

    def facts(self, ask: Ask) -> Facts:
        """What the server says of itself. Raises Failure where it is unreachable, or a needed fact is missing now."""

    def needs_facts(self) -> bool:
        """Whether requests need a fact that is not known yet."""
        return False

    def count_prompt(self, ask: Ask, text: str, workload: Workload) -> int | None:
        """How many tokens a prompt has, without a stream; None where the server does not say. Raises Failure."""

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        """A request for a stream of tokens. Raises Failure."""

    def token_reader(self, workload: Workload) -> TokenReader:
        """For the answer to `request`."""

    def drop_option(self, endings: Sequence[Ending]) -> bool:
        """Whether requests that were sent together should be sent again, without an option that some servers refuse.

        `endings`: how they ended. Later requests leave the option out.
        """
        return False

    def forget(self) -> None:
        """The next connection may lead to another server: try all options again."""
        return

    def exact(self) -> bool:
        """Whether a prompt has a token for each of its words, so that its length need not be found out."""
        return False

    def abort(self, request_ids: Sequence[str]) -> list[HttpRequest]:
        """The calls that end requests whose stream is gone; none where the end of a stream ends its request."""
        return []

    def users_waiting(self, ask: Ask, own: int) -> int | None:
        """At most how many requests of users wait; None where the service does not say. `own`: our requests.

        Raises Failure.
        """
        return None

    def body_reader(self) -> BodyReader:
        """For the answer to any other request."""

    def without_secrets(self, failure: Failure) -> Failure:
        """A server may repeat our token, and a detail goes to the log."""
        return failure

    def explained(self, failure: Failure) -> Failure:
        """The failure of a probe, with what to do about it where that is known."""

    def metrics_page(self) -> MetricsPage | None:
        """None where the target does not name it. Raises Failure."""


class PageReader:
    """Reads a whole body, of LONGEST_PAGE bytes at most.

    `refused` makes the Failure of an error status. Without it every status is accepted.
    """

    complete = False

    def __init__(self, refused: Callable[[int, bytes, Mapping[str, str]], Failure] | None = None) -> None:
        self.status = 0
        self._refused = refused
        self._headers: Mapping[str, str] = {}
        self._content = bytearray()

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self._headers = headers

    def body(self, at: float, data: bytes) -> None:
        self._content += data
        if len(self._content) > LONGEST_PAGE:
            raise malformed(f"an answer of more than {LONGEST_PAGE >> 20} MiB")

    def end(self, at: float, end: End) -> None:
        if self._refused is not None and self.status >= 300:
            raise self._refused(self.status, self.content, self._headers)
