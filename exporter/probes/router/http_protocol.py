"""The HTTP routers: TGI's `/generate_stream`, and the OpenAI forms that it shares with vLLM, SGLang and others.

Each request has a connection of its own, kept alive; h11 parses what was read. What to say and how to read it is in
`dialects`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporter.analysis import statuses
from exporter.config import notation
from exporter.config.secrets import Secret
from exporter.config.target import Api, Target, Tls
from exporter.config.workload import Workload
from exporter.observation import Failure, Outcome
from exporter.plan.targets import Facts
from exporter.probes.router import http_apis, server_errors
from exporter.probes.router.fmaas_protocol import metrics_place
from exporter.probes.router.hints import hinted
from exporter.probes.router.protocol import Ask, Ended, MetricsPage, PageReader, Told
from exporter.wire.addresses import Addresses
from exporter.wire.credentials import TlsContext, bearer_token
from exporter.wire.http_codec import End, Http1, HttpCodec, HttpRequest
from exporter.wire.message_framing import Event, FramingError, ServerSentEvents, steps
from exporter.wire.sockets import Endpoint

# Of an error page that is no answer for us.
LONGEST_ERROR = 65536
# Characters. No real answer comes near; a server that never ends one would fill the memory.
LONGEST_ANSWER = 256 * 1024 * 1024
# The stream options that are asked for, and what is asked instead where a server refuses them.
USAGE_OPTIONS = (http_apis.USAGE_IN_EACH_CHUNK, http_apis.USAGE, None)
# How servers refuse a field that they do not know.
UNNAMED = ("BAD_REQUEST", "UNPROCESSABLE_ENTITY")
USAGE_NAMES = ("stream_options", *http_apis.USAGE_IN_EACH_CHUNK)


# Trouble that may be over the next time.
PASSING = (Outcome.TIMEOUT, Outcome.OVERLOADED, Outcome.UNREACHABLE)


class HttpProtocol:
    """See `RouterProtocol`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._url = notation.split_url(target.address)
        self._base = self._url.path.rstrip("/")
        secure = self._url.scheme == "https"
        self._tls = TlsContext(target.address, target.tls or Tls(), "http/1.1") if secure else None
        self._addresses = Addresses(self._url.hostname or "", self._url.port or (443 if secure else 80))
        self.truncates = target.api == "tgi"
        self._model = target.model or ""
        self._facts: Facts | None = None
        self._advice = ""
        self._token: str | None = None
        self._secret = Secret("")
        self._met = False
        # Which of USAGE_OPTIONS is asked for, and whether that was ever answered. What was said when one was left out
        # without being named, and what was said again without it.
        self._usage = 0
        self._accepted = False
        self._guessed: Ended | None = None
        self._unrelated: Ended | None = None

    def endpoint(self) -> Endpoint:
        context = self._tls.context() if self._tls else None
        name = self._target.tls.server_name or "" if self._target.tls else ""
        known = self._addresses
        return Endpoint(known.host, known.port, tls=context, server_name=name, addresses=known)

    def codec(self, endpoint: Endpoint) -> HttpCodec:
        return Http1(endpoint.authority)

    def warming(self) -> HttpRequest | None:
        return self._get(http_apis.FACTS_PATHS[self._target.api])

    def facts(self, ask: Ask) -> Facts:
        """What the page of facts says is optional, but for the name of a model that the configuration leaves out:
        however it fails, the probes will tell. Then what it said last holds.
        """
        self._token = bearer_token(self._target.address, self._target.bearer_token_env, self._target.bearer_token_file)
        self._secret = Secret(self._token or "")
        try:
            body = ask(self._get(http_apis.FACTS_PATHS[self._target.api]))
        except Failure as failure:
            if (failure.outcome, failure.code) == (Outcome.UNREACHABLE, "UNAVAILABLE"):
                raise hinted(failure, "http", self._tls is not None, self._met) from None
            self._met = True
            self._advise(failure.detail + (self._of_the_path() if failure.code == "NOT_FOUND" else ""))
            if self._advice and failure.outcome in PASSING:
                raise Failure(failure.outcome, failure.code, self._advice) from None
            silent = failure.outcome in (Outcome.TIMEOUT, Outcome.UNREACHABLE)
            return replace(self._known(), page="silent" if silent else "refused", advice=self._advice)
        self._met = True
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

    def _advise(self, said: str) -> None:
        """Where a model has to be named and nobody does."""
        self._advice = f"{said}; it names no model: set model: to the one to ask for" if self.needs_facts() else ""

    def needs_facts(self) -> bool:
        return self._target.api != "tgi" and not self._model

    def tokenize(self, ask: Ask, text: str) -> int | None:
        return None

    def count(self, ask: Ask, text: str, workload: Workload) -> int | None:
        api = self._target.api
        if api == "tgi":
            return None
        body = http_apis.request_body(api, text, workload, self._model, self._target.extra_body, None)
        try:
            answer = ask(self._post(http_apis.PATHS[api], http_apis.counting_body(body), "application/json"))
        except Failure as failure:
            if failure.outcome in PASSING:
                raise
            return None
        return http_apis.counted_prompt(_document(answer))

    def request(self, prompt: str, workload: Workload, seed: int) -> HttpRequest:
        api = self._target.api
        extra = self._target.extra_body
        usage = http_apis.USAGE if "stream_options" in extra else USAGE_OPTIONS[self._usage]
        body = http_apis.request_body(api, prompt, workload, self._model, extra, seed, usage)
        return self._post(http_apis.PATHS[api], body, "text/event-stream")

    def _post(self, path: str, body: bytes, accept: str) -> HttpRequest:
        headers = (("content-type", "application/json"), ("accept", accept))
        return HttpRequest("POST", self._base + path, (*self._headers(), *headers), body)

    def answer(self, workload: Workload) -> "EventStreamReader":
        most = http_apis.most_tokens(self._target.api, workload, self._target.extra_body)
        return EventStreamReader(self._target.api, self._secret, most)

    def asks_less(self, ends: Sequence[Ended]) -> bool:
        self._accepted |= any(outcome is Outcome.OK for outcome, _, _ in ends)
        tried, self._guessed = self._guessed, None
        rejected = [end for end in ends if end[0] is Outcome.REJECTED]
        if self._target.api != "tgi" and "stream_options" not in self._target.extra_body:
            if any(name in detail for _, _, detail in rejected for name in USAGE_NAMES):
                return self._leave_out(tried)
            # Servers that forbid unknown fields do not all name them. That is tried before any answer.
            guess = next((end for end in rejected if end[1] in UNNAMED and end != self._unrelated), None)
            if guess and self._usage == 0 and not self._accepted:
                return self._leave_out(guess)
        if tried and not self._accepted:  # it was not the option
            self._usage = 0
            self._unrelated = tried if tried in rejected else None
        return False

    def _leave_out(self, guessed: Ended | None) -> bool:
        """One option more, if there is one. `guessed`: why, where the server did not name the option."""
        if self._usage + 1 == len(USAGE_OPTIONS):
            return False
        self._usage += 1
        self._guessed = guessed
        return True

    def forget(self) -> None:
        self._usage = 0
        self._accepted = False
        self._guessed = self._unrelated = None

    def whole(self) -> PageReader:
        secret = self._secret
        return PageReader(lambda status, body, headers: _refused(status, body, headers, secret))

    def discreet(self, failure: Failure) -> Failure:
        return Failure(failure.outcome, failure.code, self._secret.hidden_cut(failure.detail))

    def explained(self, failure: Failure) -> Failure:
        said = failure.detail
        if statuses.is_http_error(failure.code):
            said = f"{said}; asked for POST {self._base}{http_apis.PATHS[self._target.api]}"
        if failure.code in ("UNAUTHORIZED", "FORBIDDEN"):
            said = f"{said}; {self._token_source()}"
        elif failure.code in ("NOT_FOUND", "METHOD_NOT_ALLOWED"):
            said += self._of_the_path()
        if failure.outcome is Outcome.REJECTED and self._advice:
            said = f"{said}; {self._advice}"
        failure = Failure(failure.outcome, failure.code, said)
        return failure if self._facts else hinted(failure, "http", self._tls is not None, met=True)

    def _of_the_path(self) -> str:
        """The commonest slip: an address with the path that an api adds itself."""
        found = re.search(r"/(v1|generate|generate_stream|info)(/|$)", self._base)
        return f"; remove {self._base[found.start() :]} from the address" if found else ""

    def _token_source(self) -> str:
        target = self._target
        if target.bearer_token_env is not None:
            return f"the token is that of bearer_token_env: {target.bearer_token_env}"
        if target.bearer_token_file is not None:
            return f"the token is that of bearer_token_file: {target.bearer_token_file}"
        return "no token was sent: set bearer_token_env or bearer_token_file if the server wants one"

    def metrics(self) -> MetricsPage | None:
        url = self._target.metrics_url or f"{self._url.scheme}://{self._url.netloc}{self._base}/metrics"
        parts = notation.split_url(url, "metrics_url")
        # The token is for this server alone.
        ours = (parts.scheme, parts.netloc) == (self._url.scheme, self._url.netloc)
        return metrics_place(url, self._target.tls if ours else Tls(), self._headers() if ours else ())

    def _get(self, path: str) -> HttpRequest:
        return HttpRequest("GET", self._base + path, self._headers())

    def _headers(self) -> tuple[tuple[str, str], ...]:
        said = (("user-agent", "tgi-probe"), ("accept-encoding", "identity"))
        return said if self._token is None else (*said, ("authorization", f"Bearer {self._token}"))


