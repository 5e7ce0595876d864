"""HTTP as the pages see it: a request that was read whole, and the response to it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
# The status page loads, frames and sends nothing.
HTML_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEALTH_PATHS = frozenset({"/-/healthy", "/-/ready"})
ACTION_PATHS = frozenset({"/-/reload", "/probe"})


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """Header names are in lower case; the values of a repeated header are joined with commas."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_health_check(self) -> bool:
        return self.path in HEALTH_PATHS

    @property
    def is_action(self) -> bool:
        """Whether it asks for something to be done, not only to be shown."""
        return self.path in ACTION_PATHS or self.method not in ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """`status` is a code with its reason. An iterator as body is sent as it is made; its length is not known before."""

    status: str
    body: bytes | Iterator[bytes]
    content_type: str = TEXT
    encoding: str | None = None
    more_headers: tuple[tuple[str, str], ...] = ()

    def headers(self) -> dict[str, str]:
        headers = {
            "Content-Type": self.content_type,
            "Vary": "Accept, Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if self.content_type == HTML:
            headers["Content-Security-Policy"] = HTML_POLICY
        if self.encoding is not None:
            headers["Content-Encoding"] = self.encoding
        if isinstance(self.body, bytes):
            headers["Content-Length"] = str(len(self.body))
        return headers | dict(self.more_headers)


def text_response(status: str, text: str, *more_headers: tuple[str, str]) -> HttpResponse:
    return HttpResponse(status, encoded(f"{text}\n"), more_headers=more_headers)


def encoded(text: str) -> bytes:
    """UTF-8, with ? for a character that UTF-8 cannot write: it must not cost the page."""
    return text.encode(errors="replace")
