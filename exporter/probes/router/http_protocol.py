"""The HTTP routers: TGI's `/generate_stream`, and the OpenAI API of TGI, vLLM, SGLang and others.

Each request has a connection of its own, which is kept alive. `http_apis` has the requests and the events.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.analysis import statuses
from exporter.config import notation
from exporter.config.secrets import Secret, Secrets, secret_values
from exporter.config.target import Api, Target, Tls
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.plan.targets import Facts
from exporter.probes.router import http_apis, server_errors
from exporter.probes.router.hints import hinted
from exporter.probes.router.protocol import Ask, Ending, MetricsPage, PageReader, RouterProtocol
from exporter.probes.router.token_counts import AnswerTokens
from exporter.wire.credentials import TlsContext, bearer_token
from exporter.wire.http_codec import End, Http1, HttpCodec, HttpRequest
from exporter.wire.message_framing import AnswerSize, Event, ServerSentEvents, malformed
from exporter.wire.sockets import Endpoint, endpoint_of

# Bytes of an error page.
LONGEST_ERROR = 65536
# The stream options to ask for, and what to ask for instead where a server refuses them.
USAGE_OPTIONS = (http_apis.USAGE_IN_EACH_CHUNK, http_apis.USAGE, None)
USAGE_NAMES = ("stream_options", *http_apis.USAGE_IN_EACH_CHUNK)
# How servers refuse a field that they do not know.
UNNAMED = ("BAD_REQUEST", "UNPROCESSABLE_ENTITY")
# What to do where a server refuses `priority`.
PRIORITY = "start the server with priority scheduling (vLLM: --scheduling-policy priority), or remove priority"
# The next request may succeed.
TEMPORARY = (Outcome.TIMEOUT, Outcome.OVERLOADED, Outcome.UNREACHABLE)


class HttpProtocol(RouterProtocol):
    """See `RouterProtocol`."""

    tokenizes = False

    def __init__(self, target: Target) -> None:
        self._target = target
        self._url = notation.split_url(target.address)
        self._base = self._url.path.rstrip("/")
        secure = self._url.scheme == "https"
        self._tls = TlsContext(target.address, target.tls or Tls(), "http/1.1") if secure else None
        self._plain = endpoint_of(target.address)
        self.truncates = target.api == "tgi"
        self._model = target.model or ""
        self._facts: Facts | None = None
        self._advice = ""
        self._token: str | None = None
        self._secret = Secrets(*secret_values(target.headers))
        self._extra = target.extra_body | ({} if target.priority is None else {"priority": target.priority})
        self._has_answered = False
        self.forget()

    def forget(self) -> None:
        # Which of USAGE_OPTIONS is asked for, and whether that was ever answered.
        self._usage = 0
        self._accepted = False
        # The refusal after which an option was left out, although it did not name one; the same refusal without it.
        self._guessed: Ending | None = None
        self._unrelated: Ending | None = None

    def endpoint(self) -> Endpoint:
        return self._plain if self._tls is None else self._tls.applied_to(self._plain)

    def codec(self, endpoint: Endpoint) -> HttpCodec:
        return Http1(endpoint.authority)

    def warming(self) -> HttpRequest | None:
        return self._get(http_apis.FACTS_PATHS[self._target.api])

    def facts(self, ask: Ask) -> Facts:
        """The page is optional where the configuration names a model: where it fails, its last facts still hold."""
        self._token = bearer_token(self._target.address, self._target.bearer_token_env, self._target.bearer_token_file)
        self._secret = Secrets(self._token or "", *secret_values(self._target.headers))
        try:
            body = ask(self._get(http_apis.FACTS_PATHS[self._target.api]))
        except Failure as failure:
            if (failure.outcome, failure.code) == (Outcome.UNREACHABLE, "UNAVAILABLE"):
                raise hinted(failure, "http", self._tls is not None, self._has_answered) from None
            self._has_answered = True
            self._advise(failure.detail + (self._doubled_path() if failure.code == "NOT_FOUND" else ""))
            if self._advice and failure.outcome in TEMPORARY:
                raise Failure(failure.outcome, failure.code, self._advice) from None
            silent = failure.outcome in (Outcome.TIMEOUT, Outcome.UNREACHABLE)
            return replace(self._known(), page="silent" if silent else "refused", advice=self._advice)
        self._has_answered = True
        document = _document(body)
        read = bool(document) and "error" not in document
        if read:
            self._model = self._target.model or http_apis.served_model(self._target.api, document) or self._model
            self._facts = http_apis.facts(self._target.api, document, self._target.model or "")
        path = self._base + http_apis.FACTS_PATHS[self._target.api]
        self._advise(f"{path} answers {server_errors.shortened(_legible(body, self._secret)) or 'nothing'}")
        return replace(self._known(), page="read" if read else "refused", advice=self._advice)

    def _known(self) -> Facts:
        return self._facts or http_apis.facts(self._target.api, {}, self._target.model or "")

    def _advise(self, problem: str) -> None:
        """Say what to do where a request needs a model's name and there is none."""
        self._advice = f"{problem}; it names no model: set model: to the one to ask for" if self.needs_facts() else ""

    def needs_facts(self) -> bool:
        return self._target.api != "tgi" and not self._model

    def count_prompt(self, ask: Ask, text: str, workload: Workload) -> int | None:
        api = self._target.api
        if api == "tgi":
            return None
        body = http_apis.request_body(api, text, workload, self._model, self._extra, None)
        try:
            answer = ask(self._post(http_apis.PATHS[api], http_apis.counting_body(body), "application/json"))
        except Failure as failure:
            if failure.outcome in TEMPORARY:
                raise
            return None
        return http_apis.counted_prompt(_document(answer))

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        api, extra = self._target.api, self._extra
        usage = http_apis.USAGE if "stream_options" in extra else USAGE_OPTIONS[self._usage]
        body = http_apis.request_body(api, prompt, workload, self._model, extra, seed, usage)
        return self._post(http_apis.PATHS[api], body, "text/event-stream")

    def _get(self, path: str) -> HttpRequest:
        return HttpRequest("GET", self._base + path, self._headers())

    def _post(self, path: str, body: bytes, accept: str) -> HttpRequest:
        headers = (("content-type", "application/json"), ("accept", accept))
        return HttpRequest("POST", self._base + path, (*self._headers(), *headers), body)

    def _headers(self) -> tuple[tuple[str, str], ...]:
        headers = (("user-agent", "tgi-probe"), ("accept-encoding", "identity"), *self._target.headers.items())
        return headers if self._token is None else (*headers, ("authorization", f"Bearer {self._token}"))

    def token_reader(self, workload: Workload) -> "EventStreamReader":
        most = http_apis.most_tokens(self._target.api, workload, self._target.extra_body)
        return EventStreamReader(self._target.api, self._secret, most)

    def drop_option(self, endings: Sequence[Ending]) -> bool:
        self._accepted |= any(outcome is Outcome.OK for outcome, _, _ in endings)
        tried, self._guessed = self._guessed, None
        rejected = [ending for ending in endings if ending[0] is Outcome.REJECTED]
        if self._target.api != "tgi" and "stream_options" not in self._target.extra_body:
            if any(name in detail for _, _, detail in rejected for name in USAGE_NAMES):
                return self._leave_out(tried)
            # Not all servers name the field that they refuse. So leaving it out is tried before any answer.
            guess = next((one for one in rejected if one[1] in UNNAMED and one != self._unrelated), None)
            if guess and self._usage == 0 and not self._accepted:
                return self._leave_out(guess)
        if tried and not self._accepted:  # it was not the option
            self._usage = 0
            self._unrelated = tried if tried in rejected else None
        return False

    def _leave_out(self, guessed: Ending | None) -> bool:
        """Leave one more option out, if there is one. `guessed`: the refusal, where it did not name the option."""
        if self._usage + 1 == len(USAGE_OPTIONS):
            return False
        self._usage += 1
        self._guessed = guessed
        return True

    def body_reader(self) -> PageReader:
        secret = self._secret
        return PageReader(lambda status, body, headers: _refused(status, body, headers, secret))

    def without_secrets(self, failure: Failure) -> Failure:
        return Failure(failure.outcome, failure.code, self._secret.hidden_cut(failure.detail))

    def explained(self, failure: Failure) -> Failure:
        detail = failure.detail
        if statuses.is_http_error(failure.code):
            detail = f"{detail}; asked for POST {self._base}{http_apis.PATHS[self._target.api]}"
        if failure.code in ("UNAUTHORIZED", "FORBIDDEN"):
            detail = f"{detail}; {self._token_source()}"
        elif failure.code in ("NOT_FOUND", "METHOD_NOT_ALLOWED"):
            detail += self._doubled_path()
        if self._target.priority is not None and "priority" in detail.lower():
            detail = f"{detail}; {PRIORITY}"
        if failure.outcome is Outcome.REJECTED and self._advice:
            detail = f"{detail}; {self._advice}"
        failure = Failure(failure.outcome, failure.code, detail)
        return failure if self._facts else hinted(failure, "http", self._tls is not None, has_answered=True)

    def _doubled_path(self) -> str:
        """The commonest mistake: an address that ends with the path that an api adds itself."""
        found = re.search(r"/(v1|generate|generate_stream|info)(/|$)", self._base)
        return f"; remove {self._base[found.start() :]} from the address" if found else ""

    def _token_source(self) -> str:
        for key in ("bearer_token_env", "bearer_token_file"):
            if (source := getattr(self._target, key)) is not None:
                return f"the token is that of {key}: {source}"
        return "no token was sent: set bearer_token_env or bearer_token_file if the server wants one"

    def metrics_page(self) -> MetricsPage | None:
        url = self._target.metrics_url or f"{self._url.scheme}://{self._url.netloc}{self._base}/metrics"
        parts = notation.split_url(url, "metrics_url")
        # The token is for this server alone.
        ours = (parts.scheme, parts.netloc) == (self._url.scheme, self._url.netloc)
        return MetricsPage.of(url, self._target.tls, self._headers()) if ours else MetricsPage.of(url)


