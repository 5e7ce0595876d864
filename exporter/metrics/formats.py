"""The formats in which /metrics is offered. Pure: the choice among them is made in `web`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    content_type: str
    openmetrics: bool = False


# All our names are valid in every escaping scheme.
PLAIN_0_0_4 = Format("text/plain; version=0.0.4; charset=utf-8")
PLAIN_1_0_0 = Format("text/plain; version=1.0.0; charset=utf-8; escaping=underscores")
OPENMETRICS = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics=True)
