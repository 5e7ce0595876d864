"""Slow and greedy HTTP clients in a process of their own: `python -m benchmarks.attackers KIND COUNT PORT`.

It prints `ready` and ends with its input.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress


def slow(port: int) -> None:
    """A request that gets one more byte each second and never ends; a connection that was closed is made anew."""
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")
            while True:
                time.sleep(1)
                client.sendall(b"a")
        time.sleep(0.1)


def greedy(port: int) -> None:
    """Pages one after the other, each on a new connection."""
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while client.recv(65536):
                pass


ATTACKS: dict[str, Callable[[int], None]] = {"slow": slow, "greedy": greedy}


def main() -> None:
    attack, count, port = ATTACKS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    for _ in range(count):
        threading.Thread(target=attack, args=(port,), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
