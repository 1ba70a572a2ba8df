"""The rows of a frontier, read: scores and means, points of cost and F1, and the grids of a results file.

Nothing here runs a cell: what was written by one machine is read on another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adaptation.phases import UNGUARDED
from benchmarks.results import Row
from benchmarks.significance import Gain, gain
from selection.wording import join

NOISE = 0.05
OVER = ("none", "TAPT", "RAND-TAPT")
FEWEST = 3  # pairs below which a p-value says nothing


def scores(rows: Sequence[Row], phase: str) -> dict[str, dict[int, float]]:
    """Test F1 of a phase by task and seed, as `benchmarks.significance.gain` takes it."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["phase"] == phase:
            found.setdefault(row["task"], {})[row["seed"]] = row["test"]
    return found


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row a task and phase, then one a phase over all tasks: means, and gains over none and over random.

    Args:
        rows: of one grid.
    """
    phases, tasks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("phase", "task"))
    found = [_summed([row for row in rows if row["task"] == task], task, phase) for task in tasks for phase in phases]
    if len(tasks) > 1:
        found += [_summed(rows, "all", phase) for phase in phases]
    return [row for row in found if row["seeds"]]


def _summed(rows: Sequence[Row], task: str, phase: str) -> Row:
    mine = [row for row in rows if row["phase"] == phase]
    tests = scores(mine, phase)
    means = [float(np.mean(list(by_seed.values()))) for by_seed in tests.values()]
    spread = [float(np.std(list(by_seed.values()), ddof=1)) for by_seed in tests.values() if len(by_seed) > 1]
    row: Row = {
        "task": task, "phase": phase, "seeds": len({row["seed"] for row in mine}),
        "f1": float(np.mean(means)) if means else None, "sd": float(np.mean(spread)) if spread else None,
    }  # fmt: skip
    for name, other in (("none", "none"), ("random", "RAND-TAPT")):
        over = gain(tests, scores(rows, other)) if phase != other else None
        row[f"over_{name}"] = None if over is None else over.mean
        row[f"p_{name}"] = None if over is None else over.p
    for name in ("embed_s", "first_s", "again_s", "tokens", "pretrain_s", "loss"):
        row[name] = mean_over_tasks(mine, name)
    return row


def mean_over_tasks(rows: Sequence[Row], name: str) -> float | None:
    """Of a column: the mean of the tasks' means, what is not known left out."""
    by_task: dict[str, list[float]] = {}
    for row in rows:
        if row[name] is not None:
            by_task.setdefault(row["task"], []).append(row[name])
    return float(np.mean([np.mean(values) for values in by_task.values()])) if by_task else None


@dataclass(frozen=True)
class Point:
    """A phase over all tasks.

    Attributes:
        cost: by the names in `benchmarks.frontier_plot.AXES`.
        f1, sd: mean F1 and its deviation over seeds, in per cent.
    """

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


