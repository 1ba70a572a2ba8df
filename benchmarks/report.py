"""The report: what a grid of `nearkin bench frontier` found, for a person; the function behind `report`.

A results file may hold several grids: what was run under one recipe each. One is shown, the newest unless another is
asked for. Means and plots are over the phases that have every task, since means over different tasks do not compare;
phases without the leak guard are no results, and stand in the tables alone.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from adaptation.phases import UNGUARDED
from benchmarks.frontier import scores
from benchmarks.frontier_plot import Point, pareto, plot_frontier, points
from benchmarks.report_examples import TaskExamples, examples_of
from benchmarks.results import Row, read_whole
from benchmarks.significance import Gain, gain
from selection.errors import InputError, NearkinError
from selection.pages import write_page
from selection.plotting import require_plots
from selection.wording import join

logger = logging.getLogger(__name__)

MADE_BY = "nearkin bench frontier"
NOISE = 0.05
OVER = ("none", "TAPT", "RAND-TAPT")
FEWEST = 3  # pairs below which a p-value says nothing
COLUMNS = pa.schema(
    [pa.field(name, pa.string(), False) for name in ("grid", "key", "task", "phase", "metric", "sets", "model")]
    + [pa.field(name, pa.string(), False) for name in ("preset", "settings", "commit", "command")]
    + [pa.field(name, pa.int64(), False) for name in ("seed", "passages", "set_tokens", "steps", "tokens")]
    + [pa.field(name, pa.float64(), False) for name in ("dev", "test", "embed_s", "first_s", "again_s")]
    + [pa.field(name, pa.float64(), False) for name in ("pretrain_s", "finetune_s")]
    + [pa.field("loss", pa.float64()), pa.field("budget", pa.int64())]
)


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
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


@dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
        results: the file; grids: all of the grids in it, oldest first; number: which is shown, from 1.
        examples: of each task; empty where `no_examples` says why.
    """

    results: Path
    grids: list[Grid]
    number: int
    examples: list[TaskExamples]
    no_examples: str

    @property
    def grid(self) -> Grid:
        return self.grids[self.number - 1]

    @cached_property
    def told_apart(self) -> list[str]:
        """Of each grid, its settings that not all grids share."""
        recipes = [grid.recipe for grid in self.grids]
        names = dict.fromkeys(name for recipe in recipes for name in recipe)
        differ = [name for name in names if len({json.dumps(recipe.get(name)) for recipe in recipes}) > 1]
        return [", ".join(f"{name} {recipe[name]}" for name in differ if name in recipe) for recipe in recipes]

    def html(self) -> str:
        """All of it as a page that needs nothing else; see `selection.pages`."""
        from benchmarks.report_page import html

        return html(self)


def report(
    results: Path | str,
    out: Path | str | None = None,
    *,
    sets: Path | str | None = None,
    plots: Path | str | None = None,
    examples: int = 3,
    grid: int | None = None,
    say: Callable[[str], None] = logger.info,
) -> Report:
    """Makes the page of a results file.

    Args:
        results: Parquet file that `nearkin bench frontier` wrote.
        out: the page; None: beside `results`, with the ending ``.html``.
        sets: folder of the grid's sets (``steps`` in its ``--work``), for examples of passages.
        plots: folder for the plots as ``.png`` and ``.svg``.
        examples: training texts of each task to show passages for.
        grid: which of the file's grids, from 1, oldest first; None for the newest.
        say: told which grid is shown and what was written.

    Raises:
        InputError: no results there, a cell twice, no such grid, no folder of sets.
        NearkinError: matplotlib is missing; a file cannot be written.
    """
    results = Path(results)
    out = results.with_suffix(".html") if out is None else Path(out)
    if examples < 0:
        raise InputError("--examples must be 0 or more")
    if sets is not None and not Path(sets).is_dir():
        raise InputError(f"there is no folder {sets}: name the folder of the grid's sets, WORK/steps, as --sets")
    if plots is not None:
        require_plots("--plots")
    rows = read_whole(results, COLUMNS, MADE_BY)
    cells = Counter((row["model"], row["grid"], *map(row.get, ("data", "task", "phase", "seed"))) for row in rows)
    if (twice := cells.most_common(1)[0])[1] > 1:
        *_, task, phase, seed = twice[0]
        raise InputError(f"{results} holds {task}, {phase}, seed {seed} of one grid more than once: keep one row")
    grids = grids_of(rows)
    number = len(grids) if grid is None else grid
    if not 1 <= number <= len(grids):
        raise InputError(f"{results} has no grid {number}: it has {len(grids)}, numbered from 1")
    shown = grids[number - 1]
    if len(grids) > 1:
        say(f"{results} holds {len(grids)} grids; shown is number {number}, {shown.name}; --grid N shows another")
    found, why = examples_of(shown.rows, None if sets is None else Path(sets), examples)
    made = Report(results, grids, number, found, why)
    write_page(made.html(), out)
    say(f"wrote {out}")
    if plots is not None:
        if not shown.compared:
            raise NearkinError(f"{results}: no phase has been run for every task yet, so there is nothing to plot")
        Path(plots).mkdir(parents=True, exist_ok=True)
        for ending in ("png", "svg"):
            plot_frontier(shown.compared, Path(plots) / f"{results.stem}.{ending}")
            say(f"wrote {Path(plots) / f'{results.stem}.{ending}'}")
    return made


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
