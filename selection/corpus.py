"""Corpus: an ordered list of shards; the row number over all of them is the doc_id, the one identity everywhere.

A shard is a row range of a Parquet or Arrow file, small enough to be embedded and resumed as a unit. The file stays
where it is. Where rows were dropped (blank text, ``--where``), a small Arrow file beside the manifest lists the rows
that were kept, so a terabyte is never copied to lose a handful of lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.buffers import one
from selection.columnar import ColumnarFile, open_columnar
from selection.errors import InputError, StoreError
from selection.files import TextFingerprint
from selection.reading import text_column

SHARD_ROWS = 8_192
SHARD_BYTES = 64 << 20
PASSAGE = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("source", pa.string())])


@dataclass(frozen=True)
class Shard:
    """A run of passages of one file.

    Attributes:
        path: the file; relative to the store where it lies inside, else absolute.
        start, stop: its rows [start, stop).
        rows: passages among them, after blank and filtered rows are left out.
        keep: file (relative to the store) of the rows kept, or None where all are.
        first_row: row number of `start` in its corpus, from which missing ids are made.
        text: fingerprint of the passages' texts.
        text_bytes: their UTF-8 bytes.
    """

    path: str
    start: int
    stop: int
    rows: int
    keep: str | None
    first_row: int
    text: str
    text_bytes: int


class Corpus:
    """The passages of a store, by doc_id.

    Args:
        root: the store's folder, from which relative paths start.
        parts: (corpus name, its text column, shard), in order.

    Attributes:
        shards: the shards, in order; `sources` the name of each one's corpus.
        offsets: int64 [shards + 1], the first doc_id of each, and how many passages there are.
    """

    def __init__(self, root: Path, parts: Sequence[tuple[str, str, Shard]]) -> None:
        self._root = root
        self.sources = [name for name, _, _ in parts]
        self._columns = [column for _, column, _ in parts]
        self.shards = [shard for _, _, shard in parts]
        self.offsets = np.concatenate([[0], np.cumsum([shard.rows for shard in self.shards], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(shard.text_bytes for shard in self.shards)

    @property
    def fingerprints(self) -> set[str]:
        """Those of the shards' texts."""
        return {shard.text for shard in self.shards}

    @property
    def identity(self) -> list[str]:
        """Of each shard, its corpus and the fingerprint of its texts: what a result depends on that reads all."""
        return [f"{name}:{shard.text}" for name, shard in zip(self.sources, self.shards, strict=True)]

    def texts(self, shard: int) -> pa.ChunkedArray:
        """The texts of one shard, large_string, in doc_id order."""
        batches = self._read(shard, ["text"], None)
        return pa.chunked_array([batch.column("text") for batch in batches], pa.large_string())

    def unchanged_texts(self, shard: int) -> pa.ChunkedArray:
        """The texts of one shard, if they still are the ones that were scanned; a build can outlast an edit.

        Raises:
            StoreError: they are not.
        """
        entry, digest = self.shards[shard], TextFingerprint()
        changed = f"{entry.path} has changed since it was read: run the same build again"
        try:
            texts = self.texts(shard)
        except (InputError, pa.ArrowException, OSError) as error:
            raise StoreError(changed) from error
        digest.update(texts)
        if digest.value() != entry.text:
            raise StoreError(changed)
        return texts

    def take(self, doc_ids: npt.NDArray[np.int64], columns: Sequence[str] = ("id", "text", "source")) -> pa.Table:
        """Rows for `doc_ids` (int64 [n], any order, repeats allowed), with columns of `PASSAGE`.

        Raises:
            IndexError: a doc_id outside [0, len(corpus)).
        """
        doc_ids = np.asarray(doc_ids, dtype=np.int64)
        if len(doc_ids) and (doc_ids.min() < 0 or doc_ids.max() >= len(self)):
            raise IndexError(f"doc_id out of range: the corpus has {len(self)} passages")
        unique, where = np.unique(doc_ids, return_inverse=True)
        schema = pa.schema([PASSAGE.field(name) for name in columns])
        edges = np.searchsorted(unique, self.offsets)
        batches: list[pa.RecordBatch] = []
        for shard in np.flatnonzero(np.diff(edges)).tolist():
            batches += self._read(shard, columns, unique[edges[shard] : edges[shard + 1]] - self.offsets[shard])
        return pa.Table.from_batches(batches, schema).take(pa.array(where))

    def _read(
        self, shard: int, columns: Sequence[str], wanted: npt.NDArray[np.int64] | None
    ) -> Iterator[pa.RecordBatch]:
        """Streams a shard's passages, or those at positions `wanted` (sorted) among them."""
        name, text, entry = self.sources[shard], self._columns[shard], self.shards[shard]
        rows = self._rows_of(entry)
        if wanted is not None:
            rows = wanted + entry.start if rows is None else rows[wanted]
        start, stop = (entry.start, entry.stop) if rows is None else (int(rows[0]), int(rows[-1]) + 1)
        file = _open(self._root / entry.path)
        needed = [c for c in dict.fromkeys([text, "id"]) if c in file.schema.names and (c == text or "id" in columns)]
        row = start
        for batch in file.batches(start, stop, needed):
            length = len(batch)
            numbers = np.arange(row, row + len(batch), dtype=np.int64)
            if rows is not None:
                low, high = np.searchsorted(rows, [row, row + len(batch)])
                numbers = rows[low:high]
                batch = batch.take(pa.array(numbers - row))
            row += length
            if len(numbers):
                yield passages(batch, text, name, numbers - entry.start + entry.first_row, entry.path, columns)

    def _rows_of(self, entry: Shard) -> npt.NDArray[np.int64] | None:
        if entry.keep is None:
            return None
        with pa.memory_map(str(self._root / entry.keep)) as source:
            column = pa.ipc.open_file(source).read_all().column("row")
            return np.array(column.to_numpy())


def passages(
    batch: pa.RecordBatch | pa.Table,
    text: str,
    source: str,
    rows: npt.NDArray[np.int64],
    path: str | Path,
    columns: Sequence[str] = ("id", "text", "source"),
) -> pa.RecordBatch:
    """A batch of a user's file as columns of `PASSAGE`; a missing id is made of the corpus's name and row number.

    Args:
        batch: rows of the file, with at least column `text`.
        rows: int64 [len(batch)], their row numbers in the corpus.
        path: the file, for error messages.
    """
    made: dict[str, pa.Array] = {}
    if "text" in columns:
        made["text"] = one(text_column(batch, text, Path(path)))
    if "id" in columns:
        made["id"] = pc.binary_join_element_wise(source, pa.array(rows).cast(pa.string()), ":")
        if "id" in batch.schema.names:
            made["id"] = pc.coalesce(one(_id_column(batch, path)), made["id"])
    if "source" in columns:
        made["source"] = pa.repeat(pa.scalar(source, pa.string()), len(rows))
    return pa.RecordBatch.from_arrays([made[c] for c in columns], schema=pa.schema([PASSAGE.field(c) for c in columns]))


def _id_column(batch: pa.RecordBatch | pa.Table, path: str | Path) -> pa.Array | pa.ChunkedArray:
    try:
        return batch.column("id").cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        kind = batch.schema.field("id").type
        raise InputError(f"{path}: column 'id' holds {kind}, which cannot be written as text; rename it") from error


def _open(path: Path) -> ColumnarFile:
    try:
        stat = path.stat()
    except OSError:
        return open_columnar(path)
    return _open_version(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _open_version(path: Path, size: int, changed: int) -> ColumnarFile:
    return open_columnar(path)
