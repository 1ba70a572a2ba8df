"""Domains as the user names them, their texts as a stream: files, a task, an augmentation set, a store's corpora."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.columnar import open_columnar
from selection.errors import InputError
from selection.finding import HUB, find_files
from selection.reading import COLUMNAR_KINDS, NAME_IT, is_blank, kind_of, read_batches, text_column
from selection.store import Store
from selection.task import read_task

AUGMENTATION_FILE = "augmentation.parquet"
Batches = Iterator[pa.LargeStringArray]


def domains_of(name: str, location: str, column: str, remedy: str = NAME_IT) -> list[tuple[str, Batches]]:
    """What `location` is: (domain, its texts) once, or once a corpus of a store. Nothing is read yet but a task.

    Args:
        column: of files, the one of their texts, and `remedy` what is to be done where there is none.
    """
    if location.startswith(HUB):
        raise InputError(f"{name}={location}: build a store of a hub dataset first, and name the store")
    path = Path(location).expanduser()
    kind = kind_of_domain(path)
    if kind == "set":
        return [(name, _file_batches([path / AUGMENTATION_FILE], "text", remedy))]
    if kind == "task":
        return [(name, iter(read_task(path).train_texts.chunks))]
    if kind == "store":
        store = Store(path)
        store.check_corpora()
        return [(f"{name}/{corpus.name}", _store_batches(store, corpus.name)) for corpus in store.manifest.corpora]
    return [(name, _file_batches(find_files(location), column, remedy))]


def kind_of_domain(path: Path) -> Literal["set", "task", "store", "file"]:
    """What lies at a path: an augmentation set, a task folder, a store, or a file, folder or glob of text."""
    if (path / AUGMENTATION_FILE).is_file():
        return "set"
    if (path / "train.jsonl").is_file():
        return "task"
    return "store" if _is_store(path) else "file"


def _is_store(path: Path) -> bool:
    try:
        return "corpora" in json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _store_batches(store: Store, name: str) -> Batches:
    corpus = store.corpus
    for number, source in enumerate(corpus.sources):
        if source == name:
            yield from corpus.unchanged_texts(number).chunks


def _file_batches(files: Sequence[Path], column: str, remedy: str) -> Batches:
    for path in files:
        try:
            for batch in _batches(path, column, remedy):
                texts = text_column(batch, column, path, remedy)
                texts.validate(full=True)
                yield texts
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} cannot be read to its end (cut short, damaged, or not UTF-8): copy or write it again"
            ) from error


def _batches(path: Path, column: str, remedy: str) -> Iterator[pa.RecordBatch]:
    if kind_of(path) not in COLUMNAR_KINDS:
        return read_batches(path)
    file = open_columnar(path)
    if column not in file.schema.names:
        text_column(file.schema.empty_table(), column, path, remedy)
    return file.batches(0, file.rows, [column])


def sampled(batches: Batches, count: int, seed: int) -> Batches:
    """`count` texts drawn at random, or all where there are fewer: those with the smallest of as many random numbers.

    One pass; holds at most twice `count` texts and a batch. Which texts are drawn does not depend on the batches.
    """
    random = np.random.default_rng(seed)
    pieces, drawn, held, limit = [pa.array([], pa.large_string())], [np.empty(0)], 0, 1.0
    for texts in batches:
        texts = texts.filter(pc.invert(is_blank(texts)))
        keys = random.random(len(texts))
        low = np.flatnonzero(keys < limit)
        if len(low) == 0:
            continue
        pieces.append(texts.take(pa.array(low)))
        drawn.append(keys[low])
        held += len(low)
        if held > 2 * count:
            pieces, drawn = _smallest(pieces, drawn, count)
            held, limit = count, float(drawn[0].max())
    yield from _smallest(pieces, drawn, count)[0]


def _smallest(
    pieces: list[pa.Array], drawn: list[npt.NDArray[np.float64]], count: int
) -> tuple[list[pa.Array], list[npt.NDArray[np.float64]]]:
    """The texts with the `count` smallest keys, in their order, as one piece."""
    texts, keys = pa.concat_arrays(pieces), np.concatenate(drawn)
    if len(keys) <= count:
        return [texts], [keys]
    best = np.sort(np.argpartition(keys, count)[:count])
    return [texts.take(pa.array(best))], [keys[best]]
