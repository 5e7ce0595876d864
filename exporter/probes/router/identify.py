"""Which server answers at a target's address, where it is not the one that the target says. For people who ask.

Only questions that cost a server nothing and change nothing: GET of pages, ModelInfo, ServiceDiscovery. A token goes
where the target itself would send it, and nowhere else.
"""

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.config import notation
from exporter.config.target import Api, Kind, Target, Tls
from exporter.observation import Failure
from exporter.pb import fmaas_pb2
from exporter.probes.router.fmaas_protocol import HEADERS, call
from exporter.probes.router.hints import without_added_path
from exporter.probes.router.http_apis import FACTS_PATHS, PATHS
from exporter.probes.shard.batch import PROTOCOLS
from exporter.wire.connection import ClientConnection
from exporter.wire.credentials import TlsContext, bearer_token
from exporter.wire.exchanges import Exchange, Exchanges
from exporter.wire.http_codec import End, Http1, Http2, HttpCodec, HttpRequest
from exporter.wire.message_framing import grpc_message
from exporter.wire.sockets import Endpoint

QUESTION_SECONDS = 2.0
NO_SUCH_PATH = "/no-such-path"
LARGEST_PAGE = 1 << 20
UNIMPLEMENTED = "12"


@dataclass(frozen=True, slots=True)
class Server:
    """Who answers, and what a target says to reach it. `apis`: of an HTTP server, as far as its paths tell."""

    what: str
    kind: Kind | None
    address: str
    secure: bool
    apis: tuple[Api, ...] = ()
    models: tuple[str, ...] = ()
    wants_token: bool = False


def identify(target: Target, until: float, clock: Callable[[], float] = time.perf_counter) -> Server | None:
    """Who is there, asked until then; None where nobody answers."""
    return next(_Asker(target, until, clock).servers(), None)


