"""Finds out which server answers at a target's address, for `check --connect`.

The questions cost a server nothing and change nothing: GET of pages, ModelInfo, ServiceDiscovery, GetModelInfo. A token
goes only where the target itself would send it.
"""

import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from exporter.config import notation
from exporter.config.target import Api, Kind, Target, Tls
from exporter.observation import Failure
from exporter.pb import fmaas_pb2
from exporter.probes.router.engine_services import services
from exporter.probes.router.fmaas_protocol import SERVICE
from exporter.probes.router.grpc_calls import HEADERS, call
from exporter.probes.router.hints import without_added_path
from exporter.probes.router.http_apis import FACTS_PATHS, PATHS
from exporter.probes.router.protocol import PageReader
from exporter.probes.router.server_errors import loaded
from exporter.probes.shard.batch import PROTOCOLS
from exporter.wire.connection import ClientConnection
from exporter.wire.credentials import TlsContext, bearer_token
from exporter.wire.exchanges import Exchange, Exchanges
from exporter.wire.http_codec import End, Http1, Http2, HttpCodec, HttpRequest
from exporter.wire.message_framing import grpc_message
from exporter.wire.sockets import Endpoint, endpoint_of

QUESTION_SECONDS = 2.0
NO_SUCH_PATH = "/no-such-path"
UNIMPLEMENTED = "12"
ENGINES: dict[Kind, str] = {"vllm": "vLLM over gRPC", "sglang": "SGLang over gRPC"}


@dataclass(frozen=True, slots=True)
class FoundServer:
    """Which server answers, and what a target needs to reach it. `apis`: of an HTTP server, as far as known."""

    what: str
    kind: Kind | None
    address: str
    secure: bool
    apis: tuple[Api, ...] = ()
    models: tuple[str, ...] = ()
    wants_token: bool = False


def identify(target: Target, until: float) -> FoundServer | None:
    """The server at the target's address; None where none answers until then."""
    return next(_Identification(target, until).servers(), None)


class _AnyReader(PageReader):
    """Reads an answer of any status, in HTTP or gRPC."""

    grpc_status = ""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        super().head(status, headers)
        self.grpc_status = headers.get("grpc-status", "")

    def end(self, at: float, end: End) -> None:
        self.grpc_status = end.trailers.get("grpc-status", self.grpc_status)

    def document(self) -> Mapping[str, Any]:
        found = loaded(self.content.decode("utf-8", "replace")) if self.status == 200 else {}
        return found if isinstance(found, dict) else {}


