"""A report as one self-contained page; see `selection.pages` for what every page keeps to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptation.cards import ARMS, cards, paper_rows
from adaptation.phases import UNGUARDED
from benchmarks.frontier_plot import AXES, dots_of
from benchmarks.grid import FEWEST, OVER, Grid, Point, mean_over_tasks, p_of, scores, settings_of
from benchmarks.report_examples import Brought, Example, TaskExamples
from benchmarks.scatter import scatter
from benchmarks.significance import LEVEL, Gain
from selection import pages
from selection.inspection import BRIEF, score_name
from selection.pages import Cell
from selection.wording import human_seconds, join, mean_and_sd

if TYPE_CHECKING:
    from benchmarks.report import Report

NONE = "–"
BOLD = (
    "Test F1 in per cent: mean (standard deviation over seeds). The highest mean is bold; it need not be higher by "
    "more than noise."
)
PAPER = (
    " The paper's figures (Don't Stop Pretraining, ACL 2020) are of RoBERTa-base and its own corpora, ours start "
    "from {}: compare gains rather than levels."
)
PAIRED = (
    f"Points of F1, paired by seed within a task, tasks weighing alike; below, a {LEVEL:.0%} interval by Student's t. "
    "p is of a two-sided sign-flip test, not corrected for the number of phases. All seeds of a phase and task "
    "finetune one adapted model, so both speak of these models: how another draw of the set or of the masks would "
    "differ is not in them."
)
COSTS = (
    "Means over tasks. Embedding is that of the whole corpus, predicted from a trial, and done once for all tasks. "
    "Selection is on a store that knows nothing of the task yet, again on one that does. Steps, tokens and training "
    "are the masked LM's. Loss is in nats, on the task's dev texts."
)
TITLES = {
    "selection": "Selection, the corpus embedded already",
    "selection_cold": "Selection, embedding included",
    "compute": "Selection and training",
    "tokens": "Tokens trained on",
    "loss": "Masked-LM loss",
}
PAPER_NAMES = {"none": ARMS["none"]} | {name.replace(" ", ""): name for arm, name in ARMS.items() if arm != "none"}
UNSAID = {"seeds", "checkpoint_minutes", "keep_model"}
JOINT = {"task_batch", "task_weight"}


def html(found: Report) -> str:
    """The page of a report."""
    grid = found.grid
    title = f"What selection buys in F1: {grid.name}"
    parts = [
        '<header><p class="small">nearkin report</p><h1>What selection buys in F1</h1>'
        f'<p class="lead">{pages.escape(_unbroken(grid.finding))}</p></header>',
        pages.tiles(_tiles(grid)),
        _notes(found),
        _section("Frontier", _plots(grid)),
        _section("F1 by task", _scores(grid)),
        _section("Gains", _gains(grid)),
        _section("Costs", _costs(grid)),
        _section("Examples", _examples(found)),
        _section("Settings", pages.facts(_settings(grid))),
        _section("How it was made", _commands(grid)),
        f"<footer>{pages.escape(found.results)}, written {pages.escape(grid.rows[-1]['time'])}</footer>",
    ]
    return pages.page(title, "\n".join(part for part in parts if part))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{pages.escape(title)}</h2>{body}</section>" if body else ""


def _unbroken(text: str) -> str:
    """``p = 0.03`` on one line."""
    return re.sub(r"\bp ([=<]) ", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def _small(text: str) -> str:
    return f'<p class="small">{pages.escape(text)}</p>'


def _tiles(grid: Grid) -> Iterator[tuple[str, str, str]]:
    yield "Tasks", f"{len(grid.tasks)}", join(grid.tasks)
    yield "Phases", f"{len(grid.phases)}", f"from {Path(grid.model).name}"
    seeds = [len(by_seed) for phase in grid.phases for by_seed in scores(grid.rows, phase).values()]
    some = "" if min(seeds) == max(seeds) else f"{min(seeds)} to "
    yield "Seeds", f"{some}{max(seeds)}", "of finetuning, each cell"
    whole = len(grid.tasks) * len(grid.phases) * max(seeds)
    yield "Cells", f"{len(grid.rows):,}", "none lacking" if len(grid.rows) == whole else f"of {whole:,}"


def _notes(found: Report) -> str:
    said = []
    if len(found.grids) > 1:
        names = "; ".join(
            f"{number}: {len(grid.rows):,} cells, {apart}"
            for number, (grid, apart) in enumerate(zip(found.grids, found.told_apart, strict=True), 1)
        )
        newest = ", the newest" if found.number == len(found.grids) else ""
        said.append(f"The file holds {len(found.grids)} grids ({names}). This is number {found.number}{newest}.")
    if leaks := [phase for phase in found.grid.phases if UNGUARDED in phase]:
        said.append(
            f"{join(leaks)}: trained on sets that may hold dev and test texts. They show what contamination would buy, "
            "are no results, and are left out of plots and means."
        )
    if found.grid.lacking:
        lacks = join(f"{phase} (not run for {join(tasks)})" for phase, tasks in found.grid.lacking.items())
        said.append(f"Left out of plots and mean F1, with costs of the tasks they have: {lacks}.")
    paragraphs = "".join(f"<p>{pages.escape(one)}</p>" for one in said)
    return f'<article class="small note">{paragraphs}</article>' if said else ""


def _plots(grid: Grid) -> str:
    charts = [_plot(grid.points, axis, across, logarithmic) for axis, across, logarithmic in AXES]
    if not any(charts):
        return ""
    spread = [point.sd for point in grid.points if point.sd is not None]
    said = (
        "Mean F1 over tasks and seeds; names without -TAPT. Nothing cheaper is as good as the points that are joined."
    )
    if spread:
        runs = len(grid.compared) / len(grid.points)
        apart = 2 * np.mean(spread) * np.sqrt(2 / runs)
        said += (
            f" A seed's standard deviation is {np.mean(spread):.1f}: of {runs:.0f} runs each, points nearer than about "
            f"{apart:.1f} may change places."
        )
    if len(machines := grid.different("machine")) > 1:
        said += f" Seconds are of {len(machines)} machines and do not compare between them: {join(machines)}."
    return f'<div class="cards">{"".join(charts)}</div>{_small(said)}'


def _plot(points: Sequence[Point], axis: str, across: str, logarithmic: bool) -> str:
    shown = [point for point in points if axis in point.cost]
    if not shown:
        return ""
    title = f"F1 against {across}"
    missing = [point.phase for point in points if axis not in point.cost]
    note = f"Without a loss, since the model has no masked-LM head: {join(missing)}." if missing else ""
    chart = scatter(dots_of(shown, axis, logarithmic), title, across, "test F1", logarithmic, joined=logarithmic)
    return pages.figure(TITLES[axis], chart, note)


def _scores(grid: Grid) -> str:
    """The paper's table 5 the other way round, which a phone can show: phases as rows, tasks as columns."""
    paper = {task: dict(paper_rows(cards()[task])) for task in grid.tasks if task in cards()}
    by_phase = {phase: scores(grid.rows, phase) for phase in grid.phases}
    most = max(len(seeds) for by in by_phase.values() for seeds in by.values())
    columns = []
    for task in grid.tasks:
        values = {phase: list(by[task].values()) for phase, by in by_phase.items() if task in by}
        theirs = {phase: paper.get(task, {}).get(PAPER_NAMES.get(phase, "")) for phase in grid.phases}
        columns.append(_column(grid.phases, values, theirs, most))
    if len(grid.tasks) > 1:
        columns.append(_column(grid.phases, {point.phase: [point.f1] for point in grid.points}, {}, 1))
    head = ["phase", *grid.tasks, *["mean"] * (len(grid.tasks) > 1)]
    beside = any(isinstance(cell, Cell) and "paper" in cell.below for column in columns for cell in column)
    said = BOLD + PAPER.format(Path(grid.model).name) * beside
    return pages.table(head, zip(grid.phases, *columns, strict=True), "F1 by phase and task") + _small(said)


