"""``--where``: which rows of a batch are kept."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from selection.errors import InputError


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
