"""A simulated shard with a launcher that starts it again whenever it has ended."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from exporter.simulator import Config, Shard


@contextmanager
def supervised(config: Config) -> Iterator[list[Shard]]:
    """Answers all its lives so far. It must listen on a unix socket, to come back where it was."""
    lives = [Shard(config).start()]
    over = threading.Event()

    def launch() -> None:
        while not over.is_set():
            if lives[-1].wait_until_dead(0.01):
                lives.append(Shard(config).start())

    launcher = threading.Thread(target=launch)
    launcher.start()
    try:
        yield lives
    finally:
        over.set()
        launcher.join(30)
        lives[-1].stop()