class _Answer:
    """Of any status, in HTTP or gRPC."""

    complete = False

    def __init__(self) -> None:
        self.status = 0
        self.grpc_status = ""
        self._content = b""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.grpc_status = headers.get("grpc-status", "")

    def body(self, at: float, data: bytes) -> None:
        self._content += data[: LARGEST_PAGE - len(self._content)]

    def end(self, at: float, end: End) -> None:
        self.grpc_status = end.trailers.get("grpc-status", self.grpc_status)

    def document(self) -> Mapping[str, Any]:
        try:
            found = json.loads(self._content) if self.status == 200 else {}
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class _Asker:
    """Asks one address, as plain text and with TLS."""

    def __init__(self, target: Target, until: float, clock: Callable[[], float]) -> None:
        self._target, self._until, self._clock = target, until, clock
        self._base = self._path = ""
        self._secure = target.tls is not None
        if target.kind == "http":
            url = notation.split_url(target.address)
            self._secure = url.scheme == "https"
            self._host, self._port = url.hostname or "", url.port or (443 if self._secure else 80)
            self._base = url.path.rstrip("/")
        elif target.address.startswith("unix:"):
            self._path = target.address.removeprefix("unix://").removeprefix("unix:")
            self._host, self._port = "", 0
        else:
            host, _, port = target.address.rpartition(":")
            self._host, self._port = host.strip("[]"), int(port)

    def servers(self) -> Iterator[Server]:
        for secure in (self._secure, not self._secure):
            if not (self._path and secure):
                ways = [self._http, self._grpc] if self._target.kind == "http" else [self._grpc, self._http]
                for way in ways:
                    yield from way(secure)

    # --- HTTP

    def _http(self, secure: bool) -> Iterator[Server]:
        known = None
        for base in dict.fromkeys((self._base, without_added_path(self._base), "")):
            known = self._http_server(secure, base)
            if known is None:
                return
            if known.kind is not None:
                yield known
                return
        if known is not None:
            yield known

    def _http_server(self, secure: bool, base: str) -> Server | None:
        """None where it speaks no HTTP."""
        pages = {
            path: self._get(secure, base + path) for path in (NO_SUCH_PATH, *FACTS_PATHS.values(), *PATHS.values())
        }
        if not any(page.status for page in pages.values()):
            return None
        # A path that takes POST alone is there, though it answers a GET with an error: not with the one for any path.
        nothing = (0, 404, pages[NO_SUCH_PATH].status)
        apis = [api for api, path in PATHS.items() if pages[path].status not in nothing]
        info, listed = pages[FACTS_PATHS["tgi"]].document(), pages[FACTS_PATHS["chat"]].document().get("data")
        models = [item.get("id") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        if "model_id" in info:
            apis = [*apis, *(["tgi"] if "tgi" not in apis else [])]  # type: ignore[list-item]  # they are apis
        elif models and not apis:
            apis = ["completions", "chat"]
        return Server(
            _what(apis, base),
            "http" if apis or pages[NO_SUCH_PATH].status in (401, 403) else None,
            f"{'https' if secure else 'http'}://{self._authority(secure)}{base}",
            secure,
            tuple(apis),
            tuple(str(model) for model in models),
            any(page.status in (401, 403) for page in pages.values()),
        )

    def _get(self, secure: bool, path: str) -> _Answer:
        headers = [("user-agent", "tgi-probe"), ("accept-encoding", "identity")]
        endpoint = self._endpoint(secure, "http/1.1")
        try:
            if self._target.kind == "http" and secure == self._secure:
                target = self._target
                if secure:  # what may be told the token, its certificate is looked at
                    context = TlsContext(target.address, target.tls or Tls(), "http/1.1").context()
                    name = (target.tls.server_name if target.tls else None) or ""
                    endpoint = Endpoint(self._host, self._port, tls=context, server_name=name)
                token = bearer_token(target.address, target.bearer_token_env, target.bearer_token_file)
                headers += [("authorization", f"Bearer {token}")] if token else []
        except Failure:
            pass  # no token, no certificates: then without
        return self._ask(endpoint, Http1(endpoint.authority), HttpRequest("GET", path, tuple(headers)))

    # --- gRPC

    def _grpc(self, secure: bool) -> Iterator[Server]:
        address = self._target.address if self._path else f"{self._bracketed()}:{self._port}"
        status = self._call(secure, call("ModelInfo", fmaas_pb2.ModelInfoRequest(model_id=self._target.model_id)))
        if status not in ("", UNIMPLEMENTED):
            yield Server("a TGIS router (fmaas)", "fmaas", address, secure)
        elif status == UNIMPLEMENTED:
            empty = grpc_message(b"")
            for protocol in PROTOCOLS:
                path = f"/{protocol}.TextGenerationService/ServiceDiscovery"
                if self._call(secure, HttpRequest("POST", path, HEADERS, empty)) == "0":
                    yield Server("a shard of TGI", "shard", address, secure)
                    return
            yield Server("a gRPC server that is neither a shard of TGI nor a TGIS router", None, address, secure)

    def _call(self, secure: bool, request: HttpRequest) -> str:
        """The status of a call, as gRPC numbers them; "" where no gRPC is spoken."""
        endpoint = self._endpoint(secure, "h2")
        return self._ask(endpoint, Http2(endpoint.authority, "https" if secure else "http"), request).grpc_status

    # --- both

    def _endpoint(self, secure: bool, protocol: str) -> Endpoint:
        """With TLS whoever it is: nothing that is secret is sent there."""
        context = None
        if secure:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols([protocol])
        return Endpoint(self._host, self._port, self._path, context)

    def _ask(self, endpoint: Endpoint, codec: HttpCodec, request: HttpRequest) -> _Answer:
        """Without a status where no answer came."""
        answer = _Answer()
        until = min(self._until, self._clock() + QUESTION_SECONDS)
        if self._clock() >= until:
            return answer
        try:
            connection = ClientConnection(endpoint, codec, until - self._clock(), self._clock)
        except Failure:
            return answer
        exchanges, exchange = Exchanges(self._clock), Exchange(connection, request, answer)
        exchanges.send(exchange)
        while len(exchanges) and self._clock() < until:
            exchanges.poll(until)
        exchanges.close()
        connection.close()
        return answer if exchange.failure is None else _Answer()

    def _authority(self, secure: bool) -> str:
        return self._bracketed() + ("" if self._port == (443 if secure else 80) else f":{self._port}")

    def _bracketed(self) -> str:
        return f"[{self._host}]" if ":" in self._host else self._host


def _what(apis: list[Api], base: str) -> str:
    if "tgi" in apis:
        return "a TGI router"
    if apis:
        return "a server of the OpenAI forms (such as vLLM or SGLang)"
    return f"an HTTP server that knows none of our paths{f' under {base}' if base else ''}"
