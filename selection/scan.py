"""Scan: Parquet and Arrow files stay where they are, and become shards; memory is a batch, whatever the corpus."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from selection.columnar import ColumnarFile, open_columnar
from selection.corpus import Shard, passages
from selection.cutting import Ends, ShardCutter, guarded, pieces, reading_bar
from selection.files import atomic_write
from selection.manifest import CorpusEntry, FileEntry
from selection.reading import text_column
from selection.store import Store
from selection.unfinished import Unfinished, unfinished
from selection.where import Filter

if TYPE_CHECKING:
    from selection.ingest import CorpusSpec


@dataclass
class _Scanned:
    """How far files have been read.

    Attributes:
        sources: those that were read or begun.
        left_out: of each, how many rows were blank, and how many the condition left out.
        shards: what they became.
        at: how many rows of the last one have been read.
        start: the first row of it that no shard covers yet; none behind it was kept.
    """

    sources: list[FileEntry] = field(default_factory=list)
    left_out: list[list[int]] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    at: int = 0
    start: int = 0

    def keep_first(self, count: int) -> None:
        """Forgets all but the first files."""
        if count < len(self.sources):
            self.sources, self.left_out = self.sources[:count], self.left_out[:count]
            names = {file.path for file in self.sources}
            self.shards = [shard for shard in self.shards if shard.path in names]
            self.at = self.start = self.sources[-1].rows if count else 0


def scan(store: Store, spec: CorpusSpec, files: list[Path], known: CorpusEntry | None) -> CorpusEntry:
    """Cuts files into shards.

    Args:
        known: what the same specification gave before; files at its beginning that are as they were are not read again.

    Raises:
        InputError: a damaged file, no text column, a bad condition, not one passage with text.
    """
    target = store.corpus_folder(spec.name)
    with (
        unfinished(target, spec.as_dict()) as work,
        closing(Filter(spec.where, spec.name, spec.text_column)) as condition,
        reading_bar(spec.name) as bar,
    ):
        done = _read_before(work, store, files, known)
        scanning, row = _Scanning(store, spec, work, condition, bar, done), 0
        for number, path in enumerate(files):
            if number == len(done.sources):
                # Hashed before it is read, so that an edit meanwhile is noticed at the next use.
                source, file = store.source(path), open_columnar(path)
                scanning.begin(replace(source, rows=file.rows))
            elif number < len(done.sources) - 1 or done.at == done.sources[-1].rows:
                row += done.sources[number].rows
                bar.update(done.sources[number].rows)
                continue
            else:
                file = open_columnar(path)
                bar.update(done.at)
            scanning.read(path, file, row)
            row += done.sources[number].rows
        blank, filtered = (sum(counts) for counts in zip(*done.left_out, strict=True))
        if not done.shards:
            raise spec.nothing_left(blank, filtered)
        scanning.save(at_once=True)
    shards, entries = done.shards, []
    keeps = [(at, shard) for at, shard in enumerate(shards) if shard.keep]
    for at, shard in keeps:
        entries.append(store.entry(target / str(shard.keep), shard.rows))
        shards[at] = replace(shard, keep=entries[-1].path)
    if not keeps:
        shutil.rmtree(target, ignore_errors=True)
    return CorpusEntry(spec.name, spec.as_dict(), done.sources, entries, blank, filtered, shards, done.left_out)


def _read_before(work: Unfinished, store: Store, files: list[Path], known: CorpusEntry | None) -> _Scanned:
    """What is still good of a reading that was stopped, or of that of a corpus that has gained files since."""
    done, inside = _Scanned(), work.folder
    if work.state is not None:
        sources, shards = [FileEntry(**f) for f in work.state["sources"]], [Shard(**s) for s in work.state["shards"]]
        done = replace(_Scanned(**work.state), sources=sources, shards=shards)
    elif known is not None and known.left_out and all(store.is_whole(file) for file in known.files):
        rows = known.sources[-1].rows
        done, inside = _Scanned(list(known.sources), list(known.left_out), list(known.shards), rows, rows), store.path
    pairs = zip(done.sources, files, strict=False)
    same = takewhile(lambda pair: store.relative(pair[1]) == pair[0].path and store.is_whole(pair[0]), pairs)
    done.keep_first(len(list(same)))
    keeps = [inside / shard.keep for shard in done.shards if shard.keep]
    if not all(file.is_file() and file.stat().st_size for file in keeps):
        done, keeps = _Scanned(), []
    for file in set(work.folder.glob("keep-*")) - set(keeps):
        file.unlink()
    if inside != work.folder:
        for file in keeps:
            shutil.copy(file, work.folder)
        done.shards = [replace(shard, keep=shard.keep and Path(shard.keep).name) for shard in done.shards]
    return done


@dataclass
class _Scanning:
    """A reading of files, one after the other, that says in `done` how far it is."""

    store: Store
    spec: CorpusSpec
    work: Unfinished
    condition: Filter
    bar: tqdm[None]
    done: _Scanned

    def begin(self, source: FileEntry) -> None:
        """The next file."""
        self.done.sources.append(source)
        self.done.left_out.append([0, 0])
        self.done.at = self.done.start = 0

    def read(self, path: Path, file: ColumnarFile, row: int) -> None:
        """Cuts the file that was begun into shards, from row ``done.at`` on; `row` is the corpus's of its first."""
        spec, done = self.spec, self.done
        if spec.text_column not in file.schema.names:
            text_column(file.schema.empty_table(), spec.text_column, path)
        columns, needed = (None, ("id", "text", "source")) if spec.where else ([spec.text_column], ("text",))
        cutter = ShardCutter(self.store.relative(path), row, done.start, done.at)
        batches = guarded(path, file.batches(done.at, file.rows, columns))
        for batch, ends in pieces(batches, spec.text_column, path, file.cut_behind, done.at):
            numbers = np.arange(cutter.row, cutter.row + len(batch), dtype=np.int64) + row
            passage = passages(batch, spec.text_column, spec.name, numbers, path, needed)
            keep, blank, filtered = self.condition.rows(batch, passage, path)
            done.left_out[-1] = [done.left_out[-1][0] + blank, done.left_out[-1][1] + filtered]
            cutter.add(len(batch), keep, passage.column("text").take(pa.array(keep)))
            self.bar.update(len(batch))
            if ends and cutter.full:
                self._collect(cutter)
            if ends is Ends.BATCH and cutter.rows == 0:  # where a reading can begin
                done.at, done.start = cutter.row, cutter.start
                self.save()
        self._collect(cutter)
        done.at = done.start = file.rows
        self.save()

    def save(self, at_once: bool = False) -> None:
        """Notes how far the reading is."""
        if self.work.save(self.done, at_once):
            self.store.save_checked()

    def _collect(self, cutter: ShardCutter) -> None:
        """Ends a shard; where it leaves rows out, the kept ones are written down."""
        if (result := cutter.cut()) is None:
            return
        shard, kept = result
        if len(kept) < shard.stop - shard.start:
            name = f"keep-{len(self.done.shards):05d}.arrow"
            _write_rows(kept, self.work.folder / name)
            shard = replace(shard, keep=name)
        self.done.shards.append(shard)


def _write_rows(rows: npt.NDArray[np.int64], file: Path) -> None:
    table = pa.table({"row": pa.array(rows)})
    with atomic_write(file) as aside, pa.ipc.new_file(str(aside), table.schema) as writer:
        writer.write_table(table)
