"""Compressed text in blocks that are put together to one gzip member. Pure.

A block is one or more whole blocks of a DEFLATE stream (RFC 1951) that refer to nothing outside. So the compressed page
is their concatenation, and its CRC-32 follows from theirs, without its text being read again.
"""

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
LAST_BLOCK = b"\x03\x00"


@dataclass(frozen=True, slots=True)
class Block:
    """Compressed text, with the CRC-32 and the length of the text. `version` is that of what the text shows."""

    version: int
    data: bytes
    checksum: int
    length: int


def compress(version: int, text: bytes) -> Block:
    """Ends at a byte, and is not the stream's last one."""
    # Level 1: these lines repeat themselves so much that more effort gains a tenth. Small tables: a text has a few kB.
    stream = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 5)
    return Block(version, stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH), zlib.crc32(text), len(text))


def decompress(block: Block, part_bytes: int) -> Iterator[bytes]:
    """The text, in parts of at most so many bytes."""
    stream, rest = zlib.decompressobj(-zlib.MAX_WBITS), block.data
    while rest:
        yield stream.decompress(rest, part_bytes)
        rest = stream.unconsumed_tail


def gzip_member(blocks: Iterable[Block]) -> Iterator[bytes]:
    """The parts of one gzip member (RFC 1952)."""
    yield GZIP_HEADER
    checksum = length = 0
    for block in blocks:
        yield block.data
        checksum = combined(checksum, block.checksum, block.length)
        length += block.length
    yield LAST_BLOCK + struct.pack("<II", checksum, length & 0xFFFFFFFF)


# --- the CRC-32 of two texts together

POLYNOMIAL = 0xEDB88320
HIGHEST = 0x80000000  # the polynomial 1: the lowest power stands in the highest bit


def combined(first: int, second: int, second_length: int) -> int:
    """The CRC-32 of two texts one after the other, from the CRC-32 of each.

    A CRC is a remainder of polynomials over GF(2): to put `n` bytes after a text is to multiply by x^(8n). That is done
    byte by byte of `n`, so that few products are ever needed, however many lengths there are.
    """
    place = 0
    while second_length:
        if byte := second_length & 255:
            table = _products(place, byte)
            first = (
                (table[first & 15] ^ table[16 | first >> 4 & 15])
                ^ (table[32 | first >> 8 & 15] ^ table[48 | first >> 12 & 15])
                ^ (table[64 | first >> 16 & 15] ^ table[80 | first >> 20 & 15])
                ^ (table[96 | first >> 24 & 15] ^ table[112 | first >> 28])
            )
        second_length >>= 8
        place += 8
    return first ^ second


@lru_cache(maxsize=1024)
def _products(place: int, byte: int) -> "array[int]":
    """Products with x^(8 · byte · 2^place): for each of eight half bytes of the other factor, each of its 16 values.

    An array, not tuples of numbers, which take ten times as much memory.
    """
    power = _power_of_x(8 * byte << place)
    products = []
    for _ in range(32):
        products.append(power)
        power = power >> 1 ^ POLYNOMIAL if power & 1 else power >> 1
    products.reverse()  # the product with each single bit, from the lowest bit on
    tables = array("I")
    for at in range(0, 32, 4):
        table = [0]
        for product in products[at : at + 4]:
            table += [entry ^ product for entry in table]
        tables.extend(table)
    return tables


def _power_of_x(exponent: int) -> int:
    power, square = HIGHEST, HIGHEST >> 1  # 1 and x
    while exponent:
        if exponent & 1:
            power = _product(power, square)
        square = _product(square, square)
        exponent >>= 1
    return power


def _product(a: int, b: int) -> int:
    """a × b modulo the polynomial."""
    product = 0
    while a:
        if a & HIGHEST:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ POLYNOMIAL if b & 1 else b >> 1
    return product
