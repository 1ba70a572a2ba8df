"""From files to shards: reads each row once, drops blank and filtered ones, cuts shards.

Parquet and Arrow files stay where they are. Everything else (and everything, under ``chunk``) is written once to
Parquet in the store. Memory is a batch (`BATCH_ROWS` rows, some 16 MB at most) and one part of the output, whatever the
corpus.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from selection.chunking import Chunker
from selection.columnar import ColumnarFile, open_columnar
from selection.corpus import SHARD_BYTES, SHARD_ROWS, Shard, passages
from selection.encoders import STATIC, full_name
from selection.errors import InputError, NearkinError
from selection.files import ASIDE, TextFingerprint, atomic_write, text_bytes
from selection.finding import HUB, find_files
from selection.reading import (
    BATCH_ROWS,
    COLUMNAR_KINDS,
    is_blank,
    kind_of,
    read_batches,
    text_column,
    unreadable,
)
from selection.slugs import encoder_held
from selection.store import CorpusEntry, FileEntry, Store
from selection.unfinished import Unfinished, unfinished
from selection.where import Filter

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class CorpusSpec:
    """One ``--corpus NAME=PATH`` with the options that shape its passages.

    Attributes:
        name: the corpus's name, the value of column ``source``.
        location: a file, folder, glob, or ``hf://owner/dataset[/CONFIGURATION][:split]``.
        text_column: where the text is.
        where: DuckDB condition over the file's columns and ``id``, ``text``, ``source``; None keeps all.
        chunk: most tokens of a passage, or None for rows as they are.
        chunk_model: whose tokenizer counts them.
    """

    name: str
    location: str
    text_column: str = "text"
    where: str | None = None
    chunk: int | None = None
    chunk_model: str | None = None


def parse_corpus(argument: str, option: str = "--corpus ") -> tuple[str, str]:
    """``NAME=PATH`` as (name, path).

    Raises:
        InputError: no name, no path, or a name that cannot be a folder's.
    """
    name, equals, location = argument.partition("=")
    if not equals or not location:
        raise InputError(f"{option}{argument}: write it as NAME=PATH, for example papers=papers.parquet")
    if not NAME.fullmatch(name) or name.endswith(ASIDE):
        raise InputError(f"corpus name {name!r}: use letters, digits, dot, dash and underscore")
    return name, location


def new_files(entry: CorpusEntry, store: Store) -> list[Path]:
    """Files that a corpus's folder or glob has now and had not when it was read; none where it is gone altogether."""
    location = str(entry.spec["location"])
    if location.startswith(HUB):
        return []
    known = {file.path for file in entry.sources}
    try:
        found = _outside(store, find_files(location, quiet=True))
        names = [store.relative(file) for file in found]
        if not known <= set(names):  # what is gone lives on in the store alone
            return []
        return [file for file, name in zip(found, names, strict=True) if name not in known]
    except InputError:
        return []


def _outside(store: Store, files: list[Path]) -> list[Path]:
    """Those that are not the store's, where it lies within the corpus's folder."""
    own = Path(os.path.abspath(store.path))  # noqa: PTH100
    return [file for file in files if not Path(os.path.abspath(file)).is_relative_to(own)]  # noqa: PTH100


def ingest(store: Store, spec: CorpusSpec) -> CorpusEntry:
    """Scans (and where needed converts) one corpus; reuses the scan in the manifest when no file has changed.

    Raises:
        InputError: nothing to read, a damaged file, no text column, a bad condition, not one passage with text.
    """
    if not spec.location.startswith(HUB):
        absolute = os.path.abspath(Path(spec.location).expanduser())  # noqa: PTH100
        spec = replace(spec, location=absolute)
    known = next((c for c in store.manifest.corpora if c.name == spec.name), None)
    if spec.chunk is not None:
        held = encoder_held(store, spec.chunk_model)
        spec = spec if held is None else replace(spec, chunk_model=held.model.removeprefix(STATIC))
        spec = replace(spec, chunk_model=_counting_model(store, spec, known))
    if spec.location.startswith(HUB):
        if known and _same(known, spec) and all(store.is_whole(f) for f in known.files):
            return known
        return _convert(store, spec, [])
    files = _outside(store, find_files(spec.location))
    if not files:
        raise InputError(f"{spec.location} holds no file but the store's own")
    unmoved = known and _same(known, spec) and [f.path for f in known.sources] == [store.relative(f) for f in files]
    if known and unmoved and all(store.is_whole(f) for f in [*known.sources, *known.files]):
        return known
    kinds = {kind_of(f) for f in files}
    if kinds <= COLUMNAR_KINDS and spec.chunk is None:
        return _scan(store, spec, files, known if known and _same(known, spec) else None)
    return _convert(store, spec, files)


