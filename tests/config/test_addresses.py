"""One address has many spellings; which of them are the same is known without asking the system."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config.notation import canonical_address

PORTS = st.integers(1, 65535)


def spellings_of_v4(number: int) -> list[str]:
    a, b, c, d = number.to_bytes(4, "big")
    return [
        f"{a}.{b}.{c}.{d}",
        f"{a}.{b}.{c}.{d}.",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0x{a:x}.0X{b:X}.{c}.{d}",
        f"{a}.{b}.{c << 8 | d}",
        f"{a}.{number & 0xFFFFFF}",
        f"{number}",
        f"0x{number:08x}",
        f"[::ffff:{a}.{b}.{c}.{d}]",
        f"[::FFFF:{number >> 16:x}:{number & 0xFFFF:04X}]",
    ]


@given(st.integers(0, 2**32 - 1), PORTS)
def test_an_ipv4_address_is_the_same_in_all_its_forms(number: int, port: int) -> None:
    found = {canonical_address(f"{host}:{port:05}") for host in spellings_of_v4(number)}
    assert len(found) == 1
    if number not in (0, 0x7F000001):
        assert found == {f"{IPv4Address(number)}:{port}"}


@given(st.integers(2, 2**128 - 1).filter(lambda number: number >> 32 != 0xFFFF), PORTS)
def test_an_ipv6_address_is_the_same_short_and_long(number: int, port: int) -> None:
    address = IPv6Address(number)
    found = {canonical_address(f"[{host}]:{port}") for host in (address, address.exploded, address.exploded.upper())}
    assert found == {f"{address}:{port}"}


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost", "localhost.", "a.localhost", "ip6-localhost"),
        *("127.0.0.1", "127.1", "0.0.0.0", "0", "[::1]", "[0:0::1]", "[::]"),
    ],
)
def test_this_machine_has_many_names(host: str) -> None:
    assert canonical_address(f"{host}:80") == "localhost:80"


@pytest.mark.parametrize(
    "host", ["gpu-1", "localhost.example.com", "notlocalhost", "127.0.0.2", "[::2]", "1.2.3.4.5", "08.1.1.1", "1..2"]
)
def test_another_name_is_another_host(host: str) -> None:
    assert canonical_address(f"{host}:80") != "localhost:80"


@pytest.mark.parametrize("path", ["unix:/a/b", "unix:///a/b", "unix:////a//b", "unix:///./a/./b"])
def test_a_socket_has_one_path(path: str) -> None:
    assert canonical_address(path) == "unix:/a/b"


def test_a_path_is_not_shortened_past_a_folder_that_may_be_a_link() -> None:
    assert canonical_address("unix:///a/../b") == "unix:/a/../b"


@given(st.text(st.sampled_from("0123456789xX.abf-"), min_size=1, max_size=30), PORTS)
def test_any_host_that_can_be_written_has_a_form(host: str, port: int) -> None:
    assert canonical_address(f"{host}:{port}").endswith(f":{port}")
    assert canonical_address(canonical_address(f"{host}:{port}")) == canonical_address(f"{host}:{port}")
