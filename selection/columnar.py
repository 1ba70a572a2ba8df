"""Parquet and Arrow IPC files read where they lie, by row range, without holding a file in memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selection.errors import InputError
from selection.reading import BATCH_BYTES, BATCH_ROWS, kind_of

BUFFER_BYTES = 1 << 20


class ColumnarFile(Protocol):
    """A file of rows that can be streamed from any row on, in batches of about `BATCH_BYTES` where rows are long."""

    rows: int
    schema: pa.Schema

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        """Record batches of rows [start, stop), with these columns (None: all)."""
        ...

    def cut_behind(self, row: int) -> int:
        """The first row behind `row`, of the file, where a shard may begin: a batch of `BATCH_ROWS` would end there.

        It depends on the file alone, so that shards stay what they are whatever batches are read.
        """
        ...


@dataclass
class _Stream:
    """Batches of `file` from `row` on: the one that was read last, where it is still needed, and those behind."""

    file: ParquetFile
    row: int
    columns: list[str] | None
    behind: Iterator[pa.RecordBatch]
    read: pa.RecordBatch | None = None


# What was last read, whatever the file: one for all, so that many files cost no memory.
_LEFT: deque[_Stream] = deque(maxlen=1)


class ParquetFile:
    """Rows of a Parquet file; memory is one batch and the pages under it.

    A row group can only be read from its first row on, and may hold a million. So where a range of rows ends, what
    reads the file stays open, and a range behind it goes on from there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Not mapped: a file cut short meanwhile is an error, no crash. Buffered: else a row group is read at one go.
        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
        self.schema = self._file.schema_arrow
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.metadata.num_row_groups)]
        self._edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.rows = int(self._edges[-1])
        self._batch_rows: dict[tuple[str, ...] | None, list[int]] = {}

    def cut_behind(self, row: int) -> int:
        return min((row // BATCH_ROWS + 1) * BATCH_ROWS, self.rows)

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        stream = self._stream(start, columns)
        while stream.row < stop:
            if stream.read is None and (batch := next(stream.behind, None)) is not None:
                stream.read = batch
            if stream.read is None:
                return
            low, high = max(start - stream.row, 0), min(stop - stream.row, len(stream.read))
            if low < high:
                yield without_views(stream.read.slice(low, high - low))
            if high < len(stream.read):  # the next range may begin in this batch
                break
            stream.row, stream.read = stream.row + len(stream.read), None
        if stream.row < self.rows:
            _LEFT.append(stream)

    def _stream(self, start: int, columns: list[str] | None) -> _Stream:
        """What the last range has left open, where that is nearer to row `start` than its row group's first row."""
        first = max(int(np.searchsorted(self._edges, start, "right")) - 1, 0)
        row = int(self._edges[first])
        with contextlib.suppress(IndexError):  # taken out, so that no other thread reads from it
            left = _LEFT.pop()
            if left.file is self and left.columns == columns and row <= left.row <= start:
                return left
        return _Stream(self, row, columns, self._read(first, columns))

    def _read(self, first: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        """Row groups from `first` on; those that take batches of as many rows together."""
        sizes = self._sizes(columns)
        for rows, groups in groupby(range(first, len(sizes)), key=sizes.__getitem__):
            yield from self._file.iter_batches(rows, row_groups=list(groups), columns=columns)

    def _sizes(self, columns: list[str] | None) -> list[int]:
        """Rows of a batch of each row group, by the bytes that the file says its columns have unpacked."""
        key = None if columns is None else tuple(columns)
        if key not in self._batch_rows:
            meta = self._file.metadata
            paths = [meta.schema.column(i).path for i in range(meta.num_columns)]
            within = [i for i, path in enumerate(paths) if any(f"{path}.".startswith(f"{c}.") for c in key or ())]
            sizes = []
            for number, rows in enumerate(np.diff(self._edges).tolist()):
                group = meta.row_group(number)
                size = sum(group.column(i).total_uncompressed_size for i in within) if key else group.total_byte_size
                sizes.append(batch_rows(rows, size))
            self._batch_rows[key] = sizes  # whole at once: several threads may read the file
        return self._batch_rows[key]


class ArrowFile:
    """Rows of an Arrow IPC file, memory-mapped, a batch at a time; stream format too, read from its start each time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with pa.memory_map(str(path)) as source:
            try:
                self.schema, self._is_stream = pa.ipc.open_file(source).schema, False
            except pa.ArrowInvalid:
                source.seek(0)
                self.schema, self._is_stream = pa.ipc.open_stream(source).schema, True
        self._edges = np.concatenate([[0], np.cumsum([len(b) for b in self._all(0)], dtype=np.int64)])
        self.rows = int(self._edges[-1])

    def _all(self, first: int) -> Iterator[pa.RecordBatch]:
        """The file's batches from number `first` on; one at a time, since compressed ones are copies."""
        source = pa.memory_map(str(self._path))
        if self._is_stream:
            yield from islice(pa.ipc.open_stream(source), first, None)
        else:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(i) for i in range(first, reader.num_record_batches))

    def cut_behind(self, row: int) -> int:
        stretch = int(np.searchsorted(self._edges, row, "right")) - 1
        first = int(self._edges[stretch])
        cut = first + ((row - first) // BATCH_ROWS + 1) * BATCH_ROWS
        return min(cut, int(self._edges[stretch + 1]))

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        first = max(int(np.searchsorted(self._edges, start, "right")) - 1, 0)
        row = int(self._edges[first])
        for batch in self._all(first):
            if row >= stop:
                return
            low, high = max(start - row, 0), min(stop - row, len(batch))
            wanted = batch if columns is None else batch.select(columns)
            rows = batch_rows(len(batch), _size(wanted))
            for at in range(low, high, rows):
                yield without_views(wanted.slice(at, min(rows, high - at)))
            row += len(batch)


def _size(batch: pa.RecordBatch) -> int:
    """Bytes of a batch; of the buffers that it shares with others, where this Arrow cannot tell its own."""
    try:
        return int(batch.nbytes)
    except pa.ArrowException:
        return int(batch.get_total_buffer_size())


def batch_rows(rows: int, size: int) -> int:
    """How many of `rows` rows with `size` bytes make a batch: `BATCH_ROWS`, halved until they have `BATCH_BYTES`."""
    most = BATCH_ROWS
    while most > 1 and most * size > BATCH_BYTES * rows:
        most //= 2
    return most


def without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """string_view columns as large_string: Arrow has no ``take`` for views."""
    if not any(pa.types.is_string_view(field.type) for field in batch.schema):
        return batch
    columns = [c.cast(pa.large_string()) if pa.types.is_string_view(c.type) else c for c in batch.columns]
    return pa.record_batch(columns, names=batch.schema.names)


def open_columnar(path: Path) -> ColumnarFile:
    """Opens a Parquet or Arrow IPC file.

    Raises:
        InputError: missing, empty, cut short, or not what its name says.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    try:
        return ParquetFile(path) if kind_of(path) == ".parquet" else ArrowFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        kind = "Parquet" if kind_of(path) == ".parquet" else "Arrow IPC"
        raise InputError(f"{path} is not a whole {kind} file (cut short or damaged): copy or write it again") from error
