"""The text of /metrics, byte for byte as prometheus_client would write it, in both formats, in small parts.

A histogram's lines are made with one `join`, and kept compressed until it changes: what did not change is not even
looked at. Such pieces are whole blocks of one DEFLATE stream. So a page as Prometheus asks for it, compressed, is their
concatenation, and its checksum follows from theirs; a plain page is what they unpack to, faster than the lines could be
written anew. No piece takes long, and between two of them others may have the interpreter and the processor.

A page shows one instant. Its pieces are made while the registry is held, one page at a time; a client that takes its
page slowly holds nothing.
"""

import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from exporter.metrics.instruments import Exemplar, Family, Group, Histogram, Piece, Registry, go_number, pair

# A part handed to the network: large enough that few calls are made, small enough that it is soon made.
PART_BYTES = 65_536
PLAIN_BELOW = 1_000_000
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
LAST_BLOCK = b"\x03\x00"
# Called between two pieces, for whoever wants to let others have the processor: see `breath`.
Breathe = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Format:
    content_type: str
    openmetrics: bool = False


PLAIN_0_0_4 = Format("text/plain; version=0.0.4; charset=utf-8")
PLAIN_1_0_0 = Format("text/plain; version=1.0.0; charset=utf-8; escaping=underscores")
OPENMETRICS = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics=True)


# --- a page


def without_a_break() -> None:
    """Where nobody is measured."""


def page(registry: Registry, form: Format, breathe: Breathe = without_a_break) -> Iterator[bytes]:
    """The whole page in parts of about PART_BYTES."""
    return _in_parts(_unpacked(registry, form, breathe))


def gzip_page(registry: Registry, form: Format, breathe: Breathe = without_a_break) -> Iterator[bytes]:
    """The same, as one gzip member."""
    return _in_parts(_packed(registry, form, breathe))


def prepare(registry: Registry, breathe: Breathe = without_a_break) -> None:
    """Make what is missing for a page as Prometheus asks for it: the first one has every line to write.

    The registry is not held: that would keep records waiting for long, and nobody sees these pieces together.
    """
    with registry.writes.held():  # series that were just announced may have waited for a page
        registry.refresh()
    for _ in _made(registry, OPENMETRICS, breathe):
        pass


def _in_parts(texts: Iterable[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= PART_BYTES:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    yield b"".join(waiting)


def _unpacked(registry: Registry, form: Format, breathe: Breathe) -> Iterator[bytes]:
    for piece in _pieces(registry, form, breathe):
        stream, rest = zlib.decompressobj(-zlib.MAX_WBITS), piece.data
        while rest:
            yield stream.decompress(rest, PART_BYTES)
            rest = stream.unconsumed_tail
            breathe()


def _packed(registry: Registry, form: Format, breathe: Breathe) -> Iterator[bytes]:
    yield GZIP_HEADER
    checksum = length = 0
    for piece in _pieces(registry, form, breathe):
        yield piece.data
        checksum = combined(checksum, piece.checksum, piece.length)
        length += piece.length
    yield LAST_BLOCK + struct.pack("<II", checksum, length & 0xFFFFFFFF)


def _pieces(registry: Registry, form: Format, breathe: Breathe) -> list[Piece]:
    with registry.writes.held():
        registry.refresh()
        return list(_made(registry, form, breathe))


def _made(registry: Registry, form: Format, breathe: Breathe) -> Iterator[Piece]:
    for family in registry.families:
        yield _constant(head(family, form))
        for group in list(family.groups.values()):
            yield _group_piece(family, group, form, breathe)
            breathe()
    yield _constant(tail(form))


def _group_piece(family: Family[Any], group: Group[Any], form: Format, breathe: Breathe) -> Piece:
    """A target's lines of a family, from the cache as far as nothing has changed."""
    version = group.changes.count
    kept = group.pieces.get(form.openmetrics)
    if kept is not None and kept.version == version:
        return kept
    if family.kind == "histogram":
        pieces = []
        for child in list(group.children.values()):
            pieces.append(_histogram_piece(family, child, group, form))
            breathe()
        kept = joined(version, pieces)
    else:
        kept = compress(*_values(group))
    group.pieces[form.openmetrics] = kept
    return kept


def _histogram_piece(family: Family[Any], child: Histogram, group: Group[Any], form: Format) -> Piece:
    # Both formats have the same lines until there are exemplars, which only OpenMetrics knows.
    special = form.openmetrics and bool(child.exemplars)
    kept = child.pieces.get(special)
    if kept is None or kept.version != child.version:
        kept = child.pieces[special] = compress(*_histogram(family, child, group, special))
    return kept


# --- lines


def head(family: Family[Any], form: Format) -> bytes:
    """The HELP and TYPE lines."""
    name = family.name if form.openmetrics else family.sample_name
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if form.openmetrics:
        text = text.replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {family.kind}\n".encode()


def tail(form: Format) -> bytes:
    """OpenMetrics' mark of a whole page."""
    return b"# EOF\n" if form.openmetrics else b""


def _values(group: Group[Any]) -> tuple[int, bytes]:
    """Lines of counters, gauges or summaries, and the version that they show."""
    with group.changes.lock:
        version = group.changes.count
        readings = [reading for child in group.children.values() for reading in child.readings()]
    return version, "".join([f"{prefix}{number(value)}\n" for prefix, value in readings]).encode(errors="replace")


def _histogram(family: Family[Any], child: Histogram, group: Group[Any], with_exemplars: bool) -> tuple[int, bytes]:
    """All lines of one histogram, and the version that they show."""
    with group.changes.lock:
        version = child.version
        counts = list(accumulate(child.counts))
        total = child.sum
        exemplars = dict(child.exemplars) if with_exemplars else {}
    count = counts[-1]
    words = [f"{n}.0" for n in counts] if count < PLAIN_BELOW else [number(n) for n in counts]
    last = words[-1]
    for place, exemplar in exemplars.items():
        words[place] += _exemplar(exemplar)
    before, after, labels = child.surround
    lines = [f"{family.name}_bucket{before}", "", after, "", "\n"] * len(words)
    lines[1::5] = child.edge_texts
    lines[3::5] = words
    lines.append(f"{family.name}_count{labels} {last}\n{family.name}_sum{labels} {number(total)}\n")
    return version, "".join(lines).encode(errors="replace")


def _exemplar(exemplar: Exemplar) -> str:
    labels = ",".join(map(pair, sorted(exemplar.labels.items())))  # each is another: none is kept
    return f" # {{{labels}}} {go_number(exemplar.value)} {exemplar.timestamp}"


def number(value: float) -> str:
    """`go_number`, fast where Go prints as Python does."""
    return repr(float(value)) if -PLAIN_BELOW < value < PLAIN_BELOW else go_number(value)


# --- compressed pieces


def compress(version: int, text: bytes) -> Piece:
    """Blocks of a raw DEFLATE stream that end at a byte, refer to nothing before them, and are not the last ones."""
    # Level 1: these lines repeat themselves so much that more effort gains a tenth. Small tables: a piece is a few kB.
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 5)
    return Piece(version, squeeze.compress(text) + squeeze.flush(zlib.Z_SYNC_FLUSH), zlib.crc32(text), len(text))


@lru_cache(maxsize=256)
def _constant(text: bytes) -> Piece:
    return compress(0, text)


def joined(version: int, pieces: list[Piece]) -> Piece:
    checksum = length = 0
    for piece in pieces:
        checksum = combined(checksum, piece.checksum, piece.length)
        length += piece.length
    return Piece(version, b"".join([piece.data for piece in pieces]), checksum, length)


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