def _counting_model(store: Store, spec: CorpusSpec, known: CorpusEntry | None) -> str | None:
    """Whose tokenizer counts a chunk's tokens: as asked, else as before, else that of the store's encoder."""
    if spec.chunk_model is not None:
        return full_name(spec.chunk_model)
    if known is not None and known.spec.get("chunk") is not None:
        before: str | None = known.spec.get("chunk_model")
        return before
    models = [store.manifest.encoders[slug].model for slug in store.manifest.in_use]
    return models[0].removeprefix(STATIC) if models else None


def _same(known: CorpusEntry, spec: CorpusSpec) -> bool:
    asked = _spec_dict(spec)
    return all(known.spec.get(key) == value for key, value in asked.items() if key != "column")


def _spec_dict(spec: CorpusSpec) -> dict[str, object]:
    value = asdict(spec)
    value.pop("name")
    return {**value, "column": spec.text_column}


class _ShardCutter:
    """Collects kept rows of one file until a shard is full."""

    def __init__(self, path: str, first_row: int, at: int = 0) -> None:
        self.path, self.file_first_row = path, first_row
        self.start = self.row = at
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
        return self.rows >= SHARD_ROWS or self.bytes >= SHARD_BYTES

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


@dataclass
class _Scanned:
    """How far files that stay where they are have been read.

    Attributes:
        sources: those that were read or begun.
        left_out: of each, how many rows were blank, and how many the condition left out.
        shards: what they became.
        at: how many rows of the last one have been read.
    """

    sources: list[FileEntry] = field(default_factory=list)
    left_out: list[list[int]] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    at: int = 0

    def keep_first(self, count: int) -> None:
        """Forgets all but the first files."""
        if count < len(self.sources):
            names = {file.path for file in self.sources[count:]}
            self.shards = [shard for shard in self.shards if shard.path not in names]
            self.sources, self.left_out = self.sources[:count], self.left_out[:count]
            self.at = self.sources[-1].rows if count else 0


def _scanned(work: Unfinished, store: Store, files: list[Path], known: CorpusEntry | None) -> _Scanned:
    """What is still good of a reading that was stopped, or of that of a corpus that has gained files since."""
    done, inside = _Scanned(), work.folder
    if work.state is not None:
        sources, shards = [FileEntry(**f) for f in work.state["sources"]], [Shard(**s) for s in work.state["shards"]]
        done = _Scanned(sources, work.state["left_out"], shards, work.state["at"])
    elif known is not None and known.sources and all(store.is_whole(file) for file in known.files):
        left_out = [[known.blank, known.filtered], *([0, 0] for _ in known.sources[1:])]
        done, inside = _Scanned(list(known.sources), left_out, list(known.shards), known.sources[-1].rows), store.path
    pairs = zip(done.sources, files, strict=False)
    same = len(list(takewhile(lambda pair: store.relative(pair[1]) == pair[0].path and store.is_whole(pair[0]), pairs)))
    # What was left out of a finished corpus is known of the whole alone.
    done.keep_first(same if inside == work.folder or same == len(done.sources) else 0)
    keeps = [shard.keep for shard in done.shards if shard.keep]
    if inside != work.folder:
        for name in keeps:
            shutil.copy(inside / name, work.folder)
        done.shards = [replace(shard, keep=shard.keep and Path(shard.keep).name) for shard in done.shards]
    for file in set(work.folder.glob("keep-*")) - {work.folder / Path(name).name for name in keeps}:
        file.unlink()
    return done


