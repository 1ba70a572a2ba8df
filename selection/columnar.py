"""Parquet and Arrow IPC files read where they lie, by row range, without holding a file in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selection.errors import InputError
from selection.reading import BATCH_ROWS, kind_of


class ColumnarFile(Protocol):
    """A file of rows that can be streamed from any row on."""

    rows: int
    schema: pa.Schema

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        """Record batches of rows [start, stop), with these columns (None: all)."""
        ...


class ParquetFile:
    """Rows of a Parquet file; memory is one batch and the pages under it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        self.schema = self._file.schema_arrow
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.metadata.num_row_groups)]
        self._edges = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.rows = int(self._edges[-1])

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        first = max(int(np.searchsorted(self._edges, start, "right")) - 1, 0)
        last = int(np.searchsorted(self._edges, stop, "left"))
        row = int(self._edges[first])
        for batch in self._file.iter_batches(BATCH_ROWS, row_groups=list(range(first, last)), columns=columns):
            low, high = max(start - row, 0), min(stop - row, len(batch))
            if low < high:
                yield batch.slice(low, high - low)
            row += len(batch)


class ArrowFile:
    """Rows of an Arrow IPC file, memory-mapped; a stream-format file is read through once to find its batches."""

    def __init__(self, path: Path) -> None:
        source = pa.memory_map(str(path))
        try:
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            self._batches = list(reader)
        self.schema = reader.schema
        self._edges = np.concatenate([[0], np.cumsum([len(b) for b in self._batches], dtype=np.int64)])
        self.rows = int(self._edges[-1])

    def batches(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        for row, batch in zip(self._edges[:-1].tolist(), self._batches, strict=True):
            low, high = max(start - row, 0), min(stop - row, len(batch))
            for at in range(low, high, BATCH_ROWS):
                part = batch.slice(at, min(BATCH_ROWS, high - at))
                yield part if columns is None else part.select(columns)


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
