"""A daemon in this process's main thread, where its signals arrive, and a test's body beside it in another."""

import os
import queue
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from exporter.config.settings import Settings
from exporter.daemon.app import SIGNALS, Daemon
from tests.processes import PATIENCE


def run_beside(read: Callable[[], Settings], body: Callable[[int], None]) -> int:
    """The daemon's exit code. `body` gets the port; when it has ended, the daemon is told to stop."""
    ports: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run_body() -> None:
        port = ports.get(timeout=PATIENCE)
        try:
            body(port)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_body)
            code = Daemon(read, ports.put).run()
            running.result()
        return code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
