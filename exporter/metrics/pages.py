"""The page /metrics in small parts; the text formats byte for byte as prometheus_client would write them.

A page is of one instant: it is made while writes wait, and kept compressed until it is sent, so a slow client delays
nobody and takes little memory. Between two groups the maker may pause, for threads that measure. The few families of
the process are written by prometheus_client.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import prometheus_client
from prometheus_client.openmetrics import exposition as openmetrics

from exporter.metrics import lines, messages
from exporter.metrics.collector import Registry
from exporter.metrics.families import Family
from exporter.metrics.formats import Format

# A part handed to the network: large enough that few calls are made, small enough that it is soon made.
PART_BYTES = 65_536
# zlib's name for a window with a gzip header around it (RFC 1952).
GZIP = 16 + zlib.MAX_WBITS
# These lines repeat themselves so much that more effort gains a tenth.
LEVEL = 1
# Called between two groups; see `pauses`.
Pause = Callable[[], None]


def no_pause() -> None:
    """Where no other thread measures."""


def gzip_page(registry: Registry, form: Format, pause: Pause = no_pause) -> Iterator[bytes]:
    """The whole page as one gzip member, in parts of PART_BYTES. It does nothing before the first part is asked for."""
    gzip = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    packed = bytearray()
    with registry.probes.writes.held():
        for text in _texts(registry, form, pause):
            packed += gzip.compress(text)
            pause()
    packed += gzip.flush()
    for begin in range(0, len(packed), PART_BYTES):
        yield bytes(packed[begin : begin + PART_BYTES])


def page(registry: Registry, form: Format, pause: Pause = no_pause) -> Iterator[bytes]:
    """The same as it is."""
    gzip = zlib.decompressobj(GZIP)
    for packed in gzip_page(registry, form, pause):
        while packed:
            yield gzip.decompress(packed, PART_BYTES)
            packed = gzip.unconsumed_tail
            pause()


def _texts(registry: Registry, form: Format, pause: Pause) -> Iterator[bytes]:
    for family in registry.probes.families:
        match form.syntax:
            case "plain":
                yield from _plain(family)
            case "openmetrics":
                yield lines.head(family, openmetrics=True)
                for group in family.groups.values():
                    yield lines.of_group(family, group, openmetrics=True)
            case "protobuf":
                groups = []
                for group in family.groups.values():
                    groups.append(messages.of_group(group, registry.probes.native))
                    pause()
                yield messages.head(family, sum(map(len, groups)))
                yield from groups
    yield _of_process(registry, form)


def _plain(family: Family[Any]) -> Iterator[bytes]:
    """Here the starts of series are a family of their own."""
    yield lines.head(family, openmetrics=False)
    for group in family.groups.values():
        yield lines.of_group(family, group, openmetrics=False)
    if family.has_start and family.groups:
        yield lines.head_of_starts(family)
        for group in family.groups.values():
            yield lines.of_starts(family, group)


def _of_process(registry: Registry, form: Format) -> bytes:
    """In OpenMetrics with the mark of the page's end."""
    match form.syntax:
        case "protobuf":
            return messages.of_others(registry.process.collect())
        case "openmetrics":
            return bytes(openmetrics.generate_latest(registry.process))  # type: ignore[no-untyped-call]
        case "plain":
            return prometheus_client.generate_latest(registry.process)
