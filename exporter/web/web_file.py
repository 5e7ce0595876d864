"""The web file, in the format of Prometheus' exporter-toolkit: TLS, client certificates, basic auth, headers.

Strict. A message names the place and what to do, never the value: it may be a secret.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from exporter.config.errors import SettingsError, explain
from exporter.config.fields import Seconds, must
from exporter.config.yaml_file import read_yaml

Version = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
# Go's names, as in the format, of suites with forward secrecy. Those of TLS 1.3 cannot be chosen in Go either.
CIPHERS = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
}
SUITES = frozenset({*CIPHERS, "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"})
HEADERS = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
BCRYPT = re.compile(r"\$2[abxy]\$\d\d\$[./A-Za-z0-9]{53}", re.ASCII)


PasswordHash = Annotated[
    SecretStr,
    must(
        lambda hashed: BCRYPT.fullmatch(hashed.get_secret_value()),
        "must be a bcrypt hash, $2y$10$…; make one with: htpasswd -nBC 10 NAME",
    ),
]


class WebFileSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TlsServerSection(WebFileSection):
    """`tls_server_config`. Files are relative to the web file. `cert`, `key`, `client_ca` hold the PEM text itself."""

    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    cert: str | None = None
    key: SecretStr | None = None
    client_ca: str | None = None
    client_auth_type: Annotated[
        Literal[
            "NoClientCert",
            "RequestClientCert",
            "RequireAnyClientCert",
            "VerifyClientCertIfGiven",
            "RequireAndVerifyClientCert",
        ],
        must(
            lambda name: name not in ("RequestClientCert", "RequireAnyClientCert"),
            "this policy asks for a certificate and then believes any; use RequireAndVerifyClientCert",
        ),
    ] = "NoClientCert"
    client_allowed_sans: tuple[str, ...] = ()
    min_version: Version = "TLS12"
    max_version: Version = "TLS13"
    cipher_suites: tuple[Annotated[str, must(SUITES.__contains__, "must be one of " + ", ".join(CIPHERS))], ...] = ()
    prefer_server_cipher_suites: bool = True
    # Python's ssl cannot set a list of curves; its default order (X25519, P-256, …) is the one of Go.
    curve_preferences: tuple[str, ...] = Field((), max_length=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        authorities = [one for one in (self.client_ca, self.client_ca_file) if one is not None]
        for wrong, message in (
            ((self.cert is None) == (self.cert_file is None), "must have exactly one of cert_file and cert"),
            ((self.key is None) == (self.key_file is None), "must have exactly one of key_file and key"),
            (len(authorities) > 1, "must have at most one of client_ca_file and client_ca"),
            (
                (self.client_auth_type != "NoClientCert") != bool(authorities),
                "client_ca_file and client_auth_type: RequireAndVerifyClientCert go together; give both or neither",
            ),
            (
                self.client_allowed_sans and self.client_auth_type != "RequireAndVerifyClientCert",
                "client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert",
            ),
            (self.min_version > self.max_version, "min_version must not be above max_version"),
        ):
            if wrong:
                raise PydanticCustomError("tls", message)
        return self


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if name not in HEADERS:
            raise PydanticCustomError("header", "can only hold " + ", ".join(HEADERS))
        if HEADERS[name] and value not in HEADERS[name]:
            raise PydanticCustomError("header", f"{name} must be {' or '.join(HEADERS[name])}")
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise PydanticCustomError("header", f"{name} must be one line of ASCII, without spaces around it")
    return headers


class HttpServerSection(WebFileSection):
    """`http_server_config`. `http2` is accepted, for files shared with other exporters; this server speaks HTTP/1.1."""

    http2: bool = True
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = {}


class RateLimitSection(WebFileSection):
    """`rate_limit`: a token bucket for all requests together; those over it are answered 429. 0 = no limit."""

    interval: Seconds = 0.0
    burst: int = Field(0, ge=0)


class WebFile(WebFileSection):
    """A whole web file. The defaults hold without a file: plain HTTP, open to everyone who reaches the port."""

    tls_server_config: TlsServerSection | None = None
    http_server_config: HttpServerSection = HttpServerSection()
    basic_auth_users: dict[str, PasswordHash] = {}
    rate_limit: RateLimitSection = RateLimitSection()


def load(path: Path) -> WebFile:
    """Reads a web file; file names in it are relative to it. Raises SettingsError with a line for each problem."""
    try:
        config = WebFile.model_validate(read_yaml(path))
    except ValidationError as error:
        problems = (explain(problem, echo=False, model=WebFile) for problem in error.errors())
        raise SettingsError([": ".join(filter(None, (str(path), *problem))) for problem in problems]) from None
    if (tls := config.tls_server_config) is None:
        return config
    files = {
        name: path.parent / file for name in ("cert_file", "key_file", "client_ca_file") if (file := getattr(tls, name))
    }
    return config.model_copy(update={"tls_server_config": tls.model_copy(update=files)})
