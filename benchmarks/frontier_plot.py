"""The frontier as a picture: gain in F1 against seconds of selection, tokens of pretraining and masked-LM loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptation.phases import UNGUARDED
from benchmarks.grid import Point, pareto, points
from benchmarks.results import Row
from benchmarks.scatter import LONGEST, Dot, place_names, x_axis
from selection.terminal import cut
from selection.wording import human_seconds, mean_and_sd

FONT = 8

AXES = (
    ("selection", "seconds of selection, index there", True),
    ("selection_cold", "seconds of selection, corpus not yet embedded", True),
    ("compute", "seconds of selection and masked-LM training", True),
    ("tokens", "tokens of masked-LM training", True),
    ("loss", "masked-LM loss on dev texts, nats", False),
)


def plot_frontier(rows: Sequence[Row], path: Path) -> None:
    """Mean F1 against each cost of `AXES`, a panel each; the Pareto front is drawn as a line.

    Args:
        rows: of one grid; phases without the leak guard are left out.
        path: .png, .svg or .pdf.
    """
    from matplotlib.figure import Figure

    from selection.plotting import save

    found = points([row for row in rows if UNGUARDED not in row["phase"]])
    figure = Figure(figsize=(11, 12), layout="constrained")
    panels = []
    for number, (axis, title, logarithmic) in enumerate(AXES):
        drawn = [p for p in found if axis in p.cost]
        if drawn:
            axes = figure.add_subplot(3, 2, number + 1)
            axes.set_xlabel(title)
            panels.append((axes, dots_of(drawn, axis, logarithmic), _draw(axes, drawn, axis, logarithmic)))
    spread = [p.sd for p in found if p.sd is not None]
    if spread:
        figure.suptitle(f"blue: none cheaper is as good; standard deviation of a seed about {np.mean(spread):.1f}")
    figure.draw_without_rendering()  # names go where there is room, which the layout decides
    figure.set_layout_engine("none")
    for axes, dots, places in panels:
        _name(axes, dots, places)
    save(figure, path)


def dots_of(found: Sequence[Point], axis: str, logarithmic: bool) -> list[Dot]:
    """Points for a chart, without ``-TAPT`` in their names; on a cost's axis the front stands out, else all do."""
    front = {p.phase for p in (pareto(found, axis) if logarithmic else found)}
    return [Dot(_short(p.phase), p.cost[axis], p.f1, _words(p, axis), p.phase in front) for p in found]


def _short(phase: str) -> str:
    return phase if phase == "TAPT" or "+" in phase else phase.removesuffix("-TAPT")


def _words(point: Point, axis: str) -> str:
    value = point.cost[axis]
    cost = {"loss": f"{value:.3f} nats", "tokens": f"{value:,.0f} tokens"}.get(axis) or human_seconds(value)
    return f"F1 {mean_and_sd(point.f1, point.sd)}, {cost}"


def _draw(axes: Any, found: Sequence[Point], axis: str, logarithmic: bool) -> list[tuple[float, float]]:
    """Draws a panel's points and front; where each point lies, x from 0 to 1."""
    x_of, ticks = x_axis([p.cost[axis] for p in found], logarithmic, 0.0, 1.0)
    line = pareto(found, axis) if logarithmic else []
    axes.plot([x_of(p.cost[axis]) for p in line], [p.f1 for p in line], color="tab:blue", alpha=0.35, zorder=0)
    places = [(x_of(p.cost[axis]), p.f1) for p in found]
    for dot, place in zip(dots_of(found, axis, logarithmic), places, strict=True):
        axes.plot(*place, "o", color="tab:blue" if dot.best else "tab:gray")
    axes.set_xlim(-0.04, 1.04)
    axes.margins(y=0.1)
    axes.set_xticks([x_of(value) for value, _ in ticks], [name for _, name in ticks])
    axes.set_ylabel("test F1, mean over tasks and seeds")
    axes.grid(alpha=0.3)
    return places


def _name(axes: Any, dots: Sequence[Dot], places: Sequence[tuple[float, float]]) -> None:
    point = axes.figure.dpi / 72
    x, y = axes.transData.transform(places).T / point
    frame = axes.bbox.extents / point
    within = float(frame[0]), -float(frame[3]), float(frame[2]), -float(frame[1])
    names = place_names(dots, list(zip(x.tolist(), (-y).tolist(), strict=True)), within, FONT)
    for dot, place, name, at, down in zip(dots, places, names, x, -y, strict=True):
        anchor = name.anchor(at)
        axes.annotate(
            cut(dot.name, LONGEST), place, xytext=(name.at(anchor) - at, down - (name.box[1] + name.box[3]) / 2),
            textcoords="offset points", fontsize=FONT, va="center", color="black" if dot.best else "dimgray",
            ha={"start": "left", "middle": "center", "end": "right"}[anchor],
            arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6} if name.far else None,
        )  # fmt: skip
