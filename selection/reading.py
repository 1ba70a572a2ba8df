"""Text files as streams of Arrow record batches: txt (one passage a line), csv, jsonl, plain or .gz or .zst.

DuckDB parses csv and jsonl (types, streaming, parallelism); what it does not say well, which line is broken, is
found by a second, slow pass over the one file that failed.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from selection.errors import InputError

BATCH_ROWS = 2048
BATCH_BYTES = 16 << 20
BLOCK_BYTES = 8 << 20
LARGEST_ROW_BYTES = 256 << 20
USUAL_ROW_BYTES = 16 << 20
ROWS_AT_ONCE, LARGEST_ROWS_AT_ONCE = 64, 4  # of DuckDB, whose texts have 32-bit offsets: 2 GiB in all
SEPARATORS = {".csv": ",", ".tsv": "\t"}
COMPRESSED = {".gz", ".zst"}
TEXT_KINDS = {".txt", ".csv", ".tsv", ".jsonl", ".json", ".ndjson"}
COLUMNAR_KINDS = {".parquet", ".arrow", ".feather", ".ipc"}


def kind_of(path: Path) -> str:
    """The format of a file by its name, compression left out: ``".jsonl"`` for ``a.jsonl.zst``."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Streams a text file as record batches of at most `BATCH_ROWS` rows, of about `BATCH_BYTES` where rows are long.

    txt gives one column ``text``; csv and jsonl give their own columns. Blank lines of a txt are rows (they count).

    Raises:
        InputError: unknown format, empty file, broken line (with its number), bytes that are not UTF-8.
    """
    kind = kind_of(path)
    if kind not in TEXT_KINDS:
        raise InputError(
            f"{path}: unknown format; nearkin reads .txt, .csv, .tsv, .jsonl (also .gz, .zst), .parquet and .arrow"
        )
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    yield from _read_txt(path) if kind == ".txt" else _read_with_duckdb(path, kind)


def _read_txt(path: Path) -> Iterator[pa.RecordBatch]:
    line, rest = 1, b""
    with _open(path) as stream:
        while True:
            block = _next_block(stream, path)
            lines, newline, rest = (rest + block).rpartition(b"\n") if block else (rest, b"", b"")
            if lines or newline:
                yield from _lines_to_batches(lines, path, line)
                line += lines.count(b"\n") + 1
            if not block:
                return


def _open(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression="detect")


def _next_block(stream: pa.NativeFile, path: Path) -> bytes:
    try:
        return bytes(stream.read(BLOCK_BYTES))
    except OSError as error:
        raise InputError(f"{path} cannot be decompressed: it is damaged or cut short") from error


def _lines_to_batches(lines: bytes, path: Path, first_line: int) -> Iterator[pa.RecordBatch]:
    try:
        block = lines.decode("utf-8")
    except UnicodeDecodeError as error:
        number = first_line + lines.count(b"\n", 0, error.start)
        raise InputError(f"{path}, line {number}: not valid UTF-8; convert the file to UTF-8") from error
    texts = pc.utf8_rtrim(pc.split_pattern(pa.array([block], pa.large_string()), "\n").values, "\r")
    for start in range(0, len(texts), BATCH_ROWS):
        yield pa.record_batch([texts.slice(start, BATCH_ROWS)], names=["text"])


def _read_with_duckdb(path: Path, kind: str) -> Iterator[pa.RecordBatch]:
    # DuckDB takes every name for a pattern, so a file called data[1].jsonl must be spelt out.
    source = glob.escape(str(path)).replace("'", "''")
    try:
        with duckdb.connect(config={"memory_limit": "2GB", "threads": "2"}) as connection:
            csv_query = (_csv_query(source, kind), ROWS_AT_ONCE) if kind in SEPARATORS else None
            query, rows = csv_query or _json_query(source, connection)
            yield from _gathered(connection.sql(query).to_arrow_reader(rows))
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # Arrow's, where the first rows were read already
        raise _explain(error, path, kind) from error
    # DuckDB, in one thread, leaves out a value whose quote is never closed and with it the rest of the file.
    if kind in SEPARATORS and _quotes(path) % 2 and (broken := _broken_row(path, SEPARATORS[kind])):
        raise _broken(path, *broken)


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of few at a time, up to `BATCH_ROWS` of them and `BATCH_BYTES`."""
    parts: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if parts and (rows + len(batch) > BATCH_ROWS or size + batch.nbytes > BATCH_BYTES):
            yield from pa.Table.from_batches(parts).combine_chunks().to_batches()
            parts, rows, size = [], 0, 0
        parts, rows, size = [*parts, batch], rows + len(batch), size + batch.nbytes
    if parts:
        yield from pa.Table.from_batches(parts).combine_chunks().to_batches()


def _csv_query(source: str, kind: str) -> str:
    """RFC 4180 and nothing guessed: a guess drops rows that look like comments and splits at semicolons.

    In one thread: several would begin within the file, and refuse one where a text with line breaks lies there. The
    buffers that DuckDB chooses itself hold 16 of the largest rows, which its releases before 2.0 find no memory for.
    """
    return (
        f"from read_csv('{source}', header=true, all_varchar=true, delim='{SEPARATORS[kind]}', quote='\"', "
        f"escape='\"', comment='', skip=0, parallel=false, max_line_size={LARGEST_ROW_BYTES}, "
        f"buffer_size={LARGEST_ROW_BYTES + 1})"
    )


