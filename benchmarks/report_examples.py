"""Examples for the report: training texts of a task, and the passages that each phase's set brought for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.results import Row
from selection.errors import NearkinError
from selection.inspection import SHOWN
from selection.task import read_task

EACH = 2
COLUMNS = ["source", "text", "method", "score", "rank", "query_id"]


@dataclass(frozen=True)
class Brought:
    """A passage of a set; `text` is at most `SHOWN` characters of `characters`."""

    phase: str
    method: str
    source: str
    score: float | None
    rank: int
    text: str
    characters: int


@dataclass(frozen=True)
class Example:
    """A training text and what was brought for it.

    Attributes:
        query_id: its row in the task's training split; None for passages that no one text asked for.
        text: None where the task is no longer where the sets' manifests say.
    """

    query_id: int | None
    text: str | None
    passages: list[Brought]


@dataclass(frozen=True)
class TaskExamples:
    """Examples of a task; `gone` names the phases that have a set which is no longer there."""

    task: str
    examples: list[Example]
    gone: list[str]


@dataclass(frozen=True, eq=False)
class _Set:
    folder: Path
    phase: str
    manifest: dict[str, Any]
    queries: pa.Array

    def take(self, column: str, values: Sequence[int]) -> pa.Table:
        """The set's rows with one of these values, best rank first; texts of the others are not kept in memory."""
        kept = pc.field(column).isin(list(values))
        return pq.read_table(self.folder / "augmentation.parquet", columns=COLUMNS, filters=kept).sort_by("rank")

    def first(self) -> pa.Table:
        """The `EACH` best ranks, which need not be 1 and 2, since the guard leaves candidates out."""
        ranks = pq.read_table(self.folder / "augmentation.parquet", columns=["rank"])["rank"]
        return self.take("rank", pc.unique(ranks).sort()[:EACH].to_pylist())[:EACH]

    def brought(self, rows: pa.Table) -> list[Brought]:
        return [
            Brought(
                self.phase, row["method"], row["source"], row["score"], row["rank"], row["text"][:SHOWN],
                len(row["text"]),
            )
            for row in rows.to_pylist()
        ]  # fmt: skip


def examples_of(rows: Sequence[Row], sets: Path | None, count: int) -> tuple[list[TaskExamples], str]:
    """Examples of every task of a grid, and, where there are none, why.

    The training texts shown are spread over those that most sets brought something for. A set whose method asks for no
    one text (random, a whole domain) shows its best ranks, once a task.

    Args:
        rows: of a grid; their column ``sets`` names folders of `sets`.
        sets: None: none are shown.
        count: training texts a task.
    """
    if count == 0:
        return [], ""
    if not any(row["sets"] for row in rows):
        return [], "No phase of this grid selected any passages."
    if sets is None:
        return [], "Passages are not shown: name the folder of the grid's sets (WORK/steps) with --sets."
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        opened, gone = _open([row for row in rows if row["task"] == task], sets)
        if opened:
            found.append(TaskExamples(task, _examples(opened, count), gone))
    return found, "" if found else f"Passages are not shown: the sets of this grid are no longer in {sets}."


def _open(rows: Sequence[Row], sets: Path) -> tuple[list[_Set], list[str]]:
    """Sets of a task that are whole, one of several phases once, under all their names; and phases that lack one."""
    phases: dict[str, list[str]] = {}
    for row in rows:
        for name in filter(None, row["sets"].split(",")):
            if row["phase"] not in phases.setdefault(name, []):
                phases[name].append(row["phase"])
    opened: list[_Set] = []
    gone: list[str] = []
    for name, named in phases.items():
        folder = sets / Path(name).name
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            queries = pq.read_table(folder / "augmentation.parquet", columns=["query_id"])["query_id"]
            opened.append(_Set(folder, ", ".join(named), dict(manifest), pc.unique(queries).drop_null()))
        except (OSError, ValueError, pa.ArrowException):  # or cut short
            gone += [phase for phase in named if phase not in gone]
    return opened, gone


def _examples(sets: Sequence[_Set], count: int) -> list[Example]:
    asking = [chosen for chosen in sets if pc.any(pc.greater_equal(chosen.queries, 0)).as_py()]
    texts = _task_texts(asking[0].manifest) if asking else None
    queries = _spread([np.asarray(chosen.queries) for chosen in asking], count)
    passages: dict[int, list[Brought]] = {query: [] for query in queries}
    for chosen in asking:
        rows = chosen.take("query_id", queries)
        for query in queries:
            passages[query] += chosen.brought(rows.filter(pc.equal(rows["query_id"], query))[:EACH])
    examples = [
        Example(q, texts[q].as_py() if texts is not None and q < len(texts) else None, passages[q]) for q in queries
    ]
    unasked = [passage for chosen in sets if chosen not in asking for passage in chosen.brought(chosen.first())]
    return examples + ([Example(None, None, unasked)] if unasked else [])


def _spread(queries: Sequence[np.ndarray[Any, Any]], count: int) -> list[int]:
    """At most `count` of the training texts that most sets brought something for, evenly spread over them."""
    if not queries:
        return []
    ids, sets = np.unique(np.concatenate(queries), return_counts=True)
    ids, sets = ids[ids >= 0], sets[ids >= 0]
    if len(most := ids[sets == sets.max()]) < count:
        most = np.sort(ids[np.argsort(-sets, kind="stable")][:count])
    at = np.unique(np.linspace(0, len(most) - 1, count + 2).round().astype(int)[1:-1]) if len(most) > count else ...
    return [int(query) for query in most[at]]


def _task_texts(manifest: dict[str, Any]) -> pa.ChunkedArray | None:
    """The training texts that the set was selected for; None where they are gone or no longer the same number."""
    try:
        texts = read_task(manifest["task"]).train_texts
    except (NearkinError, OSError, KeyError, TypeError):
        return None
    return texts if len(texts) == manifest.get("queries") else None
