"""TLS contexts and tokens from the files and variables of the configuration. No message holds a secret."""

import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from exporter.config.bounded_read import read_bounded
from exporter.config.target import Target, Tls
from exporter.observation import Failure, Outcome
from exporter.wire.sockets import Endpoint, unreachable

LONGEST_TOKEN = 65536  # bytes
# How people name their variables. A token looks different.
NAME_OF_A_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class TlsContext:
    """The TLS context of one target. The next connection uses a renewed certificate."""

    def __init__(self, where: str, tls: Tls, protocol: str) -> None:
        """`where`: the address, for messages. `protocol`: what the handshake offers (ALPN), h2 or http/1.1."""
        self._where, self._tls, self._protocol = where, tls, protocol
        self._seen: tuple[int, ...] = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Raises Failure (unreachable), with the file's name."""
        seen = tuple(self._changed(key) for key in ("ca_file", "cert_file", "key_file"))
        if self._context is None or seen != self._seen:
            self._context, self._seen = self._made(), seen
        return self._context

    def applied_to(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint with TLS. Raises Failure (unreachable)."""
        return replace(endpoint, tls=self.context(), server_name=self._tls.server_name or "")

    def _changed(self, key: str) -> int:
        file = getattr(self._tls, key)
        try:
            return os.stat(file).st_mtime_ns if file else 0
        except OSError as error:
            raise unreachable(self._where, f"tls.{key}: {file} cannot be read: {error.strerror}") from None

    def _made(self) -> ssl.SSLContext:
        tls = self._tls
        try:
            context = ssl.create_default_context(cafile=tls.ca_file)
        except (OSError, ssl.SSLError) as error:
            what = f"tls.ca_file: {tls.ca_file} holds no certificate: {_reason(error)}"
            raise unreachable(self._where, what) from None
        if tls.cert_file:
            try:
                # Without `password` OpenSSL would ask for that of an encrypted key on the terminal.
                context.load_cert_chain(tls.cert_file, tls.key_file, password="")
            except (OSError, ssl.SSLError) as error:
                files = " and ".join(file for file in (tls.cert_file, tls.key_file) if file)
                what = f"tls.cert_file: {files} cannot be used: {_reason(error)}"
                raise unreachable(self._where, what) from None
        context.set_alpn_protocols([self._protocol])
        return context


def _reason(error: OSError) -> str:
    text = str(getattr(error, "reason", None) or error.strerror or type(error).__name__)
    return re.sub(r"^\[\w+\] | \(_ssl\.c:\d+\)$", "", text)  # of OpenSSL, and a line of Python's source


def bearer_token(where: str, variable: str | None, file: str | None) -> str | None:
    """The token of the target; None where it has none. Raises Failure where it cannot be read."""
    try:
        return _token(variable, file)
    except ValueError as error:
        raise Failure(Outcome.REJECTED, "UNAUTHENTICATED", f"{where}: {error}") from None


def problems(target: Target) -> Iterator[str]:
    """`key: what is wrong` for each token and certificate of the target that cannot be read now."""
    try:
        _token(target.bearer_token_env, target.bearer_token_file)
    except ValueError as error:
        yield str(error)
    if target.tls is not None:
        try:
            TlsContext("", target.tls, "h2").context()
        except Failure as failure:
            yield failure.detail.removeprefix(": ")


def _token(variable: str | None, file: str | None) -> str | None:
    """Raises ValueError, with `key: what is wrong`."""
    if variable is not None:
        place = f"bearer_token_env: the variable {variable}"
        text = os.environ.get(variable)
        if text is None and NAME_OF_A_VARIABLE.fullmatch(variable):
            raise ValueError(f"{place} is not set")
        if text is None:  # `variable` may be the token itself, so the message leaves it out
            mend = "give the name of a variable, and put the token into it"
            raise ValueError(f"bearer_token_env: no variable of that name is set; {mend}")
    elif file is not None:
        place = f"bearer_token_file: {file}"
        text = _text_of(file)
    else:
        return None
    # echo, editors and exports add white space and byte order marks.
    token = text.strip().strip("\ufeff").strip()
    if not token:
        raise ValueError(f"{place} is empty")
    if len(token.splitlines()) > 1:
        raise ValueError(f"{place} holds a line end in the middle; put one token there and nothing else")
    if token.lower().startswith("bearer "):
        raise ValueError(f"{place} begins with the word Bearer, which is added anyway; leave it out")
    if not token.isascii() or not token.isprintable():
        raise ValueError(f"{place} holds a character that a header cannot have; is it the token itself?")
    return token


def _text_of(file: str) -> str:
    try:
        data = read_bounded(Path(file), LONGEST_TOKEN)
        if len(data) > LONGEST_TOKEN:
            raise ValueError(f"bearer_token_file: {file} is too long for a token")
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"bearer_token_file: {file} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"bearer_token_file: {file} cannot be read: {error.strerror}") from None
