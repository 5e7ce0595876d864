"""`tgi-probe rules`: its options, and what it prints. Rules on standard output, warnings on standard error."""

import argparse
import re
import sys
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from exporter.alerting import advice, rule_file, slo_rules
from exporter.alerting.rule_types import Options
from exporter.config.fields import PositiveSeconds
from exporter.config.settings import Settings
from exporter.config.sources import load

DEFAULTS = Options()
DURATION = TypeAdapter[float](PositiveSeconds)
KEPT_LABELS = ("slo", "target", "workload", "batch_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the daemon's YAML file; without it the TGI_PROBE_… variables"
    )
    parser.add_argument(
        "--format",
        choices=("prometheus", "k8s"),
        default="prometheus",
        help="a rule file (default), or a PrometheusRule resource",
    )
    parser.add_argument(
        "--name",
        type=_resource_name,
        default="tgi-probe",
        help="name of the PrometheusRule resource (default tgi-probe)",
    )
    parser.add_argument(
        "--scrape-interval", type=_duration, default=DEFAULTS.scrape_interval, metavar="DURATION",
        help="how often Prometheus scrapes and evaluates (default 15s); no window is shorter than 6 of them",
    )  # fmt: skip
    parser.add_argument(
        "--drop-label", type=_label, action="append", default=[], metavar="LABEL",
        help="sum this label away, such as pod or instance where they change with each start; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--startup-grace", type=_grace, default=DEFAULTS.startup_grace, metavar="DURATION",
        help="how long a daemon's target may take to its first success before it pages, to load a model; 0s: pages at "
        "once (default 15m)",
    )  # fmt: skip
    parser.add_argument(
        "--runbooks",
        type=_url,
        metavar="URL",
        help="where docs/runbooks.md can be read by those who are paged; each alert then links to its section",
    )
    parser.add_argument(
        "--regression-factor", type=partial(_between, 1.0, 1000.0), default=DEFAULTS.regression_factor, metavar="N",
        help="how many times worse than the past 7 days is an alert (default 1.5)",
    )  # fmt: skip
    parser.add_argument(
        "--time-scale", type=partial(_between, 0.0, 1.0), default=1.0, metavar="N",
        help="multiply every window and wait, to see alerts fire in minutes: 0.01 makes 5m 3s (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--arithmetic",
        action="store_true",
        help="print how many bad probes page, for usual objectives and intervals, and end",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.arithmetic:
        print(advice.arithmetic())
        return 0
    settings = load(arguments.config)
    options = Options(
        scrape_interval=arguments.scrape_interval,
        time_scale=arguments.time_scale,
        drop_labels=tuple(dict.fromkeys(arguments.drop_label)),
        runbooks=arguments.runbooks or "",
        regression_factor=arguments.regression_factor,
        startup_grace=arguments.startup_grace,
    )
    notes, warnings = explain(settings, options)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    texts = [*notes, *(f"warning: {warning}" for warning in warnings)]
    resource = arguments.name if arguments.format == "k8s" else ""
    print(rule_file.rule_file(settings, options, texts, resource), end="")
    return 0


def explain(settings: Settings, options: Options = DEFAULTS) -> tuple[list[str], list[str]]:
    """Notes and warnings about the objectives, for `check` and `rules`."""
    found = slo_rules.rule_inputs(settings, options)
    notes = [line for inputs in found for line in advice.notes(inputs)]
    warnings = [line for inputs in found for line in advice.warnings(inputs)]
    return notes, [*advice.blind_objectives(settings, found), *warnings]


def _duration(text: str) -> float:
    try:
        return DURATION.validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{error.errors()[0]['msg']}, not {text!r}") from None


def _grace(text: str) -> float:
    return 0.0 if text == "0s" else _duration(text)


def _label(text: str) -> str:
    if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", text, re.ASCII) or text in KEPT_LABELS:
        raise argparse.ArgumentTypeError(f"must be a label name, and none of {', '.join(KEPT_LABELS)}, not {text!r}")
    return text


# As Kubernetes names resources (RFC 1123): parts of at most 63 characters between dots, 253 in all.
RESOURCE_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII
)


def _resource_name(text: str) -> str:
    if not RESOURCE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"must be lower-case letters, digits, - and ., as Kubernetes names resources, not {text!r}"
        )
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known or not text.isprintable() or " " in text or "#" in text:
        raise argparse.ArgumentTypeError(f"must be an http:// or https:// address without #, not {text!r}")
    return text


def _between(above: float, most: float, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = above
    if not above < value <= most:
        raise argparse.ArgumentTypeError(f"must be a number above {above:g}, at most {most:g}, not {text!r}")
    return value