def _json_query(source: str, connection: duckdb.DuckDBPyConnection) -> tuple[str, int]:
    """Columns with the types DuckDB finds in the whole file, except that what is written as a string stays one.

    Left alone, strings that look like dates or UUIDs are rewritten, and a column of strings and numbers comes back as
    JSON source, in quotes. DuckDB holds several times as much as a row may have, so rows may only have much where one
    has.

    Returns:
        The query, and how many rows of its answer to take at once.
    """
    try:
        return _typed(source, connection, USUAL_ROW_BYTES), ROWS_AT_ONCE
    except duckdb.Error as error:
        if "maximum_object_size" not in str(error):
            raise
    return _typed(source, connection, LARGEST_ROW_BYTES), LARGEST_ROWS_AT_ONCE


def _typed(source: str, connection: duckdb.DuckDBPyConnection, largest: int) -> str:
    options = f"format='newline_delimited', records='true', maximum_object_size={largest}"
    described = connection.sql(f"describe from read_json('{source}', {options}, sample_size=-1)").fetchall()
    as_text = ("JSON", "DATE", "TIME", "UUID", '"NULL"')
    columns = {name: "VARCHAR" if str(kind).startswith(as_text) else str(kind) for name, kind, *_ in described}
    listed = ", ".join(f"{_quoted(name)}: {_quoted(kind)}" for name, kind in columns.items())
    return f"from read_json('{source}', {options}, columns={{{listed}}})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _explain(error: Exception, path: Path, kind: str) -> InputError:
    if kind not in SEPARATORS:
        for number, line in _raw_lines(path):
            try:
                if line.strip() and not isinstance(json.loads(line.decode("utf-8")), dict):
                    return InputError(f"{path}, line {number}: not a JSON object; each line must be one, {{...}}")
            except UnicodeDecodeError:
                return InputError(f"{path}, line {number}: not valid UTF-8; convert the file to UTF-8")
            except ValueError:
                return InputError(f"{path}, line {number}: broken JSON; mend or remove that line")
    number, line = next(((n, raw) for n, raw in _raw_lines(path) if not _is_utf8(raw)), (0, b""))
    if number:
        return InputError(f"{path}, line {number}: not valid UTF-8; convert the file to UTF-8")
    if kind in SEPARATORS and (broken := _broken_row(path, SEPARATORS[kind])):
        return _broken(path, *broken)
    return InputError(f"{path} cannot be read: {str(error).strip().splitlines()[0]}")


def _broken(path: Path, line: int, what: str) -> InputError:
    return InputError(f"{path}, line {line}: {what}; mend or remove that line")


def _quotes(path: Path) -> int:
    """How many quotation marks a csv has: an even number, where each is closed and none stands within a plain value."""
    count = 0
    with _open(path) as stream:
        while block := _next_block(stream, path):
            count += block.count(b'"')
    return count


def _broken_row(path: Path, separator: str) -> tuple[int, str] | None:
    """The line that the first broken row of a csv begins on, which DuckDB counts in rows, and what is wrong with it."""
    rows = csv.reader((raw.decode("utf-8") + "\n" for _, raw in _raw_lines(path)), delimiter=separator, strict=True)
    line, columns = 1, 0
    before = csv.field_size_limit(LARGEST_ROW_BYTES)
    try:
        for row in rows:
            columns = columns or len(row)
            if row and len(row) != columns:
                return line, f"{len(row)} columns, and the first line has {columns}"
            line = rows.line_num + 1
    except csv.Error as error:
        return line, f"broken CSV ({error})"
    finally:
        csv.field_size_limit(before)
    return None


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number, rest = 1, b""
    with _open(path) as stream:
        while block := _next_block(stream, path):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield number, line
                number += 1
    if rest:
        yield number, rest


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def read_table(path: Path, column: str | None = None) -> pa.Table:
    """A whole small file (a task split, an exclusion list) as one table, any readable format.

    Args:
        column: of Parquet and Arrow files, only this one where they have it.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if kind_of(path) in COLUMNAR_KINDS:
        from selection.columnar import open_columnar

        file = open_columnar(path)
        try:
            columns = [column] if column is not None and column in file.schema.names else None
            batches = list(file.batches(0, file.rows, columns))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(path) from error
        return pa.Table.from_batches(batches, None if batches else file.schema)
    batches = list(read_batches(path))
    if not batches:
        raise InputError(f"{path} has no rows")
    return pa.Table.from_batches(batches)


def unreadable(path: Path) -> InputError:
    """What to say of a Parquet or Arrow file that breaks off."""
    return InputError(f"{path} cannot be read to its end (cut short or damaged): copy or write it again")


NAME_IT, CALL_IT = "name the text column with --text-column", 'call the column of its texts "text"'


def text_column(
    table: pa.Table | pa.RecordBatch, name: str, path: Path, remedy: str = NAME_IT
) -> pa.Array | pa.ChunkedArray:
    """Column `name` as large strings.

    Args:
        path: the file, and `remedy` what to do, for error messages.

    Raises:
        InputError: no such column, or it does not hold text.
    """
    if name not in table.schema.names:
        has = ", ".join(table.schema.names) or "none"
        raise InputError(f"{path} has no column {name!r} (it has {has}); {remedy}")
    if table.schema.names.count(name) > 1:
        raise InputError(f"{path} has several columns {name!r}: rename all but one")
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_null(column.type):
        return column.cast(pa.large_string())
    if not (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)
    ):
        raise InputError(f"{path}: column {name!r} holds {column.type}, not text; {remedy}")
    return column.cast(pa.large_string())


def texts_of(table: pa.Table, path: Path) -> pa.ChunkedArray:
    """Column ``text`` of a task's split or of an excluded file as large strings; raises as `text_column` does."""
    return text_column(table, "text", path, CALL_IT)


def is_blank(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """True where a text is null, empty or white space only."""
    return pc.equal(pc.fill_null(pc.utf8_trim_whitespace(texts), ""), "")
