"""Queries to Prometheus over its HTTP API."""

import http.client
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from exporter.observation import legible

TIMEOUT = 10.0  # seconds
LONGEST_TEXT = 300  # characters of one text in an answer
LARGEST_ANSWER = 64 * 1024 * 1024  # bytes


class PrometheusError(Exception):
    """Prometheus gave no usable answer. The message is one line: what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class PrometheusSample:
    labels: Mapping[str, str]
    value: float


def read_token(file: Path | None) -> str | None:
    """The bearer token in the file. Raises PrometheusError."""
    try:
        token = file.read_text("utf-8").strip() if file else None
    except (OSError, UnicodeDecodeError) as error:
        raise PrometheusError(f"--bearer-token-file: {file} cannot be read: {error}") from None
    if token is not None and not re.fullmatch("[!-~]+", token):
        # Never the token itself: the line may end in a log.
        raise PrometheusError(f"--bearer-token-file: {file} must hold one token: a line of ASCII without blanks inside")
    return token


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which could send the token to another server."""

    def redirect_request(self, *_: object) -> None:
        return None


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """A group of rules as Prometheus runs it. Seconds; `evaluated`: Unix time, None before the first evaluation."""

    name: str
    interval: float
    evaluated: float | None


def query(url: str, expr: str, token: str | None = None) -> list[PrometheusSample]:
    """The result of an instant query. Raises PrometheusError."""
    kind, body = _get(url, "query", {"query": expr}, token)
    document = _parsed(body)
    if "error" in document:
        raise PrometheusError(f"{url}: {_line(document['error'])}")
    try:
        return [_sample(item["metric"], item["value"][1]) for item in document["data"]["result"]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
        what = f"its answer ({_line(kind)}) is not what Prometheus says to a query"
        raise PrometheusError(f"{url}: {what}; is it the address of Prometheus?") from None


def rule_groups(url: str, token: str | None = None) -> list[RuleGroup]:
    """Those that record something; empty where the server does not tell: what stores recordings need not make them."""
    try:
        groups = _parsed(_get(url, "rules", {"type": "record"}, token)[1])["data"]["groups"]
        return [
            RuleGroup(legible(one["name"], LONGEST_TEXT), float(one["interval"]), _evaluated(one)) for one in groups
        ]
    except (PrometheusError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return []


def _evaluated(group: Mapping[str, Any]) -> float | None:
    """Prometheus writes the year 1 for a group that was never evaluated."""
    text = str(group.get("lastEvaluation", ""))
    if not text or text.startswith("0001-"):
        return None
    text = re.sub(r"(\.\d{6})\d+", r"\1", text)  # nanoseconds
    return datetime.fromisoformat(text).timestamp()


def _get(url: str, name: str, parameters: Mapping[str, str], token: str | None) -> tuple[str, bytes]:
    """The content type and the body that the API answers. Raises PrometheusError."""
    if not url.startswith(("http://", "https://")):
        raise PrometheusError(f"--prometheus: must begin with http:// or https://, not {url!r}")
    try:
        netloc = urllib.parse.urlsplit(url).netloc
    except ValueError as error:
        raise PrometheusError(f"--prometheus: {url!r} is no address: {error}") from None
    if "@" in netloc:
        raise PrometheusError(
            "--prometheus: must not hold a user or password; use --bearer-token-file, or a proxy that signs in"
        )
    address = f"{url.rstrip('/')}/api/v1/{name}?{urllib.parse.urlencode(parameters)}"
    try:
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT) as response:
            return response.headers.get_content_type(), response.read(LARGEST_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            raise PrometheusError(f"{url}: {_refusal(error)}") from None
    except (ValueError, http.client.HTTPException) as error:
        raise PrometheusError(f"{url}: is not the address of a Prometheus ({_line(error)})") from None
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason  # without the number of the error
        raise PrometheusError(f"{url}: cannot be reached: {_line(reason)}") from None


def _parsed(body: bytes) -> Mapping[str, Any]:
    """Empty where it is no JSON object."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict) else {}


def _sample(labels: Mapping[str, str], value: str) -> PrometheusSample:
    return PrometheusSample(
        {legible(name, LONGEST_TEXT): legible(text, LONGEST_TEXT) for name, text in labels.items()}, float(value)
    )


def _refusal(error: urllib.error.HTTPError) -> str:
    """What an HTTP error status means, and the reason that Prometheus gives."""
    if 300 <= error.code < 400:
        to = _line(urllib.parse.unquote(error.headers.get("Location", "elsewhere")).partition("?")[0])
        return f"answered {error.code} and sends to {to}, which is not followed; name the final address"
    status = f"answered {error.code} {_line(error.reason)}"
    if error.code in (401, 403):
        return f"{status}; use --bearer-token-file"
    try:
        reason = _parsed(error.read(LARGEST_ANSWER)).get("error")
    except (OSError, http.client.HTTPException):
        reason = None
    return f"{status}: {_line(reason)}" if reason else f"{status}; is it the address of Prometheus?"


def _line(text: object) -> str:
    return legible(str(text), LONGEST_TEXT)
