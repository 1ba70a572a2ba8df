"""Named points in a plane: as inline SVG for report pages, and where their names and ticks go in any other drawing.

Names are placed greedily, each where it covers least of points and names before it; the number of points is one that a
person could read, so a pass over a few dozen places for each costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from selection.histogram import edge_names, round_edges
from selection.pages import BOTTOM, LEFT, WIDTH, escape, svg
from selection.terminal import cut

HEIGHT, UP, FONT = 280, 20, 12
LETTER = 0.58  # of the font's size
AWAY = (0.55, 1.5, 2.5, 3.7)
SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
ZERO = 0.11
LONGEST = 24

Box = tuple[float, float, float, float]
"""Left, top, right, bottom; y grows downwards."""


@dataclass(frozen=True)
class Dot:
    """A point of a chart.

    Attributes:
        name: written beside it; words: all of what it stands for.
        best: whether it stands out.
    """

    name: str
    x: float
    y: float
    words: str
    best: bool = True


@dataclass(frozen=True)
class Label:
    """Where a name goes; `far` if so far from its point that a line should tie them."""

    box: Box
    far: bool

    def anchor(self, x: float) -> str:
        """The side of the box that is nearest to its point's x: ``start``, ``middle`` or ``end``."""
        return "start" if self.box[0] >= x else "end" if self.box[2] <= x else "middle"

    def at(self, anchor: str) -> float:
        return {"start": self.box[0], "end": self.box[2], "middle": (self.box[0] + self.box[2]) / 2}[anchor]


def scatter(
    dots: Sequence[Dot], title: str, across: str, up: str, logarithmic: bool = False, joined: bool = False
) -> str:
    """Points with their names as SVG.

    Args:
        dots: at least one.
        title: what they show, for those who do not see them.
        across, up: what the axes measure.
        logarithmic: whether x is.
        joined: draw a line through the best.
    """
    base = HEIGHT - BOTTOM
    edges = round_edges(min(dot.y for dot in dots), max(dot.y for dot in dots), 4, False)
    x_of, ticks = x_axis([dot.x for dot in dots], logarithmic, LEFT + 12, WIDTH - 20)

    def y_of(value: float) -> float:
        return _between(value, edges[0], edges[-1], base - 8, UP + 8)

    marks = [f'<text x="0" y="11">{escape(up)}</text>']
    for edge, name in zip(edges.tolist(), edge_names(edges), strict=True):
        y = y_of(edge)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
    for value, name in ticks:
        x = x_of(value)
        marks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        marks.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{name}</text>')
    marks.append(f'<text x="{(LEFT + WIDTH) / 2:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(across)}</text>')
    places = [(x_of(dot.x), y_of(dot.y)) for dot in dots]
    if joined:
        front = sorted(place for dot, place in zip(dots, places, strict=True) if dot.best)
        marks.append(f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in front)}"/>')
    names = place_names(dots, places, (LEFT + 2, UP - 6, WIDTH, base), FONT)
    drawn = [_drawn(*one) for one in zip(dots, places, names, strict=True)]
    return svg(HEIGHT, title, "".join([*marks, *(tie for tie, _ in drawn), *(mark for _, mark in drawn)]))


def _drawn(dot: Dot, place: tuple[float, float], name: Label) -> tuple[str, str]:
    """The line that ties a name to its point, where there is one; point and name."""
    (x, y), anchor, tie = place, name.anchor(place[0]), ""
    if name.far:
        end = min(max(x, name.box[0]), name.box[2]), min(max(y, name.box[1]), name.box[3])
        tie = f'<line class="tie" x1="{x:.1f}" y1="{y:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
    kind, ink, radius = ("mark", ' class="ink"', 4.5) if dot.best else ("rest", "", 3.5)
    return tie, (
        f"<g><title>{escape(dot.name)}: {escape(dot.words)}</title>"
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        f'<text{ink} x="{name.at(anchor):.1f}" y="{name.box[3] - 3:.1f}" text-anchor="{anchor}">'
        f"{escape(cut(dot.name, LONGEST))}</text></g>"
    )


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * (value - low) / (high - low)


def x_axis(
    values: Sequence[float], logarithmic: bool, start: float, end: float
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a value lies from `start` to `end`, and the ticks: value and name.

    On a logarithmic axis what costs nothing has a place of its own, left of the scale.
    """
    if not logarithmic or max(values) <= 0:
        edges = round_edges(min(values), max(values), 4, False)
        ticks = list(zip(edges.tolist(), edge_names(edges), strict=True))
        return lambda value: _between(value, edges[0], edges[-1], start, end), ticks
    zero, above = min(values) <= 0, [value for value in values if value > 0]
    first = start + ZERO * (end - start) * zero
    low, high = float(np.log10(min(above))), float(np.log10(max(above)))
    pad = max(0.06 * (high - low), 0.02)
    low, high = low - pad, high + pad
    named = [(0.0, "0")] * zero + [(value, _compact(value)) for value in _ticks(low, high)]
    return lambda value: start if value <= 0 else _between(float(np.log10(value)), low, high, first, end), named


def _ticks(low: float, high: float) -> list[float]:
    """At most 5 round numbers between two powers of ten."""
    decades = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), ()):
        found = np.multiply.outer(decades, steps).ravel() if steps else round_edges(10**low, 10**high, 4, False)
        found = found[(found >= 10**low) & (found <= 10**high)]
        if len(found) >= 3:
            break
    ticks: list[float] = found[:: max(-(-len(found) // 5), 1)].tolist()
    return ticks


def _compact(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def place_names(dots: Sequence[Dot], places: Sequence[tuple[float, float]], within: Box, font: float) -> list[Label]:
    """Where the names of points go; the best choose first.

    Args:
        places: of the points; y grows downwards.
        within: where names may lie.
        font: size of the letters, in the units of `places`.
    """
    half = 0.4 * font
    taken = [(x - half, y - half, x + half, y + half) for x, y in places]
    found: dict[int, Label] = {}
    for at in sorted(range(len(dots)), key=lambda at: (not dots[at].best, places[at])):
        size = LETTER * font * len(cut(dots[at].name, LONGEST)), 1.15 * font
        found[at] = _free_place(places[at], size, np.array(taken), within, font)
        taken.append(found[at].box)
    return [found[at] for at in range(len(dots))]


def _free_place(
    place: tuple[float, float], size: tuple[float, float], taken: np.ndarray, within: Box, font: float
) -> Label:
    (x, y), (width, height) = place, size
    best: tuple[float, Label] | None = None
    for away in AWAY:
        for side, rise in SIDES:
            left = min(max(x + side * away * font - width * (1 - side) / 2, within[0]), within[2] - width)
            top = y - height / 2 + rise * (away * font + height / 6)
            top = min(max(top, within[1]), within[3] - height)
            over = np.minimum(left + width, taken[:, 2]) - np.maximum(left, taken[:, 0])
            high = np.minimum(top + height, taken[:, 3]) - np.maximum(top, taken[:, 1])
            covered = float((over.clip(0) * high.clip(0)).sum())
            cost = 10 * covered / font + away * font + abs(side * rise)
            if best is None or cost < best[0]:
                best = cost, Label((left, top, left + width, top + height), away > AWAY[0])
    assert best is not None
    return best[1]
