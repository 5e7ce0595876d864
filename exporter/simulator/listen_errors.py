"""Why a simulated server cannot listen on its address."""

import errno
import os
import socket

from exporter.simulator.options import host_and_port


def cannot_listen(address: str, error: OSError | None = None) -> OSError:
    """The error with the address and the system's reason; `address` is unix:///path or host:port.

    Without an `error`, as from gRPC, which gives no reason, a socket of ours is tried on the address.
    """
    error = error or _refusal(address)
    if error is None:
        return OSError(f"cannot listen on {address}")
    # asyncio adds the address to the system's words.
    number = error.errno or 0
    why = os.strerror(number) if number in errno.errorcode else error.strerror or error
    return OSError(f"cannot listen on {address}: {why}")


def _refusal(address: str) -> OSError | None:
    try:
        if not address.startswith("unix:"):
            host, port = host_and_port(address)
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host.strip("[]"), port), family=family).close()
            return None
        path = address.removeprefix("unix:").removeprefix("//")
        with socket.socket(socket.AF_UNIX) as tried:
            tried.bind(path)
        os.unlink(path)
    except OSError as error:
        return error
    return None
