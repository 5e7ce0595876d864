"""TLS contexts and tokens, read from where the configuration says, anew when they change. Secrets never leave in a
message.
"""

import os
import ssl
from pathlib import Path

from exporter.observation import Failure, Outcome
from exporter.settings import Tls
from exporter.streaming.line import unreachable


class Trust:
    """The TLS context of one target. A renewed certificate is taken up by the next connection."""

    def __init__(self, where: str, tls: Tls, protocol: str) -> None:
        """`protocol` is what is offered in the handshake (ALPN): h2 or http/1.1."""
        self._where, self._tls, self._protocol = where, tls, protocol
        self._seen: tuple[int, ...] = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Raises Failure (unreachable), which names the file."""
        seen = tuple(self._changed(key) for key in ("ca_file", "cert_file", "key_file"))
        if self._context is None or seen != self._seen:
            self._context, self._seen = self._made(), seen
        return self._context

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
            raise unreachable(
                self._where, f"tls.ca_file: {tls.ca_file} holds no certificate: {_reason(error)}"
            ) from None
        if tls.cert_file:
            try:
                # A key with a password would make OpenSSL ask for it on the terminal.
                context.load_cert_chain(tls.cert_file, tls.key_file, password="")
            except (OSError, ssl.SSLError) as error:
                files = " and ".join(file for file in (tls.cert_file, tls.key_file) if file)
                what = f"tls.cert_file: {files} cannot be used: {_reason(error)}"
                raise unreachable(self._where, what) from None
        context.set_alpn_protocols([self._protocol])
        return context


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or type(error).__name__)


def bearer_token(where: str, variable: str | None, file: str | None) -> str | None:
    """The token of the target, None where it has none. Raises Failure where it is not there."""
    if variable is not None:
        token, place = os.environ.get(variable, ""), f"bearer_token_env: the variable {variable} is not set"
    elif file is not None:
        place = f"bearer_token_file: {file} holds no token"
        try:
            token = Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise Failure(
                Outcome.REJECTED, "UNAUTHENTICATED", f"{where}: bearer_token_file: {file}: {reason}"
            ) from None
    else:
        return None
    if not token or not token.isascii() or not token.isprintable():
        raise Failure(Outcome.REJECTED, "UNAUTHENTICATED", f"{where}: {place}")
    return token
