"""For all tests: what must be done before grpc is imported anywhere, and that a busy machine matters to few of them."""

import signal

import pytest

from exporter.analysis import certainty
from exporter.wire import grpc_env

grpc_env.prepare()
# A shell that runs the tests in the background has them ignore Ctrl-C, and every process that they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def busy_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run beside others are held up, and some of their probes would be disturbed. Most ask what an answer
    means and not how long it took: for them every value is certain.
    """
    if request.node.get_closest_marker("timed") is None:
        monkeypatch.setattr(certainty, "TOLERANCE_SECONDS", 3600.0)
