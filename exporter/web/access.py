"""Who may see the pages: basic auth, the rate limit and the headers of the web file, around a WSGI application."""

import base64
import binascii
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from exporter.web.current import Current
from exporter.web.token_bucket import Bucket
from exporter.web.web_file import RateLimit

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
# A kubelet has no password; without one these say no more than yes or no.
HEALTH = frozenset({"/-/healthy", "/-/ready"})
REMEMBERED = 100
# bcrypt is slow on purpose. Whoever sends wrong passwords waits for the others who do, but not for ever.
PATIENCE = 0.5
# Compared with where the name is unknown, so that the time does not tell which names exist. Of a password nobody has.
NOBODY = "$2b$10$BERQHTNIOlS17gGIWi/BlueGB6KWfW7Yz2mqHxqmh/qXr6D0Ut0si"


class Guard:
    """The application, for those who may. Reads the web file's state for every request."""

    def __init__(self, application: Application, current: Current, clock: Callable[[], float] = time.monotonic) -> None:
        self._application = application
        self._current = current
        self._clock = clock
        self._passwords = Passwords()
        self._limit = RateLimit()
        self._bucket: Bucket | None = None

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        config = self._current.config
        extra = list(config.http_server_config.headers.items())

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*_without(headers, extra), *extra], *rest)

        if not self._within(config.rate_limit):
            return _say(
                start,
                "429 Too Many Requests",
                "over the rate_limit of the web file; come back later",
                [("Retry-After", "1")],
            )
        verdict = self._verdict(environ, config.basic_auth_users)
        if verdict is not None and environ.get("PATH_INFO") in HEALTH:
            return self._in_one_word(environ, start)
        if verdict == BUSY:
            return _say(
                start,
                "429 Too Many Requests",
                "too many passwords to check at once; come back later",
                [("Retry-After", "1")],
            )
        if verdict == WRONG:
            challenge = [("WWW-Authenticate", 'Basic realm="tgi-probe", charset="UTF-8"')]
            return _say(start, "401 Unauthorized", "name and password, please", challenge)
        if _acts(environ) and _from_elsewhere(environ):
            return _say(start, "403 Forbidden", "not from another site's page; open it from here", [])
        return self._application(environ, start)

    def _within(self, limit: RateLimit) -> bool:
        if limit != self._limit:
            self._limit, self._bucket = limit, Bucket(limit.interval, limit.burst) if limit.interval > 0 else None
        bucket = self._bucket
        return bucket is None or bucket.allows(self._clock())

    def _verdict(self, environ: dict[str, Any], users: dict[str, SecretStr]) -> str | None:
        if not users:
            return None
        return self._passwords.verdict(environ.get("HTTP_AUTHORIZATION", ""), users)

    def _in_one_word(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        said: list[str] = []
        self._application(environ, lambda status, headers: said.append(status))
        return _say(
            start_response, said[0], "ok" if said[0].startswith("200") else "not ok", [], environ["REQUEST_METHOD"]
        )


WRONG, BUSY = "wrong", "busy"


class Passwords:
    """Compares names and passwords with bcrypt hashes: one at a time, and each pair once, since scrapes repeat."""

    def __init__(self) -> None:
        # Keyed with a secret of this process: neither the memory nor the time of a look-up gives a password away.
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._right: dict[bytes, None] = {}
        self._wrong: dict[bytes, None] = {}

    def verdict(self, authorization: str, users: dict[str, SecretStr]) -> str | None:
        """None for a known name with its password; else WRONG, or BUSY when too many are being compared."""
        credentials = _credentials(authorization)
        if credentials is None:
            return WRONG
        name, password = credentials
        hashed = users[name].get_secret_value() if name in users else NOBODY
        pair = hmac.digest(self._key, b"\0".join((name.encode(), hashed.encode(), password)), sha256)
        if pair in self._right:
            return None
        if pair in self._wrong:
            return WRONG
        if not self._lock.acquire(timeout=PATIENCE):
            return BUSY
        try:
            ok = _matches(password, hashed) and name in users
            seen = self._right if ok else self._wrong
            while len(seen) >= REMEMBERED:
                seen.pop(next(iter(seen)))
            seen[pair] = None
        finally:
            self._lock.release()
        return None if ok else WRONG


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


def _acts(environ: dict[str, Any]) -> bool:
    """Whether the request does something, so that another site's page could make a person's browser do it."""
    return environ.get("PATH_INFO") == "/probe" or environ.get("REQUEST_METHOD") not in ("GET", "HEAD")


def _from_elsewhere(environ: dict[str, Any]) -> bool:
    """Whether a browser says that another site's page made it ask. Browsers tell `Sec-Fetch-Site` to https and
    localhost only; to the rest they say which host the page is from, in `Origin` or, without a form, in `Referer`.
    """
    if environ.get("HTTP_SEC_FETCH_SITE") == "cross-site":
        return True
    page = environ.get("HTTP_ORIGIN") or environ.get("HTTP_REFERER")
    if not page:
        return False  # no browser, or a person who typed the address
    try:
        host = urlsplit(page).netloc.rpartition("@")[2].lower()
    except ValueError:
        return True
    # An opaque origin is "null": no host, and none of ours.
    return _without_default_port(host) != _without_default_port(environ.get("HTTP_HOST", "").lower())


def _without_default_port(host: str) -> str:
    return host.removesuffix(":80").removesuffix(":443")


def _without(headers: list[tuple[str, str]], extra: list[tuple[str, str]]) -> list[tuple[str, str]]:
    replaced = {name.lower() for name, _ in extra}
    return [(name, value) for name, value in headers if name.lower() not in replaced]


def _say(
    start_response: StartResponse, status: str, text: str, headers: list[tuple[str, str]], method: str = "GET"
) -> Iterable[bytes]:
    body = f"{text}\n".encode()
    start_response(
        status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *headers]
    )
    return [] if method == "HEAD" else [body]
