"""Convert: text files, hub datasets and whatever is chunked are written once, to Parquet in the store.

Memory is a batch (`BATCH_ROWS` rows, some 16 MB at most) and one part of the output, whatever the corpus. Where files
came to a corpus behind those it had, all parts but the last stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selection import corpus
from selection.chunking import Chunker
from selection.columnar import open_columnar
from selection.corpus import Shard, passages
from selection.cutting import Ends, ShardCutter, ended, guarded, pieces, reading_bar
from selection.errors import InputError, NearkinError
from selection.files import atomic_write, link_or_copy, sha256_of_file, text_bytes
from selection.finding import HUB
from selection.manifest import CorpusEntry, FileEntry
from selection.reading import BATCH_ROWS, COLUMNAR_KINDS, kind_of, read_batches
from selection.store import Store
from selection.unfinished import Unfinished, made_by, unfinished
from selection.where import Filter

if TYPE_CHECKING:
    from selection.ingest import CorpusSpec


Written = tuple[str, int, str]  # a part: its name, rows, sha256


@dataclass(frozen=True)
class _Converted:
    """How far files have been written to parts that more behind them would not change.

    Attributes:
        file, at: all rows before that file, by its number, and so many of its own; `row` of the corpus in all.
        parts: how many hold what was kept of them, `rows` passages.
    """

    file: int = 0
    at: int = 0
    row: int = 0
    blank: int = 0
    filtered: int = 0
    parts: int = 0
    rows: int = 0


def convert(store: Store, spec: CorpusSpec, files: list[Path], known: CorpusEntry | None = None) -> CorpusEntry:
    """Writes a corpus to Parquet parts in the store, and cuts those into shards; no files: one of the hub.

    Args:
        known: what the same specification gave before; its parts of files that are as they were are not written again.

    Raises:
        InputError: a damaged file, no text column, a bad condition, not one passage with text.
    """
    target = store.corpus_folder(spec.name)
    chunker = Chunker(spec.chunk, spec.chunk_model) if spec.chunk else None
    sources = [store.source(file) for file in files]  # before they are read, so that an edit meanwhile is noticed
    store.save_checked()
    with (
        unfinished(target, spec.as_dict()) as work,
        closing(Filter(spec.where, spec.name, spec.text_column)) as condition,
        reading_bar(spec.name) as bar,
    ):
        done, shards, written = _read_before(work, store, target, sources, known)
        whole = done
        bar.update(done.row)
        parts = _PartWriter(work.folder, done.parts, done.rows)
        for number, at, path, batch, ends in _rest(spec, files, done.file, done.at):
            numbers = np.arange(done.row, done.row + len(batch), dtype=np.int64)
            passage = passages(batch, spec.text_column, spec.name, numbers, path)
            keep, blank, filtered = condition.rows(batch, passage, path)
            table = _with_others(passage, batch, spec.text_column).take(pa.array(keep))
            parts.write(chunker.split(table) if chunker else table, ends)
            row, blank, filtered = done.row + len(batch), done.blank + blank, done.filtered + filtered
            done = _Converted(number, at, row, blank, filtered, parts.count, parts.rows)
            bar.update(len(batch))
            if files and parts.all_written:
                whole = done
                work.save({"sources": sources, "whole": whole})
        parts.close()
        if parts.rows == 0:
            raise spec.nothing_left(done.blank, done.filtered)
        if files:
            work.save({"sources": sources, "whole": whole}, at_once=True)
        for part in sorted(work.folder.glob("part-*.parquet"))[len(written) :]:
            before = sum(rows for _, rows, _ in written)
            found, rows = _cut_part(part, store.relative(target / part.name), before)
            shards += found
            written.append((part.name, rows, sha256_of_file(part)))
    files_now = [store.hashed(target / name, rows, digest) for name, rows, digest in written]
    description = {**spec.as_dict(), "column": "text"}
    kept = {"by": made_by(), **asdict(whole)} if files else {}
    return CorpusEntry(spec.name, description, sources, files_now, done.blank, done.filtered, shards, whole=kept)


def _read_before(
    work: Unfinished, store: Store, target: Path, sources: list[FileEntry], known: CorpusEntry | None
) -> tuple[_Converted, list[Shard], list[Written]]:
    """What is still good of a reading that was stopped, or of that of a corpus that has gained files since.

    Returns:
        How far it goes, and the parts and their shards that need not be looked at again.
    """
    whole, before = _Converted(), list[FileEntry]()
    if work.state is not None:
        whole, before = _Converted(**work.state["whole"]), [FileEntry(**file) for file in work.state["sources"]]
    elif known is not None and known.whole.get("by") == made_by():
        whole, before = _Converted(**{n: v for n, v in known.whole.items() if n != "by"}), known.sources
    same = list(takewhile(lambda pair: pair[0] == pair[1], zip(before, sources, strict=False)))
    kept = known.files[: whole.parts] if known is not None and work.state is None else []
    there = all((work.folder / _part(number)).is_file() for number in range(len(kept), whole.parts))
    if len(same) <= whole.file or not there or not all(store.is_whole(file) for file in kept):
        whole, kept = _Converted(), []
    for part in work.folder.glob("part-*"):
        if part.name >= _part(whole.parts):
            part.unlink()
    for file in kept:
        link_or_copy(store.path / file.path, work.folder)
    # The new folder is another than the old one, which a store answers from until the build is through.
    now = {file.path: store.relative(target / Path(file.path).name) for file in kept}
    shards = [replace(s, path=now[s.path]) for s in known.shards if s.path in now] if known is not None else []
    return whole, shards, [(Path(file.path).name, file.rows, file.sha256) for file in kept]


def _rest(
    spec: CorpusSpec, files: list[Path], file: int, at: int
) -> Iterator[tuple[int, int, Path, pa.RecordBatch, Ends]]:
    """Pieces behind row `at` of a file, with the file's number and how many of its rows have been seen by then."""
    if not files:
        path, row = Path(spec.location), 0
        for batch, ends in pieces(_hub_batches(spec.location), spec.text_column, path):
            row += len(batch)
            yield 0, row, path, batch, ends
    for number, path in enumerate(files[file:], file):
        row = 0
        for batch, ends in _any_batches(path, spec.text_column):
            row += len(batch)
            if number > file or row > at:
                yield number, row, path, batch, ends