def _column(
    phases: Sequence[str], values: dict[str, list[float]], paper: dict[str, str | None], most: int
) -> list[str | Cell]:
    """Cells of a task, one a phase: mean and deviation of `values`; below, the paper's, and seeds if not `most`."""
    top = max((np.mean(found) for phase, found in values.items() if UNGUARDED not in phase), default=0.0)
    cells: list[str | Cell] = []
    for phase in phases:
        if phase not in values:
            cells.append(NONE)
            continue
        found, theirs = values[phase], paper.get(phase)
        below = [f"paper {theirs}"] if theirs else []
        below += [f"{len(found)} of {most} seeds"] if len(found) < most else []
        sd = float(np.std(found, ddof=1)) if len(found) > 1 else None
        cells.append(
            Cell(
                mean_and_sd(float(np.mean(found)), sd),
                ", ".join(below),
                bool(np.mean(found) == top and UNGUARDED not in phase),
            )
        )
    return cells


def _gains(grid: Grid) -> str:
    rows = []
    for phase, by in grid.gains.items():
        if any(by.values()):
            rows.append([phase, *(cell for over in OVER for cell in _gain_cells(by[over]))])
    if not rows:
        return ""
    head = ["phase", *(name for over in OVER for name in (f"over {over}", "p", "pairs"))]
    return pages.table(head, rows, "gains in F1") + _small(PAIRED)


def _gain_cells(found: Gain | None) -> list[str | Cell]:
    if found is None:
        return [NONE, NONE, NONE]
    interval = "" if found.low is None or found.high is None else f"{_signed(found.low)} to {_signed(found.high)}"
    return [
        Cell(f"{found.mean:+.2f}", interval),
        p_of(found.p).removeprefix("p ").removeprefix("= ") if found.pairs >= FEWEST else NONE,
        f"{found.pairs:,}",
    ]


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never -0.0


