"""A socket may have any name that a file can have."""

import socket
from pathlib import Path
from typing import Any

import grpc
import pytest

from exporter.probes.shard.channel import open_channel


@pytest.mark.parametrize("name", ["shard-0", "a b", "a%20b", "a%b", "a?b", "a#b", "a:b", "ü"])
def test_the_socket_that_is_named_is_the_one_that_is_connected_to(name: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / name))
        listener.listen()
        with open_channel(f"unix://{tmp_path}/{name}") as channel:
            call: Any = channel.unary_unary("/service/Call")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=0.5)
        listener.setblocking(False)
        listener.accept()[0].close()