def _cut_part(part: Path, name: str, row: int) -> tuple[list[Shard], int]:
    """Shards of a part and its rows, by its name in the store; `row` is the corpus's of its first."""
    file, shards = open_columnar(part), list[Shard]()
    cutter = ShardCutter(name, row)
    for batch, ends in pieces(file.batches(0, file.rows, ["text"]), "text", part, file.cut_behind):
        cutter.add(len(batch), np.arange(len(batch), dtype=np.int64), batch.column("text"))
        if ends and cutter.full and (cut := cutter.cut()):
            shards.append(cut[0])
    if cut := cutter.cut():
        shards.append(cut[0])
    return shards, file.rows


def _with_others(passage: pa.RecordBatch, batch: pa.RecordBatch, text: str) -> pa.Table:
    """The passage columns, then the file's own others; a column ``source`` of its own becomes ``source_``."""
    columns = dict(zip(passage.schema.names, passage.columns, strict=True))
    for name in batch.schema.names:
        if name not in {"id", text}:
            columns["source_" if name == "source" else "text_" if name == "text" else name] = batch.column(name)
    return pa.table(columns)


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"


class _PartWriter:
    """Writes part-00000.parquet, part-00001.parquet, ...; a new one when a part is full or the columns change."""

    def __init__(self, folder: Path, count: int, rows: int) -> None:
        self._folder, self.count, self.rows = folder, count, rows
        self._schema: pa.Schema | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0

    def write(self, table: pa.Table, ends: Ends) -> None:
        """Adds rows; a part ends with a batch or, where that would be far too large, with a quarter shard."""
        if table.num_rows:
            if self._schema is not None and not self._schema.equals(table.schema):
                self._flush()
            self._schema = table.schema
            self._pending.append(table)
            self._pending_rows += table.num_rows
            self._pending_bytes += text_bytes(table.column("text"))
        full = self._pending_rows >= 4 * corpus.SHARD_ROWS or self._pending_bytes >= 2 * corpus.SHARD_BYTES
        if (ends is Ends.BATCH and full) or (ends is Ends.QUARTER and self._pending_bytes >= 8 * corpus.SHARD_BYTES):
            self._flush()

    @property
    def all_written(self) -> bool:
        return not self._pending

    def _flush(self) -> None:
        if self._pending:
            path = self._folder / _part(self.count)
            with atomic_write(path) as aside:
                pq.write_table(
                    pa.concat_tables(self._pending), aside, compression="zstd", row_group_size=corpus.SHARD_ROWS
                )
            self.count, self.rows = self.count + 1, self.rows + self._pending_rows
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def close(self) -> None:
        self._flush()


def _any_batches(path: Path, column: str) -> Iterator[tuple[pa.RecordBatch, Ends]]:
    if kind_of(path) in COLUMNAR_KINDS:
        file = open_columnar(path)
        return pieces(guarded(path, file.batches(0, file.rows, None)), column, path, file.cut_behind)
    if kind_of(path) == ".txt":
        return pieces(read_batches(path), column, path)
    # Of long rows fewer are read at once, and fewer where a buffer of DuckDB's ends.
    return ended(pieces(read_batches(path), column, path, lambda row: (row // BATCH_ROWS + 1) * BATCH_ROWS))


def _hub_batches(location: str) -> Iterator[pa.RecordBatch]:
    """Streams a hub dataset (or a local folder of one) as Arrow."""
    from datasets import load_dataset

    name, _, split = location.removeprefix(HUB).partition(":")
    configured = name.count("/") == 2 and not Path(name).exists()
    arguments = name.rsplit("/", 1) if configured else [name]
    try:
        dataset = load_dataset(*arguments, split=split or "train", streaming=True)
        for table in dataset.with_format("arrow").iter(batch_size=2048):
            yield from table.to_batches()
    except NearkinError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()[:60]) or type(error).__name__
        raise InputError(f"dataset {location} cannot be loaded: {reason}") from error
