"""Where the rows of files are cut into shards: it depends on the texts alone, so that they keep their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from selection import corpus
from selection.corpus import Shard
from selection.files import TextFingerprint, text_bytes
from selection.reading import text_column, unreadable


class Ends(IntEnum):
    """What ends behind a piece of a batch; where to cut depends on these alone, so that texts keep their embeddings."""

    NOTHING = 0
    QUARTER = 1  # a quarter of a shard's text
    BATCH = 2  # a batch of `BATCH_ROWS`, or what was read in one


def pieces(
    batches: Iterator[pa.RecordBatch],
    column: str,
    path: Path,
    cut_behind: Callable[[int], int] | None = None,
    row: int = 0,
) -> Iterator[tuple[pa.RecordBatch, Ends]]:
    """Batches in pieces, and of each what ends behind it: a shard may where anything does.

    Args:
        batches: all of a file from row `row` on, where a whole batch begins, however it cuts them.
        cut_behind: where a whole batch ends, as `ColumnarFile.cut_behind`; where None, each of `batches` is whole.
    """
    most = corpus.SHARD_BYTES // 4
    seen = 0  # text of this whole batch so far
    for batch in batches:
        lengths = pc.fill_null(pc.binary_length(text_column(batch, column, path)), 0).to_numpy().astype(np.int64)
        at = 0
        while at < len(batch):
            cut = row + len(batch) if cut_behind is None else cut_behind(row)
            count = min(len(batch) - at, cut - row)
            some = lengths[at : at + count]
            until = seen + np.cumsum(some)
            full = np.flatnonzero(until // most > (until - some) // most) + 1
            for start, stop in pairwise(np.union1d([0, count], full).tolist()):
                ends = Ends.BATCH if row + stop == cut else Ends.QUARTER if stop in full else Ends.NOTHING
                yield batch.slice(at + start, stop - start), ends
            row, at = row + count, at + count
            seen = 0 if row == cut else int(until[-1])


def ended(parts: Iterator[tuple[pa.RecordBatch, Ends]]) -> Iterator[tuple[pa.RecordBatch, Ends]]:
    """Pieces of a file that only its end tells the length of: a batch ends there too."""
    piece = next(parts, None)
    for following in parts:
        if piece is not None:
            yield piece
        piece = following
    if piece is not None:
        yield piece[0], Ends.BATCH


class ShardCutter:
    """Collects kept rows of one file until a shard is full.

    Args:
        path: how a store names the file.
        first_row: the corpus's row number of its first row.
        start: the first row of the file's that the shard to come covers.
        at: the row that is next.
    """

    def __init__(self, path: str, first_row: int, start: int = 0, at: int = 0) -> None:
        self.path, self.file_first_row = path, first_row
        self.start, self.row = start, at
        self._clear()

    def _clear(self) -> None:
        self.rows = self.bytes = 0
        self.fingerprint = TextFingerprint()
        self.kept: list[npt.NDArray[np.int64]] = []

    def add(self, length: int, kept: npt.NDArray[np.int64], texts: pa.Array) -> None:
        self.kept.append(kept + self.row)
        self.row += length
        self.rows += len(kept)
        self.bytes += text_bytes(texts)
        self.fingerprint.update(texts)

    @property
    def full(self) -> bool:
        return self.rows >= corpus.SHARD_ROWS or self.bytes >= corpus.SHARD_BYTES

    def cut(self) -> tuple[Shard, npt.NDArray[np.int64]] | None:
        """The shard so far and the rows that it keeps; None where it has no passage."""
        start, self.start = self.start, self.row
        kept = np.concatenate(self.kept) if self.kept else np.empty(0, np.int64)
        text, size = self.fingerprint.value(), self.bytes
        self._clear()
        if len(kept) == 0:
            return None
        first_row = self.file_first_row + start
        return Shard(self.path, start, self.row, len(kept), None, first_row, text, size), kept


def guarded(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of a file; of what Arrow finds wrong with it a sentence is made."""
    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path) from error


def reading_bar(name: str) -> tqdm[None]:
    """Progress over the rows of a corpus."""
    return tqdm(desc=f"reading {name}", unit=" passages", unit_scale=True, disable=None, leave=False)
