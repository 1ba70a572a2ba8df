"""A task: labelled examples in a folder of train, dev and test .jsonl, or one .jsonl of examples."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from selection.errors import InputError
from selection.reading import COLUMNAR_KINDS, TEXT_KINDS, is_blank, kind_of, read_table, texts_of

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Task:
    """What a task brings.

    Attributes:
        path: the folder or file it was read from.
        splits: ``train``, ``dev``, ``test``, those that exist; each a table with ``text`` (large_string) and, where
            the file has it, ``label`` (string; as it is read where it is no single name), blank texts left out.
    """

    path: Path
    splits: dict[str, pa.Table]

    @property
    def name(self) -> str:
        return self.path.stem if self.path.is_file() else self.path.resolve().name

    @property
    def train_texts(self) -> pa.ChunkedArray:
        """The texts that select and that are trained on, in file order: row number = query_id."""
        return self.splits["train"]["text"]

    @property
    def unread(self) -> list[Path]:
        """Data files of the folder that are no split: a ``test.jsonl.gz`` or ``validation.jsonl`` guards nothing."""
        if self.path.is_file():
            return []
        names = {f"{split}.jsonl" for split in SPLITS}
        kinds = TEXT_KINDS | COLUMNAR_KINDS
        return sorted(p for p in self.path.iterdir() if p.is_file() and kind_of(p) in kinds and p.name not in names)

    def labelled(self, split: str) -> pa.Table:
        """A split whose every example has a label.

        Raises:
            InputError: the split is absent, or has no labels, or such as are no single names.
        """
        if self.path.is_file():
            raise InputError(
                f"task {self.path} is a file: finetuning needs a folder with train.jsonl, dev.jsonl and test.jsonl"
            )
        if split not in self.splits:
            raise InputError(f"task {self.path} has no {split}.jsonl, which finetuning needs")
        table = self.splits[split]
        if "label" not in table.schema.names:
            raise InputError(f'task {self.path}: {split}.jsonl has no "label", which finetuning needs')
        if (kind := table.schema.field("label").type) != pa.string():
            raise InputError(
                f'task {self.path}: "label" of {split}.jsonl holds {kind}, and finetuning needs one name an example'
            )
        if table["label"].null_count:
            first = pc.index(pc.is_null(table["label"]), True).as_py() + 1
            raise InputError(
                f'task {self.path}: example {first:,} of {split}.jsonl has no "label", which finetuning needs'
            )
        return table


def read_task(path: Path | str) -> Task:
    """Reads a task folder (train.jsonl needed, dev and test optional) or one file, whose rows become ``train``.

    Raises:
        InputError: nothing there, no train split, no ``text`` field, a broken line.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"task {path} does not exist")
    if path.is_file():
        return Task(path, {"train": _read_split(path)})
    splits = {split: _read_split(path / f"{split}.jsonl") for split in SPLITS if (path / f"{split}.jsonl").exists()}
    if "train" not in splits:
        raise InputError(f"task folder {path} has no train.jsonl")
    return Task(path, splits)


def _read_split(path: Path) -> pa.Table:
    table = read_table(path)
    columns: dict[str, pa.ChunkedArray] = {"text": texts_of(table, path)}
    if "label" in table.schema.names:
        columns["label"] = table["label"]
        fractions = pa.types.is_floating(table["label"].type) and not _whole(table["label"])
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):  # lists, which selection does not mind
            columns["label"] = table["label"] if fractions else table["label"].cast(pa.string())
    table = pa.table(columns)
    table = table.filter(pc.invert(is_blank(table["text"])))
    if table.num_rows == 0:
        raise InputError(f"{path} has no text")
    return table


def _whole(numbers: pa.ChunkedArray) -> bool:
    """Whether all are whole; others are measurements, and no names of classes."""
    return pc.all(pc.equal(numbers, pc.floor(numbers)), min_count=0).as_py() is True
