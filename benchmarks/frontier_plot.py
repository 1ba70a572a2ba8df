"""The frontier as a picture: gain in F1 against seconds of selection, tokens of pretraining and masked-LM loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.frontier import summary
from benchmarks.results import Row

AXES = (
    ("selection", "seconds of selection, index there", True),
    ("selection_cold", "seconds of selection, corpus not yet embedded", True),
    ("compute", "seconds of selection and masked-LM training", True),
    ("tokens", "tokens of masked-LM training", True),
    ("loss", "masked-LM loss on dev texts, nats", False),
)


@dataclass(frozen=True)
class Point:
    """A phase over all tasks: its costs, by the names in `AXES`, mean F1 and its deviation over seeds, in per cent."""

    phase: str
    cost: dict[str, float]
    f1: float
    sd: float | None


def points(rows: Sequence[Row]) -> list[Point]:
    """One point a phase, of the rows over all tasks where there are several.

    Args:
        rows: of one grid (`benchmarks.frontier.frontier`).
    """
    summed = summary(rows)
    tasks = {row["task"] for row in summed}
    chosen = [row for row in summed if row["task"] == ("all" if len(tasks) > 1 else row["task"])]
    found = []
    for row in chosen:
        cost = {
            "selection": row["first_s"],
            "selection_cold": row["first_s"] + row["embed_s"],
            "compute": row["first_s"] + row["pretrain_s"],
            "tokens": row["tokens"],
            "loss": row["loss"],
        }
        known = {axis: value for axis, value in cost.items() if value is not None}
        found.append(Point(row["phase"], known, row["f1"], row["sd"]))
    return found


def pareto(found: Sequence[Point], axis: str) -> list[Point]:
    """Points that no other beats: none that costs as little or less has as much F1 or more; cheapest first."""
    priced = sorted((p for p in found if axis in p.cost), key=lambda p: (p.cost[axis], -p.f1))
    front: list[Point] = []
    for point in priced:
        if not front or point.f1 > front[-1].f1:
            front.append(point)
    return front


def plot_frontier(rows: Sequence[Row], path: Path) -> None:
    """Mean F1 against each cost of `AXES`, a panel each; the Pareto front is drawn as a line.

    Args:
        rows: of one grid.
        path: .png, .svg or .pdf.
    """
    from matplotlib.figure import Figure

    from selection.plotting import save

    found = points(rows)
    figure = Figure(figsize=(11, 12), layout="constrained")
    for number, (axis, title, logarithmic) in enumerate(AXES):
        axes = figure.add_subplot(3, 2, number + 1)
        drawn = [p for p in found if axis in p.cost]
        front = {p.phase for p in pareto(found, axis)} if logarithmic else set()
        for place, point in enumerate(sorted(drawn, key=lambda p: p.f1)):
            x, best = point.cost[axis], point.phase in front
            axes.plot(x, point.f1, "o", color="tab:blue" if best or not logarithmic else "tab:gray")
            side = 1 if place % 2 else -1
            axes.annotate(
                point.phase, (x, point.f1), xytext=(4 * side, 4), textcoords="offset points", fontsize=8,
                ha="left" if side > 0 else "right", color="black" if best or not logarithmic else "dimgray",
            )  # fmt: skip
        line = pareto(found, axis) if logarithmic else []
        axes.plot([p.cost[axis] for p in line], [p.f1 for p in line], color="tab:blue", alpha=0.35, zorder=0)
        if logarithmic:
            axes.set_xscale("symlog", linthresh=1)
            axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.15)
        axes.set_xlabel(title)
        axes.set_ylabel("test F1, mean over tasks and seeds")
        axes.grid(alpha=0.3)
    spread = [p.sd for p in found if p.sd is not None]
    if spread:
        figure.suptitle(f"blue: none cheaper is as good; standard deviation of a seed about {np.mean(spread):.1f}")
    save(figure, path)
