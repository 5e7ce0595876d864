"""A real Prometheus that scrapes what a test tells it to, and answers PromQL over its HTTP API."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests import real_parts
from tests.processes import Process, Reply, ask, free_port, running, wait_until


@dataclass(frozen=True, slots=True)
class Sample:
    """One element of an instant vector."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class PrometheusServer:
    url: str
    process: Process

    def query(self, promql: str, at: float | None = None) -> list[Sample]:
        """An instant query, at a Unix time or now. AssertionError when Prometheus refuses it."""
        data = self._api("query", {"query": promql} | ({} if at is None else {"time": repr(at)}))
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(element["metric"], _number(element)) for element in data["result"]]

    def value(self, promql: str, at: float | None = None) -> float:
        """The one value of a query; NaN where it has none."""
        samples = self.query(promql, at)
        assert len(samples) <= 1, f"{promql}: {samples}"
        return samples[0].value if samples else math.nan

    def values_between(self, promql: str, start: float, end: float, step: float) -> list[float]:
        """Every value of a range query, Unix times and the step in seconds, whatever its labels.

        Of a native histogram its count.
        """
        data = self._api("query_range", {"query": promql, "start": repr(start), "end": repr(end), "step": repr(step)})
        found = [float(value) for element in data["result"] for _, value in element.get("values", ())]
        return found + [float(one["count"]) for element in data["result"] for _, one in element.get("histograms", ())]

    def by(self, label: str, promql: str, at: float | None = None) -> dict[str, float]:
        """The values of a query by one label, which must tell them apart."""
        samples = self.query(promql, at)
        found = {sample.labels.get(label, ""): sample.value for sample in samples}
        assert len(found) == len(samples), f"{promql}: {label} does not tell {samples} apart"
        return found

    def targets(self) -> list[dict[str, Any]]:
        """The scrape targets: `health` (up, down, unknown), `lastError`, `labels` and more."""
        active: list[dict[str, Any]] = self._api("targets", {})["activeTargets"]
        return active

    def scraped_since(self, unix_time: float) -> bool:
        """Whether every target was scraped, with success, by a scrape that began after this instant.

        `timestamp` gives the time of a sample only when it is asked for the metric itself.
        """
        began = [sample.value for sample in self.query("timestamp(up) and up == 1")]
        return 0 < len(self.query("up")) == len(began) and min(began) >= unix_time

    def await_scrape(self) -> None:
        """Return when everything that a target showed at the moment of the call is in the database."""
        began = time.time()
        wait_until(lambda: self.scraped_since(began), "a new scrape", self.process)

    def exemplars(self, promql: str, since: float) -> list[dict[str, Any]]:
        """Those of a selector from a Unix time until now: `labels`, `value`, `timestamp`."""
        found = self._api("query_exemplars", {"query": promql, "start": repr(since), "end": repr(time.time() + 1)})
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def _api(self, name: str, query: Mapping[str, str]) -> Any:
        reply: Reply = ask(f"{self.url}/api/v1/{name}?{urlencode(query)}")
        assert reply.status == 200, f"{name} {dict(query)}: {reply.text}"
        return reply.json()["data"]


def _number(element: Mapping[str, Any]) -> float:
    """The value, or the count of a native histogram."""
    return float(element["value"][1] if "value" in element else element["histogram"][1]["count"])


@contextlib.contextmanager
def prometheus_scraping(
    folder: Path, ports: Sequence[int] = (), interval: str = "1s", *, native: bool = False, **config: Any
) -> Iterator[PrometheusServer]:
    """Prometheus on a free port, its database under `folder`, scraping the ports of 127.0.0.1 every `interval`.

    `native`: it asks for native histograms, and keeps them instead of the classic ones.

    `config` adds or replaces top-level keys of its configuration, such as `rule_files`. JSON is YAML.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    scrape = {
        "job_name": "tgi-probe",
        "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in ports]}],
    }
    document = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": [scrape],
    } | config
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(document, indent=1))
    command = [
        real_parts.prometheus(),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
        f"--enable-feature=exemplar-storage{',native-histograms' if native else ''}",
    ]
    with running(command) as process:
        server = PrometheusServer(f"http://127.0.0.1:{port}", process)
        wait_until(lambda: ask(f"{server.url}/-/ready").status == 200, "Prometheus is ready", process)
        yield server
