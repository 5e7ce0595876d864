"""Hints for a target whose kind, TLS or address does not fit the server. Pure.

A hint follows the failure's text: what the server looks like, and which key to change.
"""

from itertools import accumulate

from exporter.config import notation
from exporter.config.settings import Settings
from exporter.observation import Failure
from exporter.probes.router.http_apis import FACTS_PATHS, PATHS
from exporter.wire import connect_errors
from exporter.wire.detect import ANSWERS_PLAIN, CLOSED, HTTP1, HTTP2, NO_HTTP2, NOT_GRPC, TLS, answers

# Each has services of its own.
GRPC_KINDS = ("shard", "fmaas", "vllm", "sglang")
# OpenSSL's words about the server's certificate and ours.
SIGNER = "set tls: {ca_file: …} to the certificate of who signed it"
OWN_CERTIFICATE = "does it want a certificate of ours? Then set cert_file and key_file in tls"
CERTIFICATES = {
    "self-signed certificate": SIGNER,
    "issuer certificate": SIGNER,
    "certificate is not valid for": "set tls: {server_name: …} to a name that its certificate has",
    "certificate has expired": "renew the server's certificate",
    "certificate is not yet valid": "are the clocks right, here and where it was signed?",
    "ALERT_CERTIFICATE_REQUIRED": OWN_CERTIFICATE,
    "ALERT_BAD_CERTIFICATE": "the server does not take our certificate: tls.cert_file",
    "ALERT_UNKNOWN_CA": "the server does not know who signed our certificate: tls.cert_file",
    "ALERT_HANDSHAKE_FAILURE": OWN_CERTIFICATE,
}


def hinted(failure: Failure, kind: str, secure: bool, has_answered: bool) -> Failure:
    """The failure of a target that is no shard, with a hint where one is known.

    `secure`: the target is configured with TLS. `has_answered`: the server has, at some time before.
    """
    hint = _http(failure, secure, has_answered) if kind == "http" else _grpc(failure, kind, secure, has_answered)
    if hint is None and failure.code == "UNAVAILABLE":
        where, _, reason = failure.detail.partition(": ")
        hint = connect_errors.hint(where, reason)
    return failure if hint is None else Failure(failure.outcome, failure.code, f"{failure.detail}; {hint}")


def _http(failure: Failure, secure: bool, has_answered: bool) -> str | None:
    detail = failure.detail
    if answers(HTTP2) in detail:
        kinds = "kind: fmaas with tls: {}" if secure else "kind: fmaas for a router, kind: shard for a shard"
        return f"is it a gRPC port? Then {kinds}"
    if ANSWERS_PLAIN in detail:
        return "check the port; if the server is meant to speak plain text, change the address to http://…"
    if secure:
        return _secure(detail, has_answered, "change the address to http://…")
    # Servers written in Go, nginx and Apache answer so.
    wants_https = failure.code == "BAD_REQUEST" and "HTTPS" in detail.upper()
    if answers(TLS) in detail or wants_https:
        return "change the address to https://…"
    return "does it expect TLS? Then change the address to https://…" if _closed(detail) and not has_answered else None


def _grpc(failure: Failure, kind: str, secure: bool, has_answered: bool) -> str | None:
    detail = failure.detail
    if answers(HTTP1) in detail or NOT_GRPC in detail or NO_HTTP2 in detail:
        return f"is it an HTTP port? Then kind: http, with address: {'https' if secure else 'http'}://…"
    if failure.code == "UNIMPLEMENTED":
        others = [other for other in GRPC_KINDS if other != kind]
        return f"it speaks gRPC, but not that of kind {kind}; try kind: {', '.join(others[:-1])} or {others[-1]}"
    if ANSWERS_PLAIN in detail:
        return "check the port; if the server is meant to speak plain text, remove tls"
    if answers(TLS) in detail:
        return "set tls: {}"
    if secure:
        return _secure(detail, has_answered, "remove tls")
    if not _closed(detail) or has_answered:
        return None
    return "does it expect TLS? Then tls: {}; is it an HTTP port? Then kind: http, with address: http://…"


def _secure(detail: str, has_answered: bool, otherwise: str) -> str | None:
    """What to change where we use TLS."""
    for words, mend in CERTIFICATES.items():
        if words in detail:
            return mend
    if not _closed(detail) or has_answered:
        return None
    # After the handshake it does speak TLS: TLS 1.3 refuses a client without a certificate only then.
    return f"does it speak TLS at all? Else {otherwise}" if detail.endswith("in the handshake") else OWN_CERTIFICATE


def _closed(detail: str) -> bool:
    """Whether the server closed the connection before an answer."""
    return detail.endswith((CLOSED, f"{CLOSED} without an answer", f"{CLOSED} in the handshake"))


def doubled_paths(settings: Settings) -> list[str]:
    """A line for every target whose address ends with a path that its api adds itself, as OpenAI's base URLs do."""
    lines = []
    for target in settings.targets:
        base = notation.split_url(target.address).path.rstrip("/") if target.kind == "http" else ""
        if tail := base.removeprefix(without_added_path(base)):
            apis = [api for api in PATHS if tail == FACTS_PATHS[api] or PATHS[api].startswith(tail)]
            other = "" if target.api in apis else f", or set api: {' or '.join(apis)}"
            lines.append(
                f"target {target.name}: its address ends with {tail}, and api {target.api} adds {PATHS[target.api]}"
                f" to it ({base}{PATHS[target.api]}); remove {tail} from the address"
                f" ({target.address.rstrip('/').removesuffix(tail)}){other}"
            )
    return lines


def without_added_path(base: str) -> str:
    """A base path without the part that an api adds itself: a whole path or its beginning, the longest that fits."""
    paths = {*PATHS.values(), *FACTS_PATHS.values()}
    tails = {tail for path in paths for tail in accumulate(path.split("/"), lambda one, next_one: f"{one}/{next_one}")}
    return base.removesuffix(max(filter(base.endswith, tails), key=len))
