"""The page /metrics, byte for byte as prometheus_client would write it, in small parts.

The lines of a histogram, and those of a target in a family, are kept compressed until a value changes. The compressed
page is the concatenation of these blocks; a plain page is what they decompress to, which is faster than to write the
lines anew. The few families of the process are written by prometheus_client each time.

A page is of one instant: its blocks are made while writes wait, and sent afterwards, so a slow client delays nobody.
Between two blocks the maker may pause, for threads that measure.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal

import prometheus_client
from prometheus_client.openmetrics import exposition as openmetrics

from exporter.metrics import lines, messages
from exporter.metrics.blocks import Block, compress, decompress, gzip_member
from exporter.metrics.collector import Registry
from exporter.metrics.families import ChildGroup, Family
from exporter.metrics.formats import OPENMETRICS, Format, Syntax

# A part handed to the network: large enough that few calls are made, small enough that it is soon made.
PART_BYTES = 65_536
# Called between two blocks; see `pauses`.
Pause = Callable[[], None]


def no_pause() -> None:
    """Where no other thread measures."""


def page(registry: Registry, form: Format, pause: Pause = no_pause) -> Iterator[bytes]:
    """The whole page in parts of about PART_BYTES."""
    return _in_parts(_texts(registry, form, pause))


def gzip_page(registry: Registry, form: Format, pause: Pause = no_pause) -> Iterator[bytes]:
    """The same, as one gzip member. Like `page` it does nothing before its first part is asked for."""
    yield from _in_parts(gzip_member(_blocks(registry, form, pause)))


def prepare(registry: Registry, pause: Pause = no_pause) -> None:
    """Make the blocks that are missing for a page as Prometheus asks for it: at the start, all of them.

    Writes wait for one block only, not for all: nobody sees these together.
    """
    with registry.probes.writes.held():  # series that were just announced may have waited for a page
        groups = [(family, group) for family in registry.probes.families for group in family.groups.values()]
    for family, group in groups:
        with registry.probes.writes.held():
            _of_group(registry, family, group, OPENMETRICS.syntax)
        pause()


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


def _texts(registry: Registry, form: Format, pause: Pause) -> Iterator[bytes]:
    for block in _blocks(registry, form, pause):
        for text in decompress(block, PART_BYTES):
            yield text
            pause()


def _blocks(registry: Registry, form: Format, pause: Pause) -> list[Block]:
    with registry.probes.writes.held():
        blocks: list[Block] = []
        for family in registry.probes.families:
            blocks += _of_family(registry, family, form, pause)
        blocks.append(compress(0, _of_process(registry, form)))
    return blocks


def _of_family(registry: Registry, family: Family[Any], form: Format, pause: Pause) -> Iterator[Block]:
    groups = []
    for group in family.groups.values():
        groups.append(_of_group(registry, family, group, form.syntax))
        pause()
    match form.syntax:
        case "protobuf":
            yield compress(0, messages.head(family, sum(block.length for block in groups)))
        case syntax:
            yield _constant(lines.head(family, syntax == "openmetrics"))
    yield from groups
    if form.syntax == "plain" and family.has_start and groups:
        yield _constant(lines.head_of_starts(family))
        for group in family.groups.values():
            yield _of_group(registry, family, group, "starts")
            pause()


def _of_group(
    registry: Registry, family: Family[Any], group: ChildGroup[Any], part: Syntax | Literal["starts"]
) -> Block:
    """A target's part of a family. What has not changed is not made anew."""
    version = group.changes.count
    kept = group.blocks.get(part)
    if kept is None or kept.version != version:
        kept = group.blocks[part] = compress(version, _text(registry, family, group, part))
    return kept


def _text(registry: Registry, family: Family[Any], group: ChildGroup[Any], part: Syntax | Literal["starts"]) -> bytes:
    match part:
        case "protobuf":
            return messages.of_group(group, registry.probes.native)
        case "starts":
            return lines.of_starts(family, group)
        case syntax:
            return lines.of_group(family, group, syntax == "openmetrics")


def _of_process(registry: Registry, form: Format) -> bytes:
    """In OpenMetrics with the mark of the page's end."""
    match form.syntax:
        case "protobuf":
            return messages.of_others(registry.process.collect())
        case "openmetrics":
            return bytes(openmetrics.generate_latest(registry.process))  # type: ignore[no-untyped-call]
        case "plain":
            return prometheus_client.generate_latest(registry.process)


@lru_cache(maxsize=256)
def _constant(text: bytes) -> Block:
    return compress(0, text)
