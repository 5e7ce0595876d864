"""What a real Prometheus makes of restarts, reloads and targets that leave and return, in both forms of histograms."""

import random
from collections.abc import Iterator
from itertools import permutations

import pytest

from exporter.config.settings import Settings
from exporter.observation import Series
from exporter.plan.targets import plans
from exporter.web.routes import Views
from tests.metrics.served import announced, probe, serving_views
from tests.prometheus_server import PrometheusServer, prometheus_scraping

pytestmark = pytest.mark.slow

TTFT = "tgi_probe_time_to_first_token_seconds"


def settings(ttft: str, *targets: str, classic: str = "lean") -> Settings:
    return Settings.model_validate(
        {
            "histograms": {"classic": classic},
            "targets": [{"name": name, "address": f"unix:///run/{name}"} for name in targets],
            "workloads": [{"name": "chat", "batch_sizes": [1]}],
            "slos": [{"name": "fast", "workload": "chat", "ttft": ttft}],
        }
    )


BOTH = settings("200ms", "a", "b")


class Scraped:
    """A daemon's metrics, which can be exchanged as a restart does, and two servers that scrape them."""

    def __init__(self) -> None:
        self.metrics = announced(BOTH)
        self.views = Views(lambda: self.metrics.registry, lambda: None, lambda: None, None, str)
        self.servers: dict[str, PrometheusServer] = {}

    def probe(self, target: str, seconds: float, number: int) -> None:
        for _ in range(number):
            self.metrics.record(probe(Series(target, "chat", 1), seconds, random.Random(1)))

    def await_scrapes(self) -> None:
        for server in self.servers.values():
            server.await_scrape()

    def increases(self, target: str) -> dict[str, float]:
        """How many first tokens each server has counted, over all resets."""
        native = f'histogram_count(increase({TTFT}{{target="{target}"}}[1h]))'
        classic = f'increase({TTFT}_count{{target="{target}"}}[1h])'
        return {"native": self.servers["native"].value(native), "classic": self.servers["classic"].value(classic)}

    def medians(self, target: str) -> dict[str, float]:
        native = f'histogram_quantile(0.5, increase({TTFT}{{target="{target}"}}[1h]))'
        classic = f'histogram_quantile(0.5, increase({TTFT}_bucket{{target="{target}"}}[1h]))'
        return {"native": self.servers["native"].value(native), "classic": self.servers["classic"].value(classic)}


@pytest.fixture
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    folder = tmp_path_factory.mktemp("prometheus")
    scraped = Scraped()
    with (
        serving_views(scraped.views) as port,
        prometheus_scraping(folder / "native", [port], native=True) as native,
        prometheus_scraping(folder / "classic", [port]) as classic,
    ):
        scraped.servers = {"native": native, "classic": classic}
        scraped.await_scrapes()
        yield scraped


def test_a_restart_is_a_reset_and_no_count_is_lost_or_made_up(scraped: Scraped) -> None:
    scraped.probe("a", 0.15, 100)
    scraped.await_scrapes()
    scraped.metrics = announced(BOTH)
    scraped.probe("a", 0.15, 50)
    scraped.await_scrapes()
    for found in scraped.increases("a").values():
        assert found == pytest.approx(150, rel=0.5)  # extrapolated to the whole hour's edges, by half a scrape each
        assert found >= 150
    medians = scraped.medians("a")
    assert medians["native"] == pytest.approx(0.15, rel=0.045)
    assert 0.1 < medians["classic"] <= 0.2


def test_a_reload_with_another_threshold_resets_nothing(scraped: Scraped) -> None:
    scraped.probe("a", 0.15, 100)
    scraped.await_scrapes()
    scraped.metrics.configure(settings("120ms", "a", "b"))
    scraped.probe("a", 0.11, 100)
    scraped.await_scrapes()
    native, classic = scraped.servers["native"], scraped.servers["classic"]
    for server, resets in ((native, f"resets({TTFT}[1h])"), (classic, f"resets({TTFT}_bucket[1h])")):
        assert {sample.value for sample in server.query(resets)} == {0}
    of_a = f'{TTFT}_bucket{{target="a", le="0.12"}}'
    assert classic.value(of_a) == 100  # those since the reload: the threshold is exact from then on
    share = native.value(f'histogram_fraction(0, 0.12, {TTFT}{{target="a"}})')
    assert share == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("before", "after"), [*permutations(("lean", "fine", "off"), 2)])
def test_a_reload_with_other_classic_buckets_loses_no_count_and_shows_no_wrong_median(
    scraped: Scraped, before: str, after: str
) -> None:
    scraped.metrics.configure(settings("200ms", "a", "b", classic=before))
    scraped.await_scrapes()
    scraped.probe("a", 0.15, 100)
    scraped.await_scrapes()
    scraped.metrics.configure(settings("200ms", "a", "b", classic=after))
    scraped.await_scrapes()
    scraped.probe("a", 0.15, 50)
    scraped.await_scrapes()
    for found in scraped.increases("a").values():
        assert 150 <= found < 225
    medians = scraped.medians("a")
    assert medians["native"] == pytest.approx(0.15, rel=0.045)
    if after != "off":
        assert 0.1 < medians["classic"] <= 0.2  # between the neighbours among the lean edges
    else:
        assert scraped.servers["classic"].query(f"{TTFT}_bucket") == []


def test_a_target_that_leaves_has_no_sample_and_one_that_returns_starts_at_its_own_count(scraped: Scraped) -> None:
    scraped.probe("b", 0.15, 100)
    scraped.await_scrapes()
    scraped.metrics.forget("b")
    scraped.await_scrapes()
    for server in scraped.servers.values():
        assert server.query('{target="b"}') == []
    scraped.metrics.announce(plans(BOTH)["b"])
    scraped.await_scrapes()
    scraped.probe("b", 0.15, 10)
    scraped.await_scrapes()
    assert scraped.servers["native"].value(f'histogram_count({TTFT}{{target="b"}})') == 10
    assert scraped.servers["classic"].value(f'{TTFT}_count{{target="b"}}') == 10
    for found in scraped.increases("b").values():
        assert 110 <= found < 170
