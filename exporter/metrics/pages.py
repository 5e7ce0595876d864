"""The page /metrics, byte for byte as prometheus_client would write it, in small parts.

The lines of a histogram, and those of a target in a family, are kept compressed until a value changes. The compressed
page is the concatenation of these blocks; a plain page is what they decompress to, which is faster than to write the
lines anew. The few families of the process are written by prometheus_client each time.

A page is of one instant: its blocks are made while writes wait, and sent afterwards, so a slow client delays nobody.
Between two blocks the maker may pause, for threads that measure.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import prometheus_client
from prometheus_client.openmetrics import exposition as openmetrics

from exporter.metrics import lines
from exporter.metrics.blocks import Block, compress, decompress, gzip_member, joined
from exporter.metrics.collector import Registry
from exporter.metrics.families import ChildGroup, Family
from exporter.metrics.formats import OPENMETRICS, Format
from exporter.metrics.histogram import HistogramChild

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
            _group_block(family, group, OPENMETRICS, pause)
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
        blocks = []
        for family in registry.probes.families:
            blocks.append(_constant(lines.head(family, form)))
            for group in family.groups.values():
                blocks.append(_group_block(family, group, form, pause))
                pause()
        blocks.append(compress(0, _of_process(registry, form)))
    return blocks


def _of_process(registry: Registry, form: Format) -> bytes:
    """With OpenMetrics' mark of the page's end."""
    if form.openmetrics:
        return bytes(openmetrics.generate_latest(registry.process))  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry.process)


def _group_block(family: Family[Any], group: ChildGroup[Any], form: Format, pause: Pause) -> Block:
    """A target's lines of a family. Lines that have not changed are not made anew."""
    version = group.changes.count
    kept = group.blocks.get(form.openmetrics)
    if kept is not None and kept.version == version:
        return kept
    if family.kind == "histogram":
        blocks = []
        for child in group.children.values():
            blocks.append(_histogram_block(family.name, child, form))
            pause()
        kept = joined(version, blocks)
    else:
        kept = compress(version, lines.of_numbers(group))
    group.blocks[form.openmetrics] = kept
    return kept


def _histogram_block(name: str, child: HistogramChild, form: Format) -> Block:
    # Both formats have the same lines until there are exemplars, which only OpenMetrics has.
    with_exemplars = form.openmetrics and bool(child.exemplars)
    kept = child.blocks.get(with_exemplars)
    if kept is None or kept.version != child.version:
        kept = child.blocks[with_exemplars] = compress(child.version, lines.of_histogram(name, child, with_exemplars))
    return kept


@lru_cache(maxsize=256)
def _constant(text: bytes) -> Block:
    return compress(0, text)