class _Identification:
    """Asks one address, in plain text and with TLS."""

    def __init__(self, target: Target, until: float) -> None:
        self._target, self._until = target, until
        self._plain = endpoint_of(target.address)
        url = notation.split_url(target.address) if target.kind == "http" else None
        self._secure = url.scheme == "https" if url else target.tls is not None
        self._base = url.path.rstrip("/") if url else ""

    def servers(self) -> Iterator[FoundServer]:
        for secure in (self._secure, not self._secure):
            if not (self._plain.path and secure):
                ways = [self._http, self._grpc] if self._target.kind == "http" else [self._grpc, self._http]
                for way in ways:
                    yield from way(secure)

    # --- HTTP

    def _http(self, secure: bool) -> Iterator[FoundServer]:
        server = None
        for base in dict.fromkeys((self._base, without_added_path(self._base), "")):
            server = self._http_server(secure, base)
            if server is None or server.kind is not None:
                break
        if server is not None:
            yield server

    def _http_server(self, secure: bool, base: str) -> FoundServer | None:
        """None where it speaks no HTTP."""
        paths = (NO_SUCH_PATH, *FACTS_PATHS.values(), *PATHS.values())
        pages = {path: self._get(secure, base + path) for path in paths}
        if not any(page.status for page in pages.values()):
            return None
        # A path that takes only POST answers a GET with an error of its own, not with that of a missing path.
        nothing = (0, 404, pages[NO_SUCH_PATH].status)
        apis = [api for api, path in PATHS.items() if pages[path].status not in nothing]
        info, listed = pages[FACTS_PATHS["tgi"]].document(), pages[FACTS_PATHS["chat"]].document().get("data")
        models = [item.get("id") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        if "model_id" in info:
            apis = [*apis, *(["tgi"] if "tgi" not in apis else [])]  # type: ignore[list-item]  # they are apis
        elif models and not apis:
            apis = ["completions", "chat"]
        authority = self._endpoint(secure, "http/1.1").authority
        return FoundServer(
            _what(apis, base),
            "http" if apis or pages[NO_SUCH_PATH].status in (401, 403) else None,
            f"{'https' if secure else 'http'}://{authority}{base}",
            secure,
            tuple(apis),
            tuple(str(model) for model in models),
            any(page.status in (401, 403) for page in pages.values()),
        )

    def _get(self, secure: bool, path: str) -> _AnyReader:
        target = self._target
        headers = [("user-agent", "tgi-probe"), ("accept-encoding", "identity")]
        endpoint = self._endpoint(secure, "http/1.1")
        try:
            if target.kind == "http" and secure == self._secure:
                if secure:  # a server that gets the token must have a valid certificate
                    endpoint = TlsContext(target.address, target.tls or Tls(), "http/1.1").applied_to(self._plain)
                token = bearer_token(target.address, target.bearer_token_env, target.bearer_token_file)
                headers += [("authorization", f"Bearer {token}")] if token else []
        except Failure:
            pass  # a token or a certificate is missing: ask without
        return self._ask(endpoint, Http1(endpoint.authority), HttpRequest("GET", path, tuple(headers)))

    # --- gRPC

    def _grpc(self, secure: bool) -> Iterator[FoundServer]:
        address = self._target.address if self._plain.path else self._plain.where
        status = self._call(
            secure, call(SERVICE + "ModelInfo", fmaas_pb2.ModelInfoRequest(model_id=self._target.model_id))
        )
        if status not in ("", UNIMPLEMENTED):
            yield FoundServer("a TGIS router (fmaas)", "fmaas", address, secure)
        elif status == UNIMPLEMENTED:
            empty = grpc_message(b"")
            for protocol in PROTOCOLS:
                path = f"/{protocol}.TextGenerationService/ServiceDiscovery"
                if self._call(secure, HttpRequest("POST", path, HEADERS, empty)) == "0":
                    yield FoundServer("a shard of TGI", "shard", address, secure)
                    return
            for kind, what in ENGINES.items():
                if any(self._call(secure, service.info()) == "0" for service in services(kind)):
                    yield FoundServer(what, kind, address, secure)
                    return
            yield FoundServer("a gRPC server of none of our kinds", None, address, secure)

    def _call(self, secure: bool, request: HttpRequest) -> str:
        """The status of a call, as gRPC numbers them; "" where the server speaks no gRPC."""
        endpoint = self._endpoint(secure, "h2")
        return self._ask(endpoint, Http2(endpoint.authority, "https" if secure else "http"), request).grpc_status

    # --- both

    def _endpoint(self, secure: bool, protocol: str) -> Endpoint:
        return replace(self._plain, tls=_unverified(protocol)) if secure else self._plain

    def _ask(self, endpoint: Endpoint, codec: HttpCodec, request: HttpRequest) -> _AnyReader:
        """A reader without a status where no answer came."""
        until = min(self._until, time.perf_counter() + QUESTION_SECONDS)
        if time.perf_counter() >= until:
            return _AnyReader()
        try:
            connection = ClientConnection(endpoint, codec, until - time.perf_counter())
        except Failure:
            return _AnyReader()
        reader = _AnyReader()
        exchanges, exchange = Exchanges(), Exchange(connection, request, reader)
        exchanges.send(exchange)
        while len(exchanges) and time.perf_counter() < until:
            exchanges.poll(until)
        exchanges.close()
        connection.close()
        return reader if exchange.failure is None else _AnyReader()


def _unverified(protocol: str) -> ssl.SSLContext:
    """TLS with any server: no secret is sent over it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


def _what(apis: list[Api], base: str) -> str:
    if "tgi" in apis:
        return "a TGI router"
    if apis:
        return "a server of the OpenAI forms (such as vLLM or SGLang)"
    return f"an HTTP server that knows none of our paths{f' under {base}' if base else ''}"
