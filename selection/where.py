"""Which rows of a batch are kept: those with text, and of these the ones that ``--where`` keeps."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.errors import InputError
from selection.reading import is_blank


class Filter:
    """The ``--where`` condition, asked of DuckDB a batch at a time. It sees the rows and nothing else: no files.

    Its names are ``id``, ``text`` and ``source`` of the passage, then the file's own columns. Where one of these has
    such a name itself and is another thing, it gets a ``_`` behind it, as in the store: DuckDB's names know no case.
    """

    def __init__(self, where: str | None, source: str, text: str) -> None:
        self._where, self._source, self._text = where, source, text
        self._connection = duckdb.connect(config={"enable_external_access": "false", "threads": "1"})

    def close(self) -> None:
        self._connection.close()

    def keep(self, batch: pa.RecordBatch, passage: pa.RecordBatch) -> pa.Array:
        """Boolean [n]: the rows that satisfy the condition (unknown counts as no)."""
        if self._where is None:
            return pa.repeat(True, len(batch))
        taken = {name.lower() for name in passage.schema.names}
        others = [n for n in batch.schema.names if n != "id" and not (n == self._text and n.lower() in taken)]
        names = [*passage.schema.names, *(f"{n}_" if n.lower() in taken else n for n in others)]
        arrays = [*passage.columns, *(batch.column(n) for n in others)]
        self._connection.register("passages", pa.table(arrays, names=names))
        try:
            result = self._connection.sql(f"select coalesce(({self._where}), false) as keep from passages")
            column = result.to_arrow_table().column("keep")
        except duckdb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--where {self._where!r} does not work on corpus {self._source}: {reason}") from error
        if len(column) != len(batch):
            raise InputError(f"--where {self._where!r} must be a condition on one row, without aggregates")
        if not pa.types.is_boolean(column.type):
            raise InputError(f"--where {self._where!r} is not a condition: it gives {column.type}, not true or false")
        return column.combine_chunks()

    def rows(
        self, batch: pa.RecordBatch, passage: pa.RecordBatch, path: Path
    ) -> tuple[npt.NDArray[np.int64], int, int]:
        """Positions of the rows to keep, and how many were blank, and how many the condition left out."""
        texts = passage.column("text")
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{path}: the text column holds bytes that are not valid UTF-8; write it again as UTF-8"
            ) from error
        blank = is_blank(texts)
        wanted = self.keep(batch, passage)
        keep = pc.and_(pc.invert(blank), wanted)
        no_text = pc.sum(blank).as_py() or 0
        kept = np.flatnonzero(keep.to_numpy(zero_copy_only=False)).astype(np.int64)
        return kept, no_text, len(batch) - no_text - len(kept)