class EventStreamReader:
    """The answer to a request for a stream. Events are kept as text and understood after the end.

    The `secret` is what the request was sent with: it leaves every text before that is cut to its length, or a part of
    it would stay. `most`: how many tokens the answer can have.
    """

    def __init__(self, api: Api, secret: Secret, most: int | None = None) -> None:
        self._api = api
        self._secret = secret
        self._most = most
        self._split = ServerSentEvents()
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._kind = ""
        self._streams = False
        self._error = b""
        self._size = 0
        self.events: list[tuple[float, str]] = []
        self.complete = False

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._headers = headers
        kind = self._secret.hidden(headers.get("content-type", ""))
        self._kind = server_errors.shortened(kind).partition(";")[0].strip().lower()
        self._streams = status < 300 and self._kind == "text/event-stream"
        encoding = headers.get("content-encoding", "identity")
        if status < 300 and encoding.lower() not in ("", "identity"):
            said = server_errors.shortened(self._secret.hidden(encoding))
            raise server_errors.malformed(f"an answer in {said} encoding, though we accept none")

    def body(self, at: float, data: bytes) -> None:
        if not self._streams:
            self._error += data[: LONGEST_ERROR + 1 - len(self._error)]
            return
        self._take(at, lambda: self._split.feed(data))

    def _take(self, at: float, split: Callable[[], list[Event]]) -> None:
        if self.complete:  # what a server sends after the end is not ours
            return
        try:
            for text, kind in split():
                if kind == "error":
                    raise server_errors.event_of_error(self._secret.hidden(text))
                self._size += len(text)
                if self._size > LONGEST_ANSWER:
                    raise server_errors.malformed("an answer without end")
                self.events.append((at, text))
                if http_apis.may_be_error(text):
                    http_apis.parsed(self._secret.hidden(text))
                if http_apis.ends(self._api, text):
                    self.complete = True
                    return
        except FramingError as error:
            raise server_errors.malformed(str(error)) from None

    def end(self, at: float, end: End) -> None:
        if self._streams:
            self._take(at, self._split.rest)
            if self._split.stray and not self.complete:
                failure = self._no_stream("lines of JSON", bytes(self._split.stray))
                if failure.outcome is not Outcome.MALFORMED or not self.events:
                    raise failure
        elif self._status >= 300:
            raise _refused(self._status, self._error, self._headers, self._secret)
        else:
            raise self._no_stream(self._kind or "no content type", self._error)

    def _no_stream(self, what: str, body: bytes) -> Failure:
        """What a success means that is no event stream: perhaps it says of itself that it is an error."""
        said = _legible(body, self._secret)
        document = server_errors.loaded(said)
        failure = server_errors.error_in(document) if isinstance(document, dict) else None
        return failure or server_errors.malformed(f"{what} instead of an event stream: {server_errors.shortened(said)}")

    def told(self, sent: float) -> Told:
        try:
            reading = http_apis.read(self._api, self.events, self._most)
        except Failure:  # once more, for what it says: a search through every good answer would cost more
            events = [(at, self._secret.hidden(event)) for at, event in self.events]
            reading = http_apis.read(self._api, events, self._most)
        found = steps(sent, reading.arrivals)
        if not found:
            raise server_errors.malformed("an answer without a token")
        return Told(found, reading.prompt_tokens, reading.estimated)

    def so_far(self) -> int:
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


def _refused(status: int, body: bytes, headers: Mapping[str, str], secret: Secret) -> Failure:
    told = {name: secret.hidden(headers[name]) for name in ("location", "retry-after") if name in headers}
    return server_errors.refused(status, _legible(body, secret).encode(), told)


def _legible(body: bytes, secret: Secret) -> str:
    """The beginning of an answer that is no answer for us, without the secret."""
    text = secret.hidden(body[:LONGEST_ERROR].decode("utf-8", "replace"))
    return text[: -secret.longest] if len(body) > LONGEST_ERROR and secret.longest else text
