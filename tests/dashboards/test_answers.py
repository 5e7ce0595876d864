"""Every expression of every dashboard, asked of two real Prometheus servers that scraped a running demo.

One takes native histograms, the other has only classic ones.
"""

import math
import re
import time
from collections.abc import Iterator

import pytest

from tests.dashboards.asked import Asked, dashboards, everything, groupings, made, selectors
from tests.dashboards.running_demo import Demo, exposed, running_demo
from tests.processes import wait_until
from tests.prometheus_server import PrometheusServer

# Filled in as Grafana would; the demo is half a minute old, so it is compared with a few seconds ago.
VALUES = {
    "__rate_interval": "10s",
    "__interval": "1s",
    "__range": "1m",
    "target": ".*",
    "workload": ".*",
    "batch_size": ".*",
    "slo": ".*",
    "instance": ".*",
    "compare": "3s",
}
# What Prometheus itself adds to what is scraped.
BY_PROMETHEUS = {
    "up": frozenset[str](),
    "scrape_duration_seconds": frozenset[str](),
    "scrape_samples_scraped": frozenset[str](),
    "ALERTS": frozenset({"alertname", "alertstate", "severity", "slo", "target"}),
    "slo:objective:ratio": frozenset({"slo", "target"}),
}
EVERYWHERE = frozenset({"job", "instance"})
# Place → why it has no answer even here. An entry that does have one fails too.
EMPTY = {"fleet.json / Compared with $compare ago (12) A": "the targets are older than what they are compared with"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest.fixture(params=["classic", "native"])
def prometheus(demo: Demo, request: pytest.FixtureRequest) -> PrometheusServer:
    return demo.native if request.param == "native" else demo.prometheus


def answer(demo: Demo, prometheus: PrometheusServer, one: Asked) -> list[float]:
    """Every number that the expression gives, over the demo's life or now. AssertionError where Prometheus refuses."""
    expr = one.filled(VALUES)
    if one.instant:
        values = [sample.value for sample in prometheus.query(expr)]
    else:
        values = prometheus.values_between(expr, demo.began, time.time(), step=1)
    return [value for value in values if math.isfinite(value)]


def test_every_expression_has_an_answer_in_a_demo_that_has_seen_it_all(
    demo: Demo, prometheus: PrometheusServer
) -> None:
    waiting = everything()
    assert len(waiting) > 100

    def all_answered() -> bool:
        waiting[:] = [one for one in waiting if not answer(demo, prometheus, one)]
        assert {str(one) for one in waiting} == EMPTY.keys(), [f"{one}: {one.filled(VALUES)}" for one in waiting]
        return True

    wait_until(all_answered, "every panel has numbers", demo.daemon.process, every=1)


def test_every_metric_and_label_is_one_that_is_served(demo: Demo) -> None:
    served = exposed(demo.metrics_pages()) | BY_PROMETHEUS
    labels = frozenset().union(*served.values(), EVERYWHERE)
    for one in everything():
        found = selectors(one.expr)
        assert found, one
        for selector in found:
            assert selector.metric in served, f"{one}: {selector.metric}"
            assert selector.labels <= served[selector.metric] | EVERYWHERE, f"{one}: {selector}"
        assert groupings(one.expr) <= labels, f"{one}: {groupings(one.expr) - labels}"


def test_every_label_in_a_legend_or_a_column_is_one_that_is_served(demo: Demo) -> None:
    labels = frozenset().union(*exposed(demo.metrics_pages()).values(), *BY_PROMETHEUS.values(), EVERYWHERE)
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                told = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert told <= labels | made(target["expr"]), f"{name} / {panel['title']}"


def test_every_variable_offers_values(demo: Demo) -> None:
    for name, dashboard in dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                expr, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
                filled = Asked(name, variable["name"], expr, instant=True).filled(VALUES)
                assert label == variable["name"]
                assert [s for s in demo.prometheus.query(f"group by ({label}) ({filled})") if s.labels.get(label)], name


@pytest.mark.parametrize(
    ("expr", "metrics"),
    [
        ('sum by (le) (rate(a_bucket{x="a{b}", y=~"c"}[$__rate_interval])) and on (le) b > 1', {"a_bucket", "b"}),
        ("histogram_quantile(0.5, c) offset 1w / (d[30d] @ end()) unless on () e", {"c", "d", "e"}),
        ('label_replace(count_values by (slo) ("le", max by (slo) (f)), "le", "$1.0", "le", "([0-9]+)")', {"f"}),
    ],
)
def test_metrics_are_found_among_functions_labels_and_durations(expr: str, metrics: set[str]) -> None:
    assert {selector.metric for selector in selectors(expr)} == metrics