def _scan(store: Store, spec: CorpusSpec, files: list[Path], known: CorpusEntry | None) -> CorpusEntry:
    """Cuts files that stay where they are into shards; `known` is what the same specification gave before."""
    target = store.corpus_folder(spec.name)
    with (
        unfinished(target, _spec_dict(spec)) as work,
        closing(Filter(spec.where, spec.name, spec.text_column)) as condition,
        _bar(spec.name) as bar,
    ):
        done, row = _scanned(work, store, files, known), 0
        for number, path in enumerate(files):
            if number == len(done.sources):
                # Hashed before it is read, so that an edit meanwhile is noticed at the next use.
                source, done.at = store.source(path), 0
                file = open_columnar(path)
                done.sources.append(replace(source, rows=file.rows))
                done.left_out.append([0, 0])
            elif number < len(done.sources) - 1 or done.at == done.sources[-1].rows:
                row += done.sources[number].rows
                bar.update(done.sources[number].rows)
                continue
            else:
                file = open_columnar(path)
                bar.update(done.at)
            _scan_file(store, spec, path, file, row, done, work, condition, bar)
            row += file.rows
        blank, filtered = (sum(counts) for counts in zip(*done.left_out, strict=True))
        _require_passages(spec, done.shards, blank, filtered)
    shards, entries = done.shards, []
    keeps = [(at, shard) for at, shard in enumerate(shards) if shard.keep]
    for at, shard in keeps:
        entries.append(store.entry(target / str(shard.keep), shard.rows))
        shards[at] = replace(shard, keep=entries[-1].path)
    if not keeps:
        shutil.rmtree(target, ignore_errors=True)
    return CorpusEntry(spec.name, _spec_dict(spec), done.sources, entries, blank, filtered, shards)


def _scan_file(
    store: Store,
    spec: CorpusSpec,
    path: Path,
    file: ColumnarFile,
    row: int,
    done: _Scanned,
    work: Unfinished,
    condition: Filter,
    bar: tqdm[None],
) -> None:
    """Cuts one file into shards, from row ``done.at`` of it on; `row` is the corpus's of its first."""
    if spec.text_column not in file.schema.names:
        text_column(file.schema.empty_table(), spec.text_column, path)
    columns = None if spec.where else [spec.text_column]
    cutter = _ShardCutter(store.relative(path), row, done.at)
    read = _guarded(path, file.batches(done.at, file.rows, columns))
    for batch, ends in _pieces(read, spec.text_column, path, file.cut_behind, done.at):
        numbers = np.arange(cutter.row, cutter.row + len(batch), dtype=np.int64) + row
        passage = passages(batch, spec.text_column, spec.name, numbers, path, _needed(spec))
        keep, blank, filtered = _kept(batch, passage, condition, path)
        counts = done.left_out[-1]
        done.left_out[-1] = [counts[0] + blank, counts[1] + filtered]
        cutter.add(len(batch), keep, passage.column("text").take(pa.array(keep)))
        bar.update(len(batch))
        if ends and cutter.full:
            _collect(cutter, done.shards, work.folder)
            if ends is Ends.BATCH:  # where a reading can begin
                done.at = cutter.row
                if work.save(done):
                    store.save_checked()
    _collect(cutter, done.shards, work.folder)
    done.at = file.rows
    if work.save(done):
        store.save_checked()


def _needed(spec: CorpusSpec) -> tuple[str, ...]:
    return ("id", "text", "source") if spec.where else ("text",)


def _collect(cutter: _ShardCutter, shards: list[Shard], folder: Path | None) -> None:
    """Ends a shard; where it leaves rows out, the kept ones are written to `folder`."""
    if (result := cutter.cut()) is None:
        return
    shard, kept = result
    if folder is not None and len(kept) < shard.stop - shard.start:
        name = f"keep-{len(shards):05d}.arrow"
        table = pa.table({"row": pa.array(kept)})
        with pa.ipc.new_file(str(folder / name), table.schema) as writer:
            writer.write_table(table)
        shard = replace(shard, keep=name)
    shards.append(shard)


