"""Servers without a GPU: a simulated TGI shard over real gRPC, to try dashboards and alerts on, and to test probes.

    options ─► Config ─► Shard ─► one Rank per address ─► Batches (what is kept) + Roofline (how long it takes)
                           ▲
                 Admin (HTTP: look, slow down, break, restart)

Only shard.py imports grpc. Another kind of simulated server is another file beside it, over the same roofline, with the
methods of `admin.Controlled`.
"""

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

from exporter.simulator.admin import Admin
from exporter.simulator.batches import Batches
from exporter.simulator.faults import Fault
from exporter.simulator.options import Config, OptionError, add_arguments, config_from
from exporter.simulator.record import Served
from exporter.simulator.roofline import GPUS, MODELS, Gpu, Model, Roofline
from exporter.simulator.shard import Shard

__all__ = [
    "GPUS",
    "MODELS",
    "Admin",
    "Batches",
    "Config",
    "Fault",
    "Gpu",
    "Model",
    "OptionError",
    "Roofline",
    "Served",
    "Shard",
    "add_arguments",
    "config_from",
    "run",
]

_LOOK_EVERY = 0.1  # seconds


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Answers the exit code: 0, 1 = a fatal mistake ended it, 2 = bad options."""
    try:
        config = config_from(arguments)
    except OptionError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    try:
        with contextlib.ExitStack() as stack, _stop_signals() as stopped:
            shard = Shard(config)
            admin = stack.enter_context(Admin(shard, config.admin_address)) if config.admin_address else None
            shard.start()
            for index, address in enumerate(shard.addresses):
                print(f"shard rank {index} listens on {address}", flush=True)
            if admin:
                print(f"admin listens on http://{admin.address}", flush=True)
            # A loop and not an Event: a signal handler may not wait for a lock that its own thread holds.
            while not stopped and not shard.wait_until_dead(0):
                time.sleep(_LOOK_EVERY)
            left = shard.stop()
    except OSError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 1
    print(f"batches left: {left}", flush=True)
    if shard.died is not None:
        print(f"simulate: a fatal mistake ended the shard: {shard.died}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list which fills once SIGTERM or SIGINT comes; only the main thread can be told, elsewhere it stays empty."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