class EventStreamReader:
    """Reads the answer to a request for a stream. It parses the events after the end.

    `secret`: what the request was sent with. It is hidden before a text is cut, or a part of it would remain.
    `most`: how many tokens the answer can have.
    """

    def __init__(self, api: Api, secret: Secret | Secrets, most: int | None = None) -> None:
        self._api = api
        self._secret = secret
        self._most = most
        self._split = ServerSentEvents()
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._content_type = ""
        self._streams = False
        self._error = b""
        self._size = AnswerSize(most)
        self.events: list[tuple[float, str]] = []
        self.complete = False

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._headers = headers
        content_type = self._secret.hidden(headers.get("content-type", ""))
        self._content_type = server_errors.shortened(content_type).partition(";")[0].strip().lower()
        self._streams = status < 300 and self._content_type == "text/event-stream"
        encoding = headers.get("content-encoding", "identity")
        if status < 300 and encoding.lower() not in ("", "identity"):
            shown = server_errors.shortened(self._secret.hidden(encoding))
            raise malformed(f"an answer in {shown} encoding, though we accept none")

    def body(self, at: float, data: bytes) -> None:
        if not self._streams:
            self._error += data[: LONGEST_ERROR + 1 - len(self._error)]
            if len(self._error) > LONGEST_ERROR:  # it may go on for ever
                self.end(at, End())
        elif not self.complete:  # what a server sends after the end is no part of the answer
            self._add(at, self._split.feed(data))

    def _add(self, at: float, events: Sequence[Event]) -> None:
        for text, kind in events:
            if kind == "error":
                raise server_errors.event_of_error(self._secret.hidden(text))
            self._size.add(text)
            self.events.append((at, text))
            if http_apis.may_be_error(text):
                http_apis.parsed(self._secret.hidden(text))
            if http_apis.ends(self._api, text):
                self.complete = True
                return

    def end(self, at: float, end: End) -> None:
        if self._streams:
            if not self.complete:
                self._add(at, self._split.rest())
            if self._split.stray and not self.complete:
                failure = self._no_stream("lines of JSON", bytes(self._split.stray))
                if failure.outcome is not Outcome.MALFORMED or not self.events:
                    raise failure
        elif self._status >= 300:
            raise _refused(self._status, self._error, self._headers, self._secret)
        else:
            raise self._no_stream(self._content_type or "no content type", self._error)

    def _no_stream(self, what: str, body: bytes) -> Failure:
        """The Failure of a success status without an event stream. Its body may say that it is an error."""
        text = _legible(body, self._secret)
        document = server_errors.loaded(text)
        failure = server_errors.error_in(document) if isinstance(document, dict) else None
        return failure or malformed(f"{what} instead of an event stream: {server_errors.shortened(text)}")

    def tokens(self) -> AnswerTokens:
        try:
            return http_apis.read(self._api, self.events, self._most)
        except Failure:  # again without the secret: to search every good answer for it would cost more
            events = [(at, self._secret.hidden(event)) for at, event in self.events]
            return http_apis.read(self._api, events, self._most)

    def tokens_so_far(self) -> int:
        try:
            return http_apis.read(self._api, [*self.events, (0.0, http_apis.DONE)]).arrivals[-1][1]
        except (Failure, IndexError):
            return 0


def _document(body: bytes) -> Mapping[str, Any]:
    """The JSON object of an answer, or its bare list of models; empty where it is neither."""
    document = server_errors.loaded(body.decode("utf-8", "replace"))
    if isinstance(document, list):
        return {"data": document}
    return document if isinstance(document, dict) else {}


def _refused(status: int, body: bytes, headers: Mapping[str, str], secret: Secret | Secrets) -> Failure:
    shown = {name: secret.hidden(headers[name]) for name in ("location", "retry-after") if name in headers}
    return server_errors.refused(status, _legible(body, secret).encode(), shown)


def _legible(body: bytes, secret: Secret | Secrets) -> str:
    """The beginning of an error page, without the secret."""
    text = secret.hidden(body[:LONGEST_ERROR].decode("utf-8", "replace"))
    return text[: -secret.longest] if len(body) > LONGEST_ERROR and secret.longest else text
