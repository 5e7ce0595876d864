"""The live screen on a real terminal of tmux: every key, two sizes, no colours, and Ctrl-C."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.bench.progress import Progress, duration
from tests.bench.samples import run
from tests.end_to_end.parts import SimulatedShard, simulated_shard
from tests.processes import wait_until
from tests.real_parts import real_part


class Terminal:
    """A command in a terminal of its own, which says its exit code when it has ended."""

    def __init__(self, folder: Path, width: int, height: int, command: str, **environment: str) -> None:
        self._tmux = (real_part("tmux"), "-S", str(folder / "tmux"), "-f", "/dev/null")
        script = folder / "script"
        script.write_text(f"{command}\necho exit code $?\nexec sleep 600\n")
        variables = [word for key, value in environment.items() for word in ("-e", f"{key}={value}")]
        size = ("-x", str(width), "-y", str(height))
        kind = ("-e", "TERM=xterm-256color", "-e", "COLORTERM=truecolor")
        self._run("new-session", "-d", *size, *kind, *variables, "sh", str(script))

    def _run(self, *words: str) -> str:
        return subprocess.run((*self._tmux, *words), capture_output=True, text=True, check=True, timeout=60).stdout

    def keys(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def shown(self, *options: str) -> str:
        return self._run("capture-pane", "-p", "-S", "-200", *options)

    def wait(self, pattern: str) -> str:
        def there() -> str:
            shown = self.shown()
            return shown if re.search(pattern, shown) else ""

        try:
            return wait_until(there, f"the screen shows {pattern}")
        except AssertionError:
            pytest.fail(f"no {pattern!r} on:\n{self.shown()}", pytrace=False)

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("kill-server")


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[SimulatedShard]:
    with simulated_shard(f"unix://{tmp_path}/shard") as shard:
        yield shard


@contextlib.contextmanager
def bench(
    folder: Path, shard: SimulatedShard, *words: str, width: int = 80, height: int = 24, **environment: str
) -> Iterator[Terminal]:
    command = " ".join((sys.executable, "-m", "exporter", "bench", "-m", shard.address, *words))
    terminal = Terminal(folder, width, height, command, PYTHONPATH=os.getcwd(), **environment)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 50)])
def test_every_key_does_what_the_footer_says(width: int, height: int, tmp_path: Path, shard: SimulatedShard) -> None:
    sizes = ("-b", "1", "-b", "2", "-b", "4", "--runs", "4")
    with bench(tmp_path, shard, *sizes, width=width, height=height) as terminal:
        shown = terminal.wait("done – q shows the tables and ends")
        assert all(len(line) <= width for line in shown.splitlines())
        for text in ("Prefill, ms", "Decode, ms per token", "Prefill: tokens/s over ms", "95 % interval", "100%"):
            assert text in shown
        assert re.search("← previous.*→ Tab next.*q quit.*zoom in.*zoom out", shown)
        assert "batch size 4 " in shown
        assert "[4]" in shown, "the point of the batch size that is shown"
        for key, size in (("Left", 2), ("Left", 1), ("Right", 2), ("Tab", 4), ("Tab", 1), ("BTab", 4)):
            terminal.keys(key)
            terminal.wait(rf"(?s)batch size {size} .*\[{size}\]")
        before = curves(terminal)
        terminal.keys("+")
        wait_until(lambda: curves(terminal) != before, "it zooms in")
        terminal.keys("-")
        wait_until(lambda: curves(terminal) == before, "it zooms out")
        terminal.keys("q")
        ended = terminal.wait("exit code 0")
        assert "| Decode (token) |" in ended
        assert re.search(r"More users \(throughput\): \*\*batch size|No recommendation", ended)  # if we were busy
    assert shard.batches() == 0


def curves(terminal: Terminal) -> str:
    """The part of the screen that the zoom is for."""
    return terminal.shown().partition("Prefill: tokens/s over ms")[2]


@pytest.mark.parametrize("key", ["q", "C-c"])
def test_quitting_in_the_middle_prints_what_there_is_and_leaves_no_batch(
    key: str, tmp_path: Path, shard: SimulatedShard
) -> None:
    with bench(tmp_path, shard, "-b", "1", "-b", "2", "--runs", "100000") as terminal:
        terminal.wait("batch size 1: run [0-9]{2,} of 100000, about .* left")
        terminal.keys(key)
        ended = terminal.wait("exit code 130")
        assert "ended early: batch size 1: interrupted" in ended
        assert "| Prefill        |            1 |" in ended
    assert shard.batches() == 0


def test_a_failure_is_said_on_the_screen(tmp_path: Path, shard: SimulatedShard) -> None:
    with bench(tmp_path, shard, "-b", "1", "-b", "64", "--runs", "3", "--max-batch-tokens", "100") as terminal:
        shown = terminal.wait("done –")
        assert "ended early: batch size 64: refused" in shown
        terminal.keys("q")
        terminal.wait("exit code 1")


def test_it_follows_the_size_of_its_window(tmp_path: Path, shard: SimulatedShard) -> None:
    with bench(tmp_path, shard, "-b", "1", "--runs", "4") as terminal:
        terminal.wait("done –")
        assert "average" not in terminal.shown()
        terminal.resize(140, 40)
        assert "zoom out" in terminal.wait("average")
        terminal.resize(80, 24)
        wait_until(lambda: "average" not in terminal.shown(), "it is narrow again")


@pytest.mark.parametrize("coloured", [True, False])
def test_no_color_means_none(tmp_path: Path, shard: SimulatedShard, coloured: bool) -> None:
    with bench(tmp_path, shard, "-b", "1", "--runs", "4", NO_COLOR="" if coloured else "1") as terminal:
        terminal.wait("done –")
        codes = re.findall(r"\x1b\[[0-9;]*?(?:38|48);2;(\d+);(\d+);(\d+)", terminal.shown("-e"))
        assert any(len(set(colour)) > 1 for colour in codes) == coloured, codes


def test_without_a_terminal_or_with_quiet_there_are_plain_lines(tmp_path: Path, shard: SimulatedShard) -> None:
    with bench(tmp_path, shard, "-b", "1", "--runs", "3", "--quiet") as terminal:
        ended = terminal.wait("exit code 0")
        assert re.search(r"batch size 1: 3 runs, prefill [0-9.]+ ms", ended)
        assert "zoom in" not in ended


def test_time_left_counts_the_batch_sizes_to_come() -> None:
    progress = Progress()
    plan = {"event": "plan", "batch_sizes": [1, 2], "runs": 3, "warmups": 1, "title": "t", "kind": "shard"}
    progress.apply(plan, 0.0)
    assert (progress.status(), progress.share()) == ("connecting", 0.0)
    progress.apply({"event": "begun", "batch_size": 1}, 1.0)
    assert progress.status() == "batch size 1: warm-up 1 of 1"
    made = run(1, 0.1, 0.01).model_dump()
    progress.apply({"event": "ran", "batch_size": 1, "run": made}, 3.0)
    assert progress.status() == "batch size 1: run 1 of 3, about 14 s left"  # 3 + 4 probes of 2 s
    assert progress.share() == pytest.approx(1 / 8)
    progress.apply({"event": "done"}, 4.0)
    assert progress.share() == 1.0
    assert [duration(seconds) for seconds in (9.6, 125)] == ["10 s", "2 min 05 s"]
