"""From `tls_server_config` to a context of Python's ssl."""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.web.web_file import CIPHERS, TlsServerSection

VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
VERIFY = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


def context(tls: TlsServerSection) -> ssl.SSLContext:
    """The context for handshakes. Raises OSError (ssl.SSLError is one) or ValueError when a file cannot be used."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version, made.maximum_version = VERSIONS[tls.min_version], VERSIONS[tls.max_version]
    chosen = [CIPHERS[name] for name in tls.cipher_suites if name in CIPHERS]
    made.set_ciphers(":".join(chosen or CIPHERS.values()))
    if not tls.prefer_server_cipher_suites:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    with (
        _file(tls.cert_file, tls.cert) as certificate,
        _file(tls.key_file, tls.key.get_secret_value() if tls.key else None) as key,
    ):
        # An empty password, because without one OpenSSL would ask for it on the terminal.
        made.load_cert_chain(certificate, key, password="")
    made.verify_mode = VERIFY[tls.client_auth_type]
    if made.verify_mode != ssl.CERT_NONE:
        with _file(tls.client_ca_file, tls.client_ca) as authority:
            made.load_verify_locations(authority)
    return made


@contextmanager
def _file(path: Path | None, text: str | None) -> Iterator[str]:
    """The path of a file with the PEM text. Inline text is kept in memory, not on a disk: it may be a key."""
    if path is not None:
        path.open("rb").close()  # ssl's own errors do not name the file
        yield str(path)
        return
    if hasattr(os, "memfd_create"):
        descriptor, name = os.memfd_create("pem"), None
    else:
        descriptor, name = tempfile.mkstemp()
    try:
        os.write(descriptor, (text or "").encode())
        yield name or f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
        if name:
            os.unlink(name)


def problem(tls: TlsServerSection, error: Exception) -> str:
    """The message for an error of `context`, to follow `tls_server_config`: the place, and what to do."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if "MISMATCH" in reason:
            return (
                ": the certificate and the key do not belong together; give the key that the certificate was made for"
            )
        if "BAD_DECRYPT" in reason or "BAD_PASSWORD" in reason or "PASSWORD" in str(error).upper():
            return f".key_file: {tls.key_file} is encrypted; give a key without a password"
        return ": a file holds no PEM that can be used; check cert_file, key_file and client_ca_file"
    if isinstance(error, OSError) and error.filename:
        return f": {error.filename} cannot be read: {error.strerror}; check the path and its permissions"
    return f": {error}"
