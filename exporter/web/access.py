"""Who may see the pages: basic auth, the rate limit and the headers of the web file."""

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from urllib.parse import urlsplit

import anyio
from anyio import to_thread
from pydantic import SecretStr

from exporter.web.messages import HttpResponse, ReceivedRequest, text_response
from exporter.web.token_bucket import Bucket
from exporter.web.web_file import RateLimitSection
from exporter.web.web_file_state import WebFileState

REMEMBERED = 100
# bcrypt is slow on purpose, so passwords are checked one at a time; a client waits this long for the others.
PASSWORD_WAIT_SECONDS = 0.5
# For unknown names, so that the time does not tell which names exist. The hash of a password that nobody has.
UNKNOWN_NAME = "$2b$10$BERQHTNIOlS17gGIWi/BlueGB6KWfW7Yz2mqHxqmh/qXr6D0Ut0si"


TOO_MANY = ("429 Too Many Requests", ("Retry-After", "1"))
OVER_LIMIT = text_response(TOO_MANY[0], "over the rate_limit of the web file; come back later", TOO_MANY[1])
BUSY = text_response(TOO_MANY[0], "too many passwords to check at once; come back later", TOO_MANY[1])
WRONG_PASSWORD = text_response(
    "401 Unauthorized",
    "name and password, please",
    ("WWW-Authenticate", 'Basic realm="tgi-probe", charset="UTF-8"'),
)
CROSS_SITE = text_response("403 Forbidden", "not from another site's page; open it from here")


class Guard:
    """Answers requests of those who may ask, with `answer`. Follows the web file as it is at each request."""

    def __init__(
        self,
        answer: Callable[[ReceivedRequest], Awaitable[HttpResponse]],
        web_file: WebFileState,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._web_file = web_file
        self._clock = clock
        self._passwords = Passwords()
        self._limit = RateLimitSection()
        self._bucket: Bucket | None = None

    async def __call__(self, request: ReceivedRequest) -> HttpResponse:
        config = self._web_file.values.config
        response = await self._guarded(request, config.rate_limit, config.basic_auth_users)
        headers = config.http_server_config.headers
        return replace(response, more_headers=(*response.more_headers, *headers.items()))

    async def _guarded(
        self, request: ReceivedRequest, limit: RateLimitSection, users: dict[str, SecretStr]
    ) -> HttpResponse:
        if not self._within(limit):
            return OVER_LIMIT
        refusal = await self._passwords.refusal(request.headers.get("authorization", ""), users) if users else None
        if refusal is not None and request.is_health_check:
            return _in_one_word(await self._answer(request))
        if refusal is not None:
            return refusal
        if request.is_action and _is_cross_site(request):
            return CROSS_SITE
        return await self._answer(request)

    def _within(self, limit: RateLimitSection) -> bool:
        if limit != self._limit:
            self._limit, self._bucket = limit, Bucket(limit.interval, limit.burst) if limit.interval > 0 else None
        return self._bucket is None or self._bucket.allows(self._clock())


def _in_one_word(response: HttpResponse) -> HttpResponse:
    """A kubelet has no password. Without one, health pages say no more than yes or no."""
    return text_response(response.status, "ok" if response.status.startswith("200") else "not ok")


class Passwords:
    """Compares names and passwords with bcrypt hashes: one at a time, and each pair once, since scrapes repeat."""

    def __init__(self) -> None:
        # Keyed with a secret of this process: neither the memory nor the time of a look-up gives a password away.
        self._key = secrets.token_bytes(32)
        self._one_at_a_time = anyio.Lock()
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}

    async def refusal(self, authorization: str, users: dict[str, SecretStr]) -> HttpResponse | None:
        """None for a known name with its password."""
        credentials = _credentials(authorization)
        if credentials is None:
            return WRONG_PASSWORD
        name, password = credentials
        hashed = users[name].get_secret_value() if name in users else UNKNOWN_NAME
        pair = hmac.digest(self._key, b"\0".join((name.encode(), hashed.encode(), password)), sha256)
        if pair not in self._right and pair not in self._wrong:
            with anyio.move_on_after(PASSWORD_WAIT_SECONDS) as waiting:
                await self._one_at_a_time.acquire()
            if waiting.cancelled_caught:
                return BUSY
            try:
                matches = await to_thread.run_sync(_matches, password, hashed)
            finally:
                self._one_at_a_time.release()
            _remember(pair, self._right if matches and name in users else self._wrong)
        return None if pair in self._right else WRONG_PASSWORD


def _remember(pair: bytes, seen: dict[bytes, None]) -> None:
    while len(seen) >= REMEMBERED:
        seen.pop(next(iter(seen)))
    seen[pair] = None


def _matches(password: bytes, hashed: str) -> bool:
    import bcrypt  # only daemons with passwords need it: 0.6 MiB

    try:
        # bcrypt takes 72 bytes; its Python form refuses more where others cut, and hashes are made by those others.
        return bcrypt.checkpw(password[:72], hashed.encode())
    except ValueError:
        return False


def _credentials(authorization: str) -> tuple[str, bytes] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (name.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _is_cross_site(request: ReceivedRequest) -> bool:
    """Whether a browser says that another site's page made it ask. Browsers send `Sec-Fetch-Site` to https and
    localhost only; to the rest they name the page's host in `Origin` or, without a form, in `Referer`.
    """
    headers = request.headers
    if headers.get("sec-fetch-site") == "cross-site":
        return True
    page = headers.get("origin") or headers.get("referer")
    if not page:
        return False  # no browser, or a person who typed the address
    try:
        host = urlsplit(page).netloc.rpartition("@")[2].lower()
    except ValueError:
        return True
    # An opaque origin is "null": it has no host.
    return _without_default_port(host) != _without_default_port(headers.get("host", "").lower())


def _without_default_port(host: str) -> str:
    return host.removesuffix(":80").removesuffix(":443")
