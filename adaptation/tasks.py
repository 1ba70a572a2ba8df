"""Tasks for finetuning: the metric by the task's card, and labelled splits with label ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaptation.cards import cards
from selection.errors import InputError
from selection.files import TextFingerprint, fingerprint
from selection.task import SPLITS, Task, read_task
from selection.wording import join

MOST_NAMED = 5
Metric = Literal["macro", "micro"]


def metric_of(task: str) -> Metric:
    """The F1 that task `task` is judged by: its card's, else ``macro``."""
    card = cards().get(task, {})
    return cast(Metric, card.get("metric", "macro")) if card.get("kind") == "task" else "macro"


@dataclass(frozen=True)
class LabelledTask:
    """A task ready for finetuning.

    Attributes:
        task: as read.
        labels: class names, sorted; position = class id.
        splits: ``train``, ``dev``, ``test``: tables with ``text`` (large_string) and ``label`` (int64, class id).
    """

    task: Task
    labels: list[str]
    splits: dict[str, pa.Table]

    def rare(self) -> list[str]:
        """Labels that one training example has."""
        counts = np.bincount(self.splits["train"]["label"].to_numpy(), minlength=len(self.labels))
        return [label for label, count in zip(self.labels, counts, strict=True) if count == 1]

    def identity(self) -> str:
        """A fingerprint of every text and label of the task."""
        columns = [self.splits[split][column] for split in SPLITS for column in ("text", "label")]
        return fingerprint(*self.labels, *map(TextFingerprint.of, columns))


def some(labels: Sequence[str]) -> str:
    """Labels for a sentence: all of them, or `MOST_NAMED` and how many more there are."""
    more = len(labels) - MOST_NAMED
    return join([*map(repr, labels[:MOST_NAMED]), *([f"{more:,} more"] if more > 0 else [])])


def load_labelled(path: Path | str) -> LabelledTask:
    """Reads a task folder and numbers its labels, by the sorted names of the train split.

    Raises:
        InputError: a split is missing or has no labels; train has one class only; dev or test has a class that train
            lacks.
    """
    task = read_task(path)
    tables = {split: task.labelled(split) for split in SPLITS}
    names = pc.unique(tables["train"]["label"]).sort()
    if len(names) < 2:
        raise InputError(
            f"task {task.path}: train.jsonl has the one label {names[0].as_py()!r}, so nothing to tell apart"
        )
    splits = {}
    for split, table in tables.items():
        ids = pc.index_in(table["label"], value_set=names)
        if ids.null_count:
            unknown = pc.unique(table["label"].filter(pc.is_null(ids))).sort().to_pylist()
            raise InputError(
                f"task {task.path}: {split}.jsonl has the label{'s' * (len(unknown) > 1)} {some(unknown)} "
                "that train.jsonl lacks, so no classifier can learn it; mend the splits"
            )
        splits[split] = pa.table({"text": table["text"], "label": ids.cast(pa.int64())})
    return LabelledTask(task, names.to_pylist(), splits)
