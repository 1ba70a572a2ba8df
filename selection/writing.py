"""Tables as files that other programs read: Parquet, csv, jsonl, by the file's name."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

from selection.errors import InputError, NearkinError
from selection.files import atomic_write

FORMATS = {".parquet": "format parquet, compression zstd", ".csv": "format csv, header", ".jsonl": "format json"}


def check_format(path: Path) -> None:
    """Raises InputError where the name does not say a format: asked before long work, not after it."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: name it .parquet, .csv or .jsonl")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")


def write_table(table: pa.Table, path: Path) -> None:
    """Writes `table` in the format of the file's name; the file appears whole or not at all."""
    check_format(path)
    with duckdb.connect() as connection, atomic_write(path) as aside:
        connection.register("rows", table)
        quoted = str(aside).replace("'", "''")
        try:
            connection.execute(f"copy rows to '{quoted}' ({FORMATS[path.suffix]})")
        except duckdb.Error as error:
            raise NearkinError(f"{path} cannot be written: {str(error).strip().splitlines()[0]}") from error
