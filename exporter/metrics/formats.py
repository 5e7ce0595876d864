"""The formats in which /metrics is offered. Pure: the choice among them is made in `web`."""

from dataclasses import dataclass
from typing import Literal

# What a page is written as: lines in one of two formats, or messages.
Syntax = Literal["plain", "openmetrics", "protobuf"]


@dataclass(frozen=True, slots=True)
class Format:
    content_type: str
    syntax: Syntax


# All our names are valid in every escaping scheme.
PLAIN_0_0_4 = Format("text/plain; version=0.0.4; charset=utf-8", "plain")
PLAIN_1_0_0 = Format("text/plain; version=1.0.0; charset=utf-8; escaping=underscores", "plain")
OPENMETRICS = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", "openmetrics")
PROTOBUF = Format(
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited", "protobuf"
)
