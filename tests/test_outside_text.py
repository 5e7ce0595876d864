"""Whatever text a server sends, every page can be written: one server's name never costs another its numbers."""

import json
import logging

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.config.settings import Settings
from exporter.daemon.journal import Json, Text
from exporter.daemon.ledger import Recorder
from exporter.metrics import pages
from exporter.metrics.catalogue import layout
from exporter.metrics.collector import Registry
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4
from exporter.metrics.record import Metrics
from exporter.observation import LONGEST_DETAIL, LONGEST_FACT, Failure, Observation, Outcome, Series, legible
from exporter.plan.targets import Facts, plans
from exporter.probes.router import http_apis
from exporter.probes.router.grpc_calls import UnaryReader
from exporter.probes.router.server_errors import refused
from exporter.web import routes
from exporter.web.messages import ReceivedRequest
from exporter.web.routes import Views
from exporter.web.status_page import page
from exporter.wire.http_codec import End

SETTINGS = Settings.model_validate(
    {
        "targets": [{"name": name, "kind": "http", "address": "http://h:1"} for name in ("strange", "good")],
        "workloads": [{"name": "w", "batch_sizes": [1]}],
    }
)
# Also half surrogate pairs, which JSON can write and UTF-8 cannot.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
NASTY = ("x\ud83dy", "\udcff", "a\0b", "\u202egnp.exe", "a\u200bb\ufeff", 'q"\\\n', "\r\n\x85\u2028", "y" * 5_000_000)


def said(text: str) -> list[Failure]:
    """The text wherever a server can put one into an error."""
    found = []
    for attempt in (
        lambda: http_apis.parsed(json.dumps({"error": {"message": text, "type": text, "code": text}})),
        lambda: http_apis.parsed(json.dumps({"error": text, "error_type": text})),
        lambda: http_apis.parsed(json.dumps(text)),
        lambda: UnaryReader().end(0.0, End({"grpc-status": "13", "grpc-message": text})),
    ):
        with pytest.raises(Failure) as caught:
            attempt()
        found.append(caught.value)
    found.append(refused(500, text.encode(errors="surrogatepass")))
    return found


def facts(text: str) -> list[Facts]:
    info = {"model_id": text, "model_dtype": text, "model_device_type": text}
    return [
        http_apis.facts("tgi", json.loads(json.dumps(info)), ""),
        http_apis.facts("chat", json.loads(json.dumps({"data": [{"id": text}]})), ""),
        Facts("generate.v3", 1, dtype=text, device=text, attention=text),
    ]


def written(text: str) -> None:
    """Have a server say it everywhere; each page and each line of the log is what it should be."""
    metrics = Metrics(layout(SETTINGS))
    metrics.configure(SETTINGS)
    for plan in plans(SETTINGS).values():
        metrics.announce(plan)
    recorder = Recorder(metrics, SETTINGS)
    recorder.up("good", Facts("http/chat", 1))
    for known in facts(text):
        recorder.up("strange", known)
        for form, parse in ((PLAIN_0_0_4, parse_text), (OPENMETRICS, parse_openmetrics)):
            whole = b"".join(pages.page(metrics.registry, form)).decode()
            assert len(whole) < 1_000_000
            samples = [sample for family in parse(whole) for sample in family.samples]
            assert sum(sample.name == "tgi_probe_target_up" for sample in samples) == 2
        check_status(recorder)
    for failure in said(text):
        assert len(failure.detail) <= LONGEST_DETAIL
        recorder.record(Observation(Series("strange", "w", 1), 0, 0, 1, failure.outcome, failure.code, failure.detail))
        check_status(recorder)


def check_status(recorder: Recorder) -> None:
    html = page(recorder.scoreboard.status(SETTINGS, None, "1", False))
    assert "good" in html.encode().decode()


@pytest.mark.parametrize("text", NASTY)
def test_what_a_server_says_leaves_every_page_whole(text: str) -> None:
    written(text)


@given(ANY_TEXT)
@settings(max_examples=30)
def test_whatever_a_server_says_leaves_every_page_whole(text: str) -> None:
    written(text)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 10_000])
def test_json_that_is_nested_or_long_without_end_is_malformed_and_no_error_of_ours(text: str) -> None:
    with pytest.raises(Failure) as caught:
        http_apis.parsed(text)
    assert caught.value.outcome is Outcome.MALFORMED
    assert refused(500, text.encode()).code == "INTERNAL_SERVER_ERROR"


@pytest.mark.parametrize("formatter", [Json(), Text()])
@given(text=ANY_TEXT)
def test_every_line_of_the_log_can_be_written(formatter: logging.Formatter, text: str) -> None:
    failure = Failure(Outcome.REJECTED, "INTERNAL", text)
    line = formatter.format(logging.LogRecord("tgi_probe", logging.WARNING, "", 0, "%s", (failure.detail,), None))
    assert len(line.encode().decode().splitlines()) == 1
    if isinstance(formatter, Json):
        assert json.loads(line)["message"] == failure.detail


@pytest.mark.parametrize("path", ["/", "/config", "/probe", "/-/ready", "/-/reload"])
def test_a_character_that_cannot_be_written_costs_no_page(path: str) -> None:
    """Whatever else may have let it in."""
    text = "half \ud83d"

    async def reload() -> list[str]:
        return [text]

    async def probe(*_: str) -> tuple[str, str]:
        return "200 OK", text

    views = Views(
        registry=Registry,
        healthy=lambda: text,
        ready=lambda: text,
        reload=reload,
        configuration=lambda: text,
        status=lambda: text,
        probe=probe,
    )
    method = "POST" if path == "/-/reload" else "GET"
    request = ReceivedRequest(method, path, "target=t&workload=w&batch_size=1")
    answer = anyio.run(routes.answer, request, views, anyio.CapacityLimiter(1))
    assert isinstance(answer.body, bytes)
    assert answer.body.decode().strip() == "half ?"


def test_a_label_that_cannot_be_written_costs_no_metrics_page() -> None:
    registry = Registry()
    family = registry.probes.gauge("a", "help", ("label",))
    family.labels("half \ud83d").set(1)
    family.labels("whole").set(1)
    assert b'a{label="half ?"} 1.0\na{label="whole"} 1.0\n' in b"".join(pages.page(registry, PLAIN_0_0_4))


@given(ANY_TEXT)
def test_text_is_made_legible_once(text: str) -> None:
    once = legible(text, LONGEST_FACT)
    assert once.isprintable()
    assert len(once) <= LONGEST_FACT
    assert legible(once, LONGEST_FACT) == once
    once.encode()
