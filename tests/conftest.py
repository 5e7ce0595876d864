"""For all tests: what must be done before grpc is imported anywhere, and what keeps one test from another."""

import contextlib
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from exporter.analysis import certainty
from exporter.probes.shard import lock
from exporter.wire import delays, grpc_env

grpc_env.prepare()
# A shell that runs the tests in the background has them ignore Ctrl-C, and every process that they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On a busy machine an example may take any time, to make and to run.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="replay the random searches of tests/faults with this seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a seed only random searches run."""
    if config.getoption("--seed") is not None:
        items[:] = [item for item in items if {"asked_seed", "seed"} & set(getattr(item, "fixturenames", ()))]


@pytest.fixture
def asked_seed(request: pytest.FixtureRequest) -> int | None:
    """The seed that was asked for."""
    value = request.config.getoption("--seed")
    return value if isinstance(value, int) else None


@pytest.fixture(autouse=True)
def busy_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run beside others are held up, and some of their probes would be disturbed. Most ask what an answer
    means and not how long it took: for them every value is certain.
    """
    if request.node.get_closest_marker("timed") is None:
        monkeypatch.setattr(certainty, "TOLERANCE_SECONDS", 3600.0)
        # A timeout is the server's, however long this process was held up meanwhile.
        monkeypatch.setattr(delays, "BLAMED_SECONDS", 3600.0)
        monkeypatch.setattr(delays, "BLAMED_SHARE", 3600.0)


@contextlib.contextmanager
def own_lock_files() -> Iterator[None]:
    """Lock files of shards on TCP are named by their port, and the kernel gives a port again to a later test."""
    with tempfile.TemporaryDirectory(prefix="locks-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "TEMPORARY", folder)
        yield


@pytest.fixture(scope="module", autouse=True)
def lock_files_of_the_module() -> Iterator[None]:
    """For the probers that a module's own fixtures open."""
    with own_lock_files():
        yield


@pytest.fixture(autouse=True)
def lock_files_of_the_test() -> Iterator[None]:
    with own_lock_files():
        yield
