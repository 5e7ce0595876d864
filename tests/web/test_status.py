"""The status page and /probe: as text, on the running daemon, and in a real browser."""

import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.web.scatter import Point, scatter, ticks
from exporter.web.status import Objective, Result, Status, TargetState, page
from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard, write_config
from tests.processes import wait_until
from tests.real_parts import real_part

EVIL = '<script>alert("&")</script>'


def status(text: str = "demo") -> Status:
    result = Result(text, text, 4, 90.0, "timeout", text, "0" * 32, 0.1, 0.02, 5000.0, 200.0)
    return Status(
        now=100.0,
        version=text,
        trouble=text,
        targets=(TargetState(text, "shard", text, text, True), TargetState("new", "shard", "", None, False)),
        results=(result,),
        objectives=(
            Objective(text, text, "ttft", 0.2, 0.99, 99, 1),
            Objective("b", "t", "availability", None, 0.9, 1, 1),
        ),
        probe_here=True,
    )


class Tags(HTMLParser):
    """Which tags are open; a wrongly nested one fails."""

    EMPTY = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.EMPTY and tag != "th":  # a th may be left open in a row
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


def test_names_and_messages_cannot_write_html() -> None:
    text = page(status(EVIL))
    assert "<script" not in text
    tags = Tags()
    tags.feed(text)
    assert tags.open == []


def test_the_page_needs_no_script_and_nothing_from_elsewhere() -> None:
    tags = Tags()
    tags.feed(page(status()))
    assert not {"script", "img", "link", "iframe", "form"} & set(tags.seen)
    assert tags.seen.count("svg") == 2


def test_an_objective_is_met_or_missed() -> None:
    text = page(status())
    assert '<td class="good">met</td>' in text
    assert '<td class="bad">missed</td>' in text


@given(st.floats(1e-9, 1e12))
def test_the_axis_reaches_the_largest_value_in_a_few_round_steps(largest: float) -> None:
    found = ticks(largest)
    assert found[0] == 0
    assert found[-1] >= largest * (1 - 1e-9)
    assert 2 <= len(found) <= 6


def test_without_points_there_is_no_chart() -> None:
    assert scatter("x", []) == ""
    assert scatter("x", [Point("a", 1, 0.0, 0.0)]).count("<circle") == 1


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedShard]:
    with simulated_shard(f"unix://{tmp_path_factory.mktemp('shard')}/s") as shard:
        yield shard


@pytest.fixture(scope="module")
def daemon(shard: SimulatedShard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    config = write_config(
        tmp_path_factory.mktemp("config") / "c.yaml", shard.address, interval="1h", batch_sizes=[1, 2]
    )
    config.write_text(config.read_text().replace('"web": {', '"web": {"enable_probe": true, '))
    with daemon_running(config) as daemon:
        # The first of the two batch sizes is due at the start, the other half an hour later.
        wait_until(lambda: daemon.get("/-/ready").status == 200, "the first probe", daemon.process)
        yield daemon


def test_a_person_can_run_one_probe_and_read_what_happened(daemon: Daemon, shard: SimulatedShard) -> None:
    attempts = daemon.sum_of("tgi_probe_attempts_total")
    prefills = shard.calls("Prefill")
    reply = daemon.get("/probe?target=shard&workload=chat&batch_size=2")
    assert reply.status == 200, reply.text
    assert "first token: 2 tokens after" in reply.text
    assert "outcome: ok (OK)" in reply.text
    assert shard.calls("Prefill") > prefills
    assert shard.batches() == 0
    assert daemon.sum_of("tgi_probe_attempts_total") == attempts, "it is shown, not recorded"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", 400),
        ("?target=shard", 400),
        ("?target=no&workload=chat&batch_size=2", 404),
        ("?target=shard&workload=chat&batch_size=7", 404),
    ],
)
def test_a_probe_of_what_is_not_configured_is_refused(daemon: Daemon, query: str, code: int) -> None:
    assert daemon.get(f"/probe{query}").status == code


def test_probe_is_off_unless_enabled(shard: SimulatedShard, tmp_path: Path) -> None:
    with daemon_running(write_config(tmp_path / "c.yaml", shard.address, interval="1h")) as daemon:
        reply = daemon.get("/probe?target=shard&workload=chat&batch_size=1")
        assert reply.status == 403
        assert "web.enable_probe" in reply.text


def test_a_real_browser_shows_the_targets_and_both_charts(daemon: Daemon, tmp_path: Path) -> None:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = ["--disable-sync", "--disable-component-update", f"--user-data-dir={tmp_path}", "--dump-dom"]
    done = subprocess.run(
        [real_part("chromium"), *flags.split(), *more, f"http://127.0.0.1:{daemon.port}/"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "says of itself" in done.stdout
    assert done.stdout.count("<circle") >= 1
