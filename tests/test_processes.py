"""The tests' own tools: what they promise to other tests."""

import signal
import sys
from pathlib import Path

import pytest

from tests.processes import ask, free_port, running, wait_until
from tests.prometheus_server import prometheus_scraping
from tests.real_parts import real_part


def test_a_process_that_outlives_its_block_is_ended() -> None:
    with running([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]) as process:
        wait_until(lambda: process.stdout == "up\n", "its first line", process)
    assert process.returncode == -signal.SIGTERM


def test_waiting_for_a_process_that_ended_says_what_it_said() -> None:
    with (
        running([sys.executable, "-c", "raise SystemExit('no such thing')"]) as process,
        pytest.raises(AssertionError, match=r"a wonder: ended with 1[^$]*no such thing"),
    ):
        wait_until(lambda: False, "a wonder", process)


def test_waiting_ends_at_its_deadline_with_the_last_trouble() -> None:
    with pytest.raises(AssertionError, match=r"an answer: not within 0\.05 s .*refused"):
        wait_until(lambda: ask(f"http://127.0.0.1:{free_port()}/"), "an answer", timeout=0.05)


def test_a_missing_program_skips_a_test_but_fails_it_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception):
        real_part("no-such-program")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not on the PATH"):
        real_part("no-such-program")


def test_a_real_prometheus_notes_a_target_that_is_down_and_answers_promql(
    tmp_path: Path,
) -> None:
    port = free_port()
    with prometheus_scraping(tmp_path, [port]) as server:
        wait_until(lambda: server.value("count(up)") == 1, "a first scrape", server.process)
        assert server.by("instance", "up") == {f"127.0.0.1:{port}": 0}
        assert server.value("sum(no_such_metric) or vector(7)") == 7
        assert not server.scraped_since(0)
