"""`tgi-probe demo`, as a newcomer starts it."""

import signal
import urllib.request

from tests.processes import TGI_PROBE, free_port, running, wait_until


def test_the_demo_probes_a_shard_and_a_router_and_leaves_nothing_behind() -> None:
    port = free_port()
    with running([*TGI_PROBE, "demo", "--port", str(port)]) as demo:
        wait_until(lambda: "Stop with Ctrl-C." in demo.stdout, "the demo says where to look", demo)
        wait_until(lambda: successes(port) == {"demo", "router"}, "a success on both", demo)
        demo.send(signal.SIGINT)
        assert demo.wait() == 0
    warnings = [line for line in demo.stderr.splitlines() if "WARNING" in line]
    # This machine may be busy.
    busy = ("WARNING probe neither judged nor measured: ", "this machine was busy")
    assert all(any(words in line for words in busy) for line in warnings), warnings
    assert demo.stdout.splitlines()[-2:] == ["requests in flight: 0", "batches left: 0"]


def successes(port: int) -> set[str]:
    """The targets that answered a probe."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text: str = page.read().decode()
    return {
        target
        for line in text.splitlines()
        for target in ("demo", "router")
        if line.startswith("tgi_probe_attempts_total{")
        if f'target="{target}"' in line and 'outcome="ok"' in line and not line.endswith(" 0.0")
    }
