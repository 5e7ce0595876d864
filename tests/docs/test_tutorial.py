"""The tutorial's own text: its commands, one after the other, and what they print."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests import real_parts
from tests.processes import running, wait_until

ROOT = Path(__file__).parents[2]
# What a command shows comes before the next command.
STEP = re.compile(
    r"^```sh\n(?P<commands>.*?)^```\n(?:(?!^```sh).)*?^```text\n(?P<shown>.*?)^```\n", re.MULTILINE | re.DOTALL
)
PORTS = range(9477, 9481)


def test_an_example_is_matched_as_the_tutorial_says() -> None:
    assert pattern("a  …\nb").fullmatch("a 1 2 3\n4 b")
    assert not pattern("a …").fullmatch("b 1")
    assert not pattern("a.c").fullmatch("abc")


@pytest.mark.slow
def test_the_tutorial_leads_from_nothing_to_a_page_and_back() -> None:
    for program in ("prometheus", "promtool", "prometheus-alertmanager", "amtool", "make", "curl"):
        real_parts.real_part(program)
    text = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    first = free_ports(len(PORTS))
    for number in PORTS:
        text = text.replace(str(number), str(first + number - PORTS[0]))
    start, *steps = STEP.finditer(text)
    assert 1 + len(steps) == text.count("```sh")
    assert start["commands"] == "make demo\n"
    # The environment of the tests is there already, and `make` must not make another one.
    demo = ["make", "-C", str(ROOT), "demo", "--old-file=.venv/ready", f"ARGS=--port={first}"]
    with running(demo, {"MAKEFLAGS": ""}) as terminal:
        wait_until(lambda: pattern(start["shown"]).fullmatch(terminal.stdout.strip()), "the demo is there", terminal)
        for step in steps:
            done = subprocess.run(["sh", "-c", step["commands"]], cwd=ROOT, capture_output=True, text=True)
            assert pattern(step["shown"]).fullmatch(done.stdout.strip()), f"{step[0]}\n{done}\n{terminal.output}"
        os.killpg(terminal.pid, signal.SIGINT)  # as the terminal does
        terminal.wait()
    assert terminal.stdout.splitlines()[-2:] == ["requests in flight: 0", "batches left: 0"]


def pattern(shown: str) -> re.Pattern[str]:
    """What a command may print: `…` stands for anything, and columns may be wider."""
    parts = (r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in shown.strip().split("…"))
    return re.compile(".*".join(parts), re.DOTALL)


def free_ports(count: int) -> int:
    """The first of so many ports in a row where nobody listens, below those that the kernel gives to others."""
    while True:
        first = random.randrange(20000, 32000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
