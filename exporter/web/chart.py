"""A scatter chart as inline SVG: throughput over latency, a point for each batch size, a line for each series. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 12, 30
# Okabe and Ito's colours; the dashes tell series apart without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")
RADIUS, DIGIT, LETTER_HEIGHT = 4, 7, 9
# A point's batch size is written on the first of these sides where it covers nothing. With too many points only the
# first is tried: no side is free, and looking takes long.
SIDES = ((6, -6, "start"), (-6, -6, "end"), (6, 14, "start"), (-6, 14, "end"))
MAX_PLACED_LABELS = 150


@dataclass(frozen=True, slots=True)
class Point:
    """One probe: `x` the latency in milliseconds, `y` the throughput in tokens per second."""

    series: str
    batch_size: int
    x: float
    y: float


Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class LabelBox:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "LabelBox") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _labels(places: Sequence[Place], texts: Sequence[str]) -> Iterator[str]:
    """The element of each text, on the first side of its point where it covers no other text and no point, else on
    the first.
    """
    sides = SIDES if len(places) <= MAX_PLACED_LABELS else SIDES[:1]
    taken = [LabelBox(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in places]
    for point, text in zip(places, texts, strict=True):
        labels = [_label(side, point, text) for side in sides]
        box, element = next((one for one in labels if _is_free(one[0], taken)), labels[0])
        taken.append(box)
        yield element


def _label(side: tuple[int, int, str], point: Place, text: str) -> tuple[LabelBox, str]:
    x, y, wide = round(point[0] + side[0], 1), round(point[1] + side[1], 1), DIGIT * len(text)
    left = x if side[2] == "start" else x - wide
    element = f'<text class="label" x="{x}" y="{y}" text-anchor="{side[2]}">{text}</text>'
    return LabelBox(left, y - LETTER_HEIGHT, left + wide, y), element


def _is_free(box: LabelBox, taken: Sequence[LabelBox]) -> bool:
    inside = box.left >= 0 and box.right <= WIDTH and box.top >= 0 and box.bottom <= HEIGHT - BOTTOM
    return inside and not any(box.meets(other) for other in taken)


def scatter(title: str, points: Sequence[Point]) -> str:
    """The HTML of a figure; empty when there are no points."""
    if not points:
        return ""
    xs, ys = ticks(max(point.x for point in points)), ticks(max(point.y for point in points))

    def place(x: float, y: float) -> Place:
        return (
            round(LEFT + x / xs[-1] * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - y / ys[-1] * (HEIGHT - TOP - BOTTOM), 1),
        )

    parts = []
    for x in xs:
        across, _ = place(x, 0)
        parts.append(f'<line class="axis" x1="{across}" x2="{across}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{across}" y="{HEIGHT - 10}" text-anchor="middle">{_tick(x)}</text>')
    for y in ys:
        _, down = place(0, y)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down + 4}" text-anchor="end">{_tick(y)}</text>')
    points = sorted(points, key=lambda point: (point.series, point.batch_size))
    places = [place(point.x, point.y) for point in points]
    names = dict.fromkeys(point.series for point in points)
    styles = dict(zip(names, cycle(zip(COLOURS, DASHES, strict=True))))
    for name, (colour, dash) in styles.items():
        path = " ".join(f"{x},{y}" for point, (x, y) in zip(points, places, strict=True) if point.series == name)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-dasharray="{dash}"/>')
    labels = _labels(places, [str(point.batch_size) for point in points])
    for point, (x, y), label in zip(points, places, labels, strict=True):
        name = f"{point.series}, batch size {point.batch_size}: {point.y:,.0f} tokens/s at {point.x:,.1f} ms"
        circle = f'<circle cx="{x}" cy="{y}" r="{RADIUS}" fill="{styles[point.series][0]}">'
        parts.append(f"{circle}<title>{escape(name)}</title></circle>{label}")
    legend = " · ".join(f'<span style="color:{colour}">●</span> {escape(name)}' for name, (colour, _) in styles.items())
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="dim">{legend}</div></figure>'
    )


def _tick(value: float) -> str:
    """A number short enough for the axis."""
    return f"{value:,g}" if value < 1e6 else f"{value / 1e6:,g} M"


def ticks(largest: float) -> tuple[float, ...]:
    """Four to six round values, from 0 to at least `largest`."""
    if not largest > 0:
        return 0.0, 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(step for step in (0.2, 0.5, 1.0, 2.0, 2.5) if math.ceil(largest / power / step) <= 5) * power
    count = max(1, math.ceil(largest / step))
    return tuple(float(f"{number * step:.12g}") for number in range(count + 1))
