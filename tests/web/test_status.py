"""The status page and /probe: as text, on the running daemon, and in a real browser."""

import re
import subprocess
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.analysis.newest import Limit, NewestResult, NewestResults, ObjectiveSum, TargetSummary, Unprobed
from exporter.web.chart import DIGIT, HEIGHT, LETTER_HEIGHT, WIDTH, Point, scatter, ticks
from exporter.web.status_page import ICON, page
from tests.end_to_end.parts import Daemon, SimulatedShard, daemon_running, simulated_shard, write_config
from tests.processes import wait_until
from tests.real_parts import real_part

EVIL = '<script>alert("&")</script>'


def status(text: str = "demo") -> NewestResults:
    limits = (Limit(text, 0.2), Limit(text, 0.01))
    medians = (0.3, 0.005, None, 100.0)
    values = (0.1, 0.02, 5000.0, 200.0)
    result = NewestResult(text, text, 4, 90.0, "timeout", text, "0" * 32, *values, (), medians, limits)
    return NewestResults(
        now=100.0,
        version=text,
        trouble=text,
        targets=(TargetSummary(text, "shard", text, text, True), TargetSummary("new", "shard", "", None, False)),
        results=(result,),
        unprobed=(Unprobed(text, text, 8, text),),
        objectives=(
            ObjectiveSum(text, text, "ttft", 0.2, 0.99, 99, 1),
            ObjectiveSum("b", "t", "availability", None, 0.9, 1, 1),
        ),
        probe_here=True,
    )


class Tags(HTMLParser):
    """Which tags are open; a wrongly nested one fails."""

    EMPTY = frozenset({"link", "meta"})

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
    assert not {"script", "img", "iframe", "form"} & set(tags.seen)
    assert re.findall("<link[^>]*", page(status())) == [f'<link rel="icon" href="{ICON}"']
    assert ICON.startswith("data:")
    assert tags.seen.count("svg") == 2


def test_the_page_asks_the_browser_to_load_it_again_while_it_is_open() -> None:
    assert '<meta http-equiv="refresh" content="15">' in page(status())


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


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 64), st.floats(1, 400), st.floats(1, 9e4)), max_size=9)
)
def test_each_point_has_its_batch_size_beside_it_inside_the_chart(points: list[tuple[str, int, float, float]]) -> None:
    chart = scatter("x", [Point(*point) for point in points])
    labels = re.findall(r'class="label" x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">(\d+)<', chart)
    assert sorted(text for *_, text in labels) == sorted(str(size) for _, size, _, _ in points)
    for x, y, anchor, text in labels:
        edge = float(x) + DIGIT * len(text) * (1 if anchor == "start" else -1)
        assert 0 <= min(float(x), edge) <= max(float(x), edge) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_the_batch_sizes_of_points_close_together_do_not_cover_each_other() -> None:
    chart = scatter("x", [Point("a", 1, 100, 100), Point("b", 2, 101, 100), Point("c", 4, 100, 99)])
    places = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', chart)
    boxes = [(float(x) - (DIGIT if anchor == "end" else 0), float(y)) for x, y, anchor in places]
    assert len(boxes) == 3
    for (x, y), (other_x, other_y) in combinations(boxes, 2):
        assert abs(x - other_x) >= DIGIT or abs(y - other_y) >= LETTER_HEIGHT


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
    assert re.search(r"outcome: (ok|disturbed) \(OK\)", reply.text)  # this machine may be busy
    assert shard.calls("Prefill") > prefills
    assert shard.batches() == 0
    assert daemon.sum_of("tgi_probe_attempts_total") == attempts, "it is shown, not recorded"


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ("", 400, "missing: target, workload, batch_size; use /probe?target=…&workload=…&batch_size=…"),
        ("?target=shard&batch_size=2", 400, "missing: workload; use /probe?target=…&workload=…&batch_size=…"),
        ("?target=no", 404, 'no target is called "no"; /config has the names'),
        ("?target=no&workload=chat&batch_size=2", 404, 'no target is called "no"; /config has the names'),
        (
            "?target=shard&workload=chat&batch_size=7",
            404,
            'target shard has no workload "chat" with batch size "7"; /config has the names',
        ),
    ],
)
def test_a_probe_of_what_is_not_configured_is_refused_with_the_reason(
    daemon: Daemon, query: str, code: int, said: str
) -> None:
    reply = daemon.get(f"/probe{query}")
    assert (reply.status, reply.text) == (code, f"{said}\n")


def test_probe_is_off_unless_enabled(shard: SimulatedShard, tmp_path: Path) -> None:
    with daemon_running(write_config(tmp_path / "c.yaml", shard.address, interval="1h")) as daemon:
        reply = daemon.get("/probe?target=shard&workload=chat&batch_size=1")
        assert reply.status == 403
        assert "web.enable_probe" in reply.text


def test_a_real_browser_shows_the_targets_and_both_charts(shard: SimulatedShard, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", shard.address, interval="1s", batch_sizes=[1, 2])
    with daemon_running(config) as daemon:
        # On a busy machine the first values may be withheld.
        wait_until(lambda: "<circle" in daemon.get("/").text, "a result with its values", daemon.process)
        shown = in_a_browser(f"http://127.0.0.1:{daemon.port}/", tmp_path)
    assert "says of itself" in shown
    assert shown.count("<circle") >= 1


WINDOWS = (320, 420, 800, 1000, 1280, 1920)
# Says of each frame how wide its page is, and its tables; a cut message makes one of them wider than the window.
MEASURE = """<script>onload = () => {
document.body.textContent = [...document.querySelectorAll("iframe")].map(frame => {
const page = frame.contentDocument, widths = [...page.querySelectorAll("table, td, svg")].map(it => it.scrollWidth);
const heads = page.querySelector("thead").getBoundingClientRect().height > 0, root = page.documentElement;
return [frame.width, root.scrollWidth, Math.max(...widths), page.querySelectorAll(".said").length, heads] }).join(";") }
</script>"""


def test_whole_messages_can_be_read_in_narrow_and_wide_windows_without_scrolling_sideways(tmp_path: Path) -> None:
    words = "a message of several words, and " + "one_without_spaces_" * 20
    frames = "".join(f'<iframe width="{width}" srcdoc="{escape(page(status(words)))}"></iframe>' for width in WINDOWS)
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{frames}{MEASURE}")
    said = in_a_browser((tmp_path / "frames.html").as_uri(), tmp_path)
    [found] = re.findall(r"<body>([^<]*)</body>", said)
    for window in found.split(";"):
        width, page_width, widest, messages, heads = window.split(",")
        assert int(page_width) <= int(width) >= int(widest), window
        assert messages == "1"
        assert heads == ("true" if int(width) >= 1280 else "false")
    assert found.count(";") == len(WINDOWS) - 1


def in_a_browser(address: str, folder: Path) -> str:
    """The document, after its scripts."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = ["--disable-sync", "--disable-component-update", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [real_part("chromium"), *flags.split(), *more, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
