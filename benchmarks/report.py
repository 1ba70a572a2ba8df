"""The report: what a grid of `nearkin bench frontier` found, for a person; the function behind `report`.

A results file may hold several grids: what was run under one recipe each. One is shown, the newest unless another is
asked for. Means and plots are over the phases that have every task, since means over different tasks do not compare;
phases without the leak guard are no results, and stand in the tables alone.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from benchmarks import report_page
from benchmarks.frontier_plot import plot_frontier
from benchmarks.grid import Grid, grids_of
from benchmarks.report_examples import TaskExamples, examples_of
from benchmarks.results import read_whole
from selection.errors import InputError, NearkinError
from selection.pages import write_page
from selection.plotting import require_plots

logger = logging.getLogger(__name__)

MADE_BY = "nearkin bench frontier"
COLUMNS = pa.schema(
    [pa.field(name, pa.string(), False) for name in ("grid", "key", "task", "phase", "metric", "sets", "model")]
    + [pa.field(name, pa.string(), False) for name in ("preset", "settings", "commit", "command")]
    + [pa.field(name, pa.int64(), False) for name in ("seed", "passages", "set_tokens", "steps", "tokens")]
    + [pa.field(name, pa.float64(), False) for name in ("dev", "test", "embed_s", "first_s", "again_s")]
    + [pa.field(name, pa.float64(), False) for name in ("pretrain_s", "finetune_s")]
    + [pa.field("loss", pa.float64()), pa.field("budget", pa.int64())]
)


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
        return report_page.html(self)


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
