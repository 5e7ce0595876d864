"""The HTTP side of one `Metrics`, and probes to record in it."""

import contextlib
import random
from collections.abc import Iterator

from anyio.from_thread import start_blocking_portal

from exporter.config.settings import Settings
from exporter.metrics.catalogue import layout
from exporter.metrics.record import Metrics
from exporter.observation import Observation, Outcome, Series, ServerTimings, Step, Stream
from exporter.plan.targets import plans
from exporter.web.routes import Views
from exporter.web.server import WebServer


def announced(settings: Settings) -> Metrics:
    metrics = Metrics(layout(settings))
    metrics.configure(settings)
    for plan in plans(settings).values():
        metrics.announce(plan)
    return metrics


def serving(metrics: Metrics) -> contextlib.AbstractContextManager[int]:
    """Yields the port."""
    return serving_views(Views(lambda: metrics.registry, lambda: None, lambda: None, None, str))


@contextlib.contextmanager
def serving_views(views: Views) -> Iterator[int]:
    """Yields the port."""
    server = WebServer("127.0.0.1:0", views)
    with start_blocking_portal() as portal:
        task = portal.start_task_soon(server.serve)
        yield server.port
        task.cancel()


def probe(series: Series, seconds: float, rng: random.Random) -> Observation:
    """A good one of eight tokens; the first comes after so many seconds, and each other one after about a tenth."""
    server = ServerTimings(seconds / 2, 0.001, None, seconds * 0.9)
    steps = [Step(0.0, seconds, series.batch_size, server)]
    for _ in range(7):
        asked = steps[-1].arrived
        steps.append(Step(asked, asked + seconds / 10 * rng.uniform(0.9, 1.1), series.batch_size, server))
    stream = Stream(series.batch_size, 512 * series.batch_size, 0.0, steps[-1].arrived, tuple(steps))
    return Observation(series, 0.0, 0.0, steps[-1].arrived, Outcome.OK, "OK", "", (stream,), trace_id="4bf9")