@dataclass(frozen=True)
class Grid:
    """Cells that were run under one recipe, and what is to be said of them.

    Attributes:
        rows: one a cell, with the columns of `benchmarks.frontier.frontier`, and time, machine and versions.
    """

    rows: list[Row]

    @property
    def model(self) -> str:
        return str(self.rows[0]["model"])

    @property
    def preset(self) -> str:
        return str(self.rows[0]["preset"])

    @property
    def budget(self) -> int | None:
        """Tokens of each set; None where the recipe names none."""
        found: int | None = self.rows[0]["budget"]
        return found

    @property
    def name(self) -> str:
        sets = f", sets of {self.budget:,} tokens" if self.budget is not None else ""
        return f"{Path(self.model).name}, preset {self.preset}{sets}"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What the grid was run under, by dotted names: ``tokens``, ``adapt.epochs``, ..."""
        return _flat({"model": self.model, "preset": self.preset, **_json(self.rows[0]["grid"])})

    @cached_property
    def tasks(self) -> list[str]:
        return self.different("task")

    @cached_property
    def phases(self) -> list[str]:
        return self.different("phase")

    def different(self, column: str) -> list[Any]:
        """Each value of a column once, in the order of the rows."""
        return list(dict.fromkeys(row[column] for row in self.rows))

    @cached_property
    def lacking(self) -> dict[str, list[str]]:
        """Phases that were not run for every task, and the tasks that they lack."""
        there = {(row["phase"], row["task"]) for row in self.rows}
        lacks = {phase: [task for task in self.tasks if (phase, task) not in there] for phase in self.phases}
        return {phase: tasks for phase, tasks in lacks.items() if tasks}

    @cached_property
    def compared(self) -> list[Row]:
        """The rows of guarded phases that have every task, of the seeds of a task that all of these phases have."""
        rows = [row for row in self.rows if row["phase"] not in self.lacking and UNGUARDED not in row["phase"]]
        seeds: dict[str, set[int]] = {}
        for phase in {row["phase"] for row in rows}:
            for task, by_seed in scores(rows, phase).items():
                seeds[task] = seeds.get(task, set(by_seed)) & by_seed.keys()
        return [row for row in rows if row["seed"] in seeds[row["task"]]]

    @cached_property
    def points(self) -> list[Point]:
        """One a phase that has every task: what it costs and its mean F1, over the same runs for all."""
        return points(self.compared) if self.compared else []

    def gain(self, phase: str, over: str, rows: Sequence[Row] | None = None) -> Gain | None:
        """Of a phase over another, where both have seeds in common, of all rows or of these; None over itself."""
        rows = self.rows if rows is None else rows
        return None if phase == over else gain(scores(rows, phase), scores(rows, over))

    @cached_property
    def gains(self) -> dict[str, dict[str, Gain | None]]:
        """By phase, then by each of `OVER`."""
        return {phase: {over: self.gain(phase, over) for over in OVER} for phase in self.phases}

    @cached_property
    def finding(self) -> str:
        """The phases that none cheaper is as good as, and what each gained over the one before it, in a sentence."""
        one = len(self.different("machine")) == 1  # seconds of several do not compare
        front = pareto(self.points, "compute" if one else "tokens")
        if not front:
            return "No phase has been run for every task yet, so none can be compared with another."
        before = [None, *(point.phase for point in front)]
        said = [
            f"{point.phase} ({point.f1:.1f}{self._gained(point.phase, over)})"
            for point, over in zip(front, before, strict=False)
        ]
        of = "selection and training (the corpus embedded already)" if one else "tokens trained on"
        first = f"Of {of}, nothing cheaper is as good as {join(said)}."
        over_none = (self.gain(phase, "none", self.compared) for phase in self.phases)
        pairs = max((found.pairs for found in over_none if found is not None), default=0)
        if pairs > 0 and 2 ** (1 - pairs) > NOISE:
            few = f"{pairs} pairs of runs p cannot" if pairs > 1 else "one pair of runs p cannot"
            first += f" With {few} fall below {2.0 ** (1 - pairs):.2g}: run more tasks or seeds."
        return first

    def _gained(self, phase: str, over: str | None) -> str:
        found = None if over is None else self.gain(phase, over, self.compared)
        if found is None:
            return ""
        noise = ", within noise" if found.p >= NOISE else ""
        p = f", {p_of(found.p)}" if found.pairs >= FEWEST else ""
        return f", {found.mean:+.1f} over {over}{p}{noise}"


def p_of(p: float) -> str:
    """A p-value in words."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def grids_of(rows: Sequence[Row]) -> list[Grid]:
    """The grids of a results file, oldest first; a grid is as old as its last row.

    Of a task whose texts or labels have changed, the rows of what it held last.

    Args:
        rows: in the order in which they were written.
    """
    together: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        together.setdefault((row["model"], row["grid"]), []).append(number)
    found = sorted(together.values(), key=lambda numbers: numbers[-1])
    return [Grid(_of_latest_data([rows[number] for number in numbers])) for numbers in found]


def _of_latest_data(rows: Sequence[Row]) -> list[Row]:
    latest = {row["task"]: row.get("data") for row in rows}
    return [row for row in rows if row.get("data") == latest[row["task"]]]


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def settings_of(row: Row) -> dict[str, Any]:
    """``finetune``, and ``adapt``: a list, one a part of the phase; empty where they cannot be read."""
    return _json(row["settings"])


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