def _costs(grid: Grid) -> str:
    def count(value: float) -> str:
        return f"{value:,.0f}" if value else NONE

    def seconds(value: float) -> str:
        return human_seconds(value) if value else NONE

    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("embedding", "embed_s", seconds), ("selection", "first_s", seconds), ("again", "again_s", seconds),
        ("passages", "passages", count), ("set tokens", "set_tokens", count), ("steps", "steps", count),
        ("tokens", "tokens", count), ("training", "pretrain_s", seconds), ("loss", "loss", "{:.3f}".format),
    ]  # fmt: skip
    rows = []
    for phase in grid.phases:
        mine = [row for row in grid.rows if row["phase"] == phase]
        values = [(mean_over_tasks(mine, name), shown) for _, name, shown in columns]
        rows.append([phase, *(NONE if value is None else shown(value) for value, shown in values)])
    return pages.table(["phase", *(name for name, _, _ in columns)], rows, "costs by phase") + _small(COSTS)


def _examples(found: Report) -> str:
    if found.no_examples:
        return _small(found.no_examples)
    return "".join(map(_task, found.examples))


def _task(shown: TaskExamples) -> str:
    cards = "".join(map(_example, shown.examples))
    gone = _small(f"Sets that are no longer there: of {join(shown.gone)}.") if shown.gone else ""
    return f'<h3 class="task">{pages.escape(shown.task)}</h3><div class="passages">{cards}</div>{gone}'


def _example(example: Example) -> str:
    if example.query_id is None:
        head = "<header><b>for the task as a whole</b><span>the best ranks of each set</span></header>"
    else:
        text = "" if example.text is None else pages.folded(example.text, len(example.text), BRIEF)
        quoted = (
            f'<blockquote dir="auto">{text}</blockquote>' if text else _small("The task is no longer where it was.")
        )
        head = f"<header><b>training text {example.query_id:,}</b></header>{quoted}"
    return f"<article>{head}{''.join(map(_passage, example.passages))}</article>"


def _passage(passage: Brought) -> str:
    score = "" if passage.score is None else f"<span>{score_name(passage.method)} {passage.score:.3g}</span>"
    head = f"<b>{pages.escape(passage.phase)}</b><span>{pages.escape(passage.source)}</span>{score}"
    body = pages.folded(passage.text, passage.characters, BRIEF // 2)
    return f'<section class="brought"><header>{head}<span>rank {passage.rank:,}</span></header>{body}</section>'


def _settings(grid: Grid) -> Iterator[tuple[str, str]]:
    yield "model", grid.model
    yield "preset", grid.preset
    yield "budget", f"{grid.budget:,} tokens a set" if grid.budget is not None else "none named in tokens"
    metrics: dict[str, list[str]] = {}
    for row in grid.rows:
        if row["task"] not in metrics.setdefault(row["metric"], []):
            metrics[row["metric"]].append(row["task"])
    yield "metric", "; ".join(f"{metric}: {join(tasks)}" for metric, tasks in metrics.items())
    read = {row["phase"]: settings_of(row) for row in grid.rows}
    yield from (("finetuning", said) for said in _said({p: [s.get("finetune", {})] for p, s in read.items()}))
    yield from (("masked LM", said) for said in _said({p: s.get("adapt", []) for p, s in read.items()}))
    yield "machine", "; ".join(grid.different("machine"))
    yield "versions", grid.rows[-1]["versions"]
    yield "commit", ", ".join(filter(None, grid.different("commit"))) or "none: not run from a source tree"


def _said(by_phase: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Settings in words, phases that have the same ones together; of several parts, each in turn."""
    together: dict[str, list[str]] = {}
    for phase, parts in by_phase.items():
        for part in parts:
            names = together.setdefault(_readable(part, "TLM" in phase), [])
            names += [phase] * (phase not in names)
    for settings, phases in together.items():
        yield f"{'all phases' if len(phases) == len(by_phase) else ', '.join(phases)}: {settings}"


def _readable(settings: dict[str, Any], joint: bool) -> str:
    left_out = UNSAID | (set() if joint else JOINT) | ({"epochs"} if settings.get("max_steps") else set())
    said = [
        name.replace("_", " ") if value is True else f"{name.replace('_', ' ')} {value:g}"
        if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in settings.items() if name not in left_out and value not in (None, False)
    ]  # fmt: skip
    return ", ".join(said) or "the defaults"


def _commands(grid: Grid) -> str:
    commands = [command for command in grid.different("command") if command]
    if not commands:
        return ""
    said = "Each ran some of the cells; the last is the newest." if len(commands) > 1 else ""
    shown = pages.escape("\n".join(commands))
    return f'<pre class="box">{shown}</pre>{_small(said) if said else ""}'
