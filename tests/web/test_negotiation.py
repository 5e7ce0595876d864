"""Which form of /metrics a client gets: what it wants most, the first of equals, never what it excludes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.metrics.collector import Registry
from exporter.metrics.formats import OPENMETRICS, PLAIN_0_0_4, PLAIN_1_0_0, PROTOBUF, Format
from exporter.web.messages import ReceivedRequest
from exporter.web.negotiation import choices, choose_format, compressed
from exporter.web.routes import Views, respond

# As Prometheus 2.42 and 3.x send them, without and with native histograms.
PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_2_42_NATIVE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_NATIVE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
) + PROMETHEUS_3
# With scrape_protocols: [PrometheusText1.0.0, PrometheusText0.0.4, OpenMetricsText1.0.0]
TEXT_FIRST = (
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,"
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.3"
)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (PROMETHEUS_2_42, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        (PROMETHEUS_2_42_NATIVE, PROTOBUF),
        (PROMETHEUS_3_NATIVE, PROTOBUF),
        (PROMETHEUS_3_NATIVE.replace("q=0.7", "q=0.1"), OPENMETRICS),
        (PROMETHEUS_3_NATIVE.replace("q=0.7", "q=0"), OPENMETRICS),
        (PROTOBUF.content_type.upper(), PROTOBUF),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", PLAIN_0_0_4),
        ("application/vnd.google.protobuf;proto=another.Message;encoding=delimited", PLAIN_0_0_4),
        ("application/vnd.google.protobuf", PLAIN_0_0_4),
        (TEXT_FIRST, PLAIN_1_0_0),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4", PLAIN_0_0_4),
        ("application/openmetrics-text;version=2.0.0,text/plain;version=0.0.4;q=0.1", PLAIN_0_0_4),
        ("text/plain;version=1.0.0;escaping=values", PLAIN_1_0_0),
        ("text/plain; version=0.0.4", PLAIN_0_0_4),
        ("text/plain", PLAIN_0_0_4),
        ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.3", PLAIN_0_0_4),
        ("application/openmetrics-text;version=1.0.0;q=0.1,text/plain;version=0.0.4;q=0.9", PLAIN_0_0_4),
        ("text/plain;q=0.4,application/openmetrics-text;q=0.40001", OPENMETRICS),
        ("text/plain, application/openmetrics-text", PLAIN_0_0_4),
        ("application/openmetrics-text, text/plain", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"; charset="utf-8, \\"or\\" not"', OPENMETRICS),
        ('TEXT/PLAIN ; VERSION = "1.0.0" ; Q=0.3 , */* ; q = 0.2', PLAIN_1_0_0),
        ("text/plain;version=0.0.4, application/openmetrics-text;version=1.0.0;q=0", PLAIN_0_0_4),
        ("*/*, text/plain;q=0", OPENMETRICS),
        ("text/plain;q=0", OPENMETRICS),
        ("application/openmetrics-text;q=0", PLAIN_0_0_4),
        ("text/plain;version=0.0.4;q=0, text/plain", PLAIN_1_0_0),
        ("*/*;q=0, application/openmetrics-text;q=0.001", OPENMETRICS),
        ("*/*;q=0, text/*", PLAIN_0_0_4),
        ("application/*", OPENMETRICS),
        ("text/*;q=0.5, application/*;q=0.6", OPENMETRICS),
        ("*/*", PLAIN_0_0_4),
        ("*", PLAIN_0_0_4),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PLAIN_0_0_4),
        ("text/plain;version=banana", PLAIN_0_0_4),
        ("application/json", PLAIN_0_0_4),
        ("application/openmetrics-text;q=much, text/plain;q=0.9", OPENMETRICS),
        ("", PLAIN_0_0_4),
        (" , ;q=1, ;", PLAIN_0_0_4),
        ("*/*;q=0", None),
        ("text/*;q=0, application/*;q=0.000", None),
    ],
)
def test_the_format_is_the_one_that_is_wanted_most(accept: str, form: Format | None) -> None:
    assert choose_format(accept) is form


@pytest.mark.parametrize(
    ("header", "packed"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5, br", True),
        ("GZip", True),
        ("x-gzip", True),
        ("gzip, identity", True),
        ("gzip, *;q=0", True),
        ("identity;q=0", True),
        ("*, identity;q=0", True),
        ("identity, gzip;q=0.9", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("gzip ; Q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0, identity", False),
        ("br", False),
        ("*", False),
        ("", False),
        ("*;q=0", None),
        ("identity;q=0, gzip;q=0", None),
    ],
)
def test_a_page_is_compressed_only_where_that_is_asked_for(header: str, packed: bool | None) -> None:
    assert compressed(header) is packed


@pytest.mark.parametrize("headers", [{"accept": "*/*;q=0"}, {"accept-encoding": "*;q=0"}])
def test_a_client_that_excludes_everything_is_told_what_there_is(headers: dict[str, str]) -> None:
    views = Views(Registry, lambda: None, lambda: None, None, str)
    answer = respond(ReceivedRequest("GET", "/metrics", headers=headers), views)
    assert answer.status == "406 Not Acceptable"
    assert isinstance(answer.body, bytes)
    assert b"application/openmetrics-text" in answer.body


@pytest.mark.parametrize("begins", ["", "a", 'a;q="', ",", ";"])
@pytest.mark.parametrize("goes_on", ['"', '\\"', '"\\"', ',"', ';"', 'a="\\",', "\\", ";", ","])
def test_a_long_header_is_read_in_linear_time(begins: str, goes_on: str) -> None:
    header = begins + goes_on * 30_000
    before = time.process_time()
    choices(header)
    assert time.process_time() - before < 10.0


def test_a_quote_that_is_not_closed_goes_to_the_end() -> None:
    assert [choice.name for choice in choices('text/plain;a="b, text/html')] == ["text/plain"]
    assert choices('text/plain;a="b;q=0')[0].quality == 1.0


@given(st.text(max_size=60) | st.text('";,=q/*0.1\\ a', max_size=60))
def test_any_header_is_read_and_every_quality_is_between_0_and_1(header: str) -> None:
    assert all(0 <= choice.quality <= 1 for choice in choices(header))
    choose_format(header)
    compressed(header)
