"""`tgi-probe simulate`: run a simulated shard, a router and their admin page until they are stopped."""

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

from exporter.simulator import options, router_options
from exporter.simulator.admin import Admin, Controlled, ServerGroup
from exporter.simulator.options import OptionError, config_from
from exporter.simulator.router import Router
from exporter.simulator.shard import Shard

_POLL_SECONDS = 0.1
_SWITCH_INTERVAL = 0.0005  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of all simulated servers."""
    options.add_arguments(parser)
    router_options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Answers the exit code: 0, 1 = a fatal error ended it, 2 = bad options."""
    try:
        config = config_from(arguments)
        router_config = router_options.config_from(arguments) if router_options.wanted(arguments) else None
    except OptionError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    shard = Shard(config) if router_config is None or options.listens(arguments) else None
    router = Router(router_config) if router_config else None
    # The router's servers send tokens to hundreds of streams, and the engine must wake up in time for the next pass.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        with contextlib.ExitStack() as stack, _stop_signals() as stopped:
            controlled: list[Controlled] = [server for server in (shard, router) if server is not None]
            together = (
                controlled[0]
                if len(controlled) == 1
                else ServerGroup({"shard": controlled[0], "router": controlled[1]})
            )
            admin = stack.enter_context(Admin(together, config.admin_address)) if config.admin_address else None
            left = _serve(shard, router, admin, stopped)
    except OSError as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 1
    print(left, flush=True)
    if shard is not None and shard.died is not None:
        print(f"simulate: a fatal error ended the shard: {shard.died}", file=sys.stderr)
        return 1
    return 0


def _serve(shard: Shard | None, router: Router | None, admin: Admin | None, stopped: list[int]) -> str:
    """Start, say where, wait for the end; answers the last line: what was in flight or kept."""
    with contextlib.ExitStack() as running:
        places = []
        if shard is not None:
            shard.start()
            running.callback(shard.stop)
            places += [f"shard rank {index} listens on {address}" for index, address in enumerate(shard.addresses)]
        if router is not None:
            router.start()
            running.callback(router.stop)
            scheme = "https" if router.config.tls else "http"
            places += [f"router http listens on {scheme}://{router.http}"] if router.http else []
            places += [f"router grpc listens on {router.grpc}"] if router.grpc else []
        places += [f"admin listens on http://{admin.address}"] if admin else []
        print("\n".join(places), flush=True)
        # A loop and not an Event: a signal handler may not wait for a lock that its own thread holds.
        while not stopped and not (shard is not None and shard.wait_until_dead(0)):
            time.sleep(_POLL_SECONDS)
        left = [f"requests in flight: {router.state()['in_flight']}"] if router is not None else []
    return "; ".join([f"batches left: {shard.left}", *left] if shard is not None else left)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT comes. Only the main thread gets signals; elsewhere it stays empty."""
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