def _kept(
    batch: pa.RecordBatch, passage: pa.RecordBatch, condition: Filter, path: Path
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
    wanted = condition.keep(batch, passage)
    keep = pc.and_(pc.invert(blank), wanted)
    no_text = pc.sum(blank).as_py() or 0
    kept = np.flatnonzero(keep.to_numpy(zero_copy_only=False)).astype(np.int64)
    return kept, no_text, len(batch) - no_text - len(kept)


def _guarded(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path) from error


class Ends(IntEnum):
    """What ends behind a piece of a batch; where to cut depends on these alone, so that texts keep their embeddings."""

    NOTHING = 0
    QUARTER = 1  # a quarter of a shard's text
    BATCH = 2  # a batch of `BATCH_ROWS`, or what was read in one


def _pieces(
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
    most = SHARD_BYTES // 4
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


def _ended(pieces: Iterator[tuple[pa.RecordBatch, Ends]]) -> Iterator[tuple[pa.RecordBatch, Ends]]:
    """Pieces of a file that only its end tells the length of: a batch ends there too."""
    piece = next(pieces, None)
    for following in pieces:
        if piece is not None:
            yield piece
        piece = following
    if piece is not None:
        yield piece[0], Ends.BATCH


def _require_passages(spec: CorpusSpec, shards: list[Shard], blank: int, filtered: int) -> None:
    if not shards:
        left = f"{blank} blank and {filtered} left out by --where" if blank or filtered else "no rows at all"
        raise InputError(f"corpus {spec.name} ({spec.location}) has no passage with text: {left}")


@dataclass
class _Converted:
    """How far files have been written to parts.

    Attributes:
        file, at: rows of that file, by its number, and all before it; `row` of the corpus in all.
        parts: how many hold what was kept, `rows` passages.
    """

    file: int = 0
    at: int = 0
    row: int = 0
    blank: int = 0
    filtered: int = 0
    parts: int = 0
    rows: int = 0


def _convert(store: Store, spec: CorpusSpec, files: list[Path]) -> CorpusEntry:
    """Writes a corpus to Parquet parts in the store, then scans those like any other; no files: one of the hub."""
    target = store.corpus_folder(spec.name)
    chunker = Chunker(spec.chunk, spec.chunk_model) if spec.chunk else None
    sources = [store.source(file) for file in files]  # before they are read, as in `_scan`
    store.save_checked()
    with (
        unfinished(target, {"spec": _spec_dict(spec), "sources": sources}) as work,
        closing(Filter(spec.where, spec.name, spec.text_column)) as condition,
        _bar(spec.name) as bar,
    ):
        done = _Converted(**(work.state or {}))
        bar.update(done.row)
        for part in work.folder.glob("part-*"):
            if part.name >= f"part-{done.parts:05d}":
                part.unlink()
        with closing(_PartWriter(work.folder, done.parts, done.rows)) as parts:
            for number, at, path, batch, ends in _rest(spec, files, done.file, done.at):
                numbers = np.arange(done.row, done.row + len(batch), dtype=np.int64)
                passage = passages(batch, spec.text_column, spec.name, numbers, path)
                keep, blank, filtered = _kept(batch, passage, condition, path)
                table = _with_others(passage, batch, spec.text_column).take(pa.array(keep))
                parts.write(chunker.split(table) if chunker else table, ends)
                row, blank, filtered = done.row + len(batch), done.blank + blank, done.filtered + filtered
                done = _Converted(number, at, row, blank, filtered, parts.count, parts.rows)
                bar.update(len(batch))
                if files and parts.all_written:
                    work.save(done)
        if parts.rows == 0:
            _require_passages(spec, [], done.blank, done.filtered)
    inner = CorpusSpec(spec.name, str(target), "text")
    scanned = _scan_parts(store, inner, sorted(target.glob("part-*.parquet")))
    description = {**_spec_dict(spec), "column": "text"}
    return CorpusEntry(spec.name, description, sources, scanned.sources, done.blank, done.filtered, scanned.shards)


def _rest(
    spec: CorpusSpec, files: list[Path], file: int, at: int
) -> Iterator[tuple[int, int, Path, pa.RecordBatch, Ends]]:
    """Pieces behind row `at` of a file, with the file's number and how many of its rows have been seen by then."""
    if not files:
        path, row = Path(spec.location), 0
        for batch, ends in _pieces(_hub_batches(spec.location), spec.text_column, path):
            row += len(batch)
            yield 0, row, path, batch, ends
    for number, path in enumerate(files[file:], file):
        row = 0
        for batch, ends in _any_batches(path, spec.text_column):
            row += len(batch)
            if number > file or row > at:
                yield number, row, path, batch, ends


def _scan_parts(store: Store, spec: CorpusSpec, parts: list[Path]) -> CorpusEntry:
    shards: list[Shard] = []
    entries: list[FileEntry] = []
    row = 0
    for path in parts:
        file = open_columnar(path)
        cutter = _ShardCutter(store.relative(path), row)
        for batch, ends in _pieces(file.batches(0, file.rows, ["text"]), "text", path, file.cut_behind):
            cutter.add(len(batch), np.arange(len(batch), dtype=np.int64), batch.column("text"))
            if ends and cutter.full:
                _collect(cutter, shards, None)
        _collect(cutter, shards, None)
        row += file.rows
        entries.append(store.entry(path, file.rows))
    return CorpusEntry(spec.name, {}, entries, [], 0, 0, shards)


def _with_others(passage: pa.RecordBatch, batch: pa.RecordBatch, text: str) -> pa.Table:
    """The passage columns, then the file's own others; a column ``source`` of its own becomes ``source_``."""
    columns = dict(zip(passage.schema.names, passage.columns, strict=True))
    for name in batch.schema.names:
        if name not in {"id", text}:
            columns["source_" if name == "source" else "text_" if name == "text" else name] = batch.column(name)
    return pa.table(columns)


class _PartWriter:
    """Writes part-00000.parquet, part-00001.parquet, ...; a new one when a part is full or the columns change."""

    def __init__(self, folder: Path, count: int, rows: int) -> None:
        self._folder, self.count, self.rows = folder, count, rows
        self._writer: pq.ParquetWriter | None = None
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
        full = self._pending_rows >= 4 * SHARD_ROWS or self._pending_bytes >= 2 * SHARD_BYTES
        if (ends is Ends.BATCH and full) or (ends is Ends.QUARTER and self._pending_bytes >= 8 * SHARD_BYTES):
            self._flush()

    @property
    def all_written(self) -> bool:
        return not self._pending

    def _flush(self) -> None:
        if self._pending:
            path = self._folder / f"part-{self.count:05d}.parquet"
            with atomic_write(path) as aside:
                pq.write_table(pa.concat_tables(self._pending), aside, compression="zstd", row_group_size=SHARD_ROWS)
            self.count, self.rows = self.count + 1, self.rows + self._pending_rows
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def close(self) -> None:
        self._flush()


def _any_batches(path: Path, column: str) -> Iterator[tuple[pa.RecordBatch, Ends]]:
    if kind_of(path) in COLUMNAR_KINDS:
        file = open_columnar(path)
        return _pieces(_guarded(path, file.batches(0, file.rows, None)), column, path, file.cut_behind)
    if kind_of(path) == ".txt":
        return _pieces(read_batches(path), column, path)
    # Of long rows fewer are read at once, and fewer where a buffer of DuckDB's ends.
    return _ended(_pieces(read_batches(path), column, path, lambda row: (row // BATCH_ROWS + 1) * BATCH_ROWS))


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


def _bar(name: str) -> tqdm[None]:
    return tqdm(desc=f"reading {name}", unit=" passages", unit_scale=True, disable=None, leave=False)
