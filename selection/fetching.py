"""Passages of candidates that lie all over a corpus: each shard read once, then the passages in any order.

A shard takes about as long for one passage as for many, since Parquet is unpacked from a row group's first row on. So
passages that memory cannot hold at once are read in doc_id order into a file, and taken from that.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.corpus import PASSAGE, Corpus
from selection.runs import runs

WRITE_BYTES = 32 << 20


def fetched(
    corpus: Corpus, doc_ids: npt.NDArray[np.int64], scratch: Path, read_bytes: int
) -> Generator[pa.Table, None, None]:
    """Passages of `doc_ids` as `PASSAGE`, in that order, each shard read once.

    Memory: `read_bytes` of text twice, where no shard has more.

    Args:
        doc_ids: int64 [n], any order, repeats allowed.
        scratch: a file for those that stand in another order than in the corpus; removed at the end.
    """
    shards = np.searchsorted(corpus.offsets, doc_ids, "right") - 1
    touched = [corpus.shards[number] for number in np.unique(shards)]
    if sum(shard.text_bytes for shard in touched) <= read_bytes:
        yield corpus.take(doc_ids)
    elif (np.diff(shards) >= 0).all() and 2 * len(doc_ids) >= sum(shard.rows for shard in touched):
        for start, stop in _stretches(corpus, doc_ids, read_bytes):
            yield corpus.take(doc_ids[start:stop])
    else:
        with closing(Shelf(corpus, doc_ids, scratch, read_bytes)) as shelf:
            yield from shelf.tables(doc_ids, read_bytes)


class Shelf:
    """Passages of a corpus in a file of their own, in doc_id order; `close` removes the file.

    Memory: the texts of the shards that `read_bytes` hold, and 16 bytes a passage.

    Args:
        doc_ids: int64 [n], any order, repeats allowed.
        path: the file to write (Arrow IPC, `PASSAGE`).
    """

    def __init__(self, corpus: Corpus, doc_ids: npt.NDArray[np.int64], path: Path, read_bytes: int) -> None:
        self._path, self._doc_ids = path, np.unique(doc_ids)
        lengths = []
        pending: list[pa.Table] = []
        with pa.ipc.new_file(str(path), PASSAGE) as writer:
            waiting = 0
            for start, stop in _stretches(corpus, self._doc_ids, read_bytes):
                pending.append(corpus.take(self._doc_ids[start:stop]))
                lengths.append(pc.binary_length(pending[-1]["text"]).to_numpy())
                waiting += int(lengths[-1].sum())
                if waiting >= WRITE_BYTES or stop == len(self._doc_ids):
                    writer.write_table(pa.concat_tables(pending).combine_chunks())
                    pending, waiting = [], 0
        self._lengths = np.concatenate(lengths) if lengths else np.empty(0, np.int64)
        self._source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(self._source)
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]  # mapped, not read
        self._ends = np.cumsum([len(batch) for batch in self._batches])

    def close(self) -> None:
        self._batches = []
        self._source.close()
        self._path.unlink(missing_ok=True)

    def tables(self, doc_ids: npt.NDArray[np.int64], most_bytes: int) -> Iterator[pa.Table]:
        """`PASSAGE` rows of `doc_ids` (each given at first), in that order, up to `most_bytes` of text at a time."""
        rows = np.searchsorted(self._doc_ids, doc_ids)
        for start, stop in runs(self._lengths[rows], most_bytes):
            yield gathered(self._batches, self._ends, rows[start:stop])


def _stretches(corpus: Corpus, doc_ids: npt.NDArray[np.int64], read_bytes: int) -> Iterator[tuple[int, int]]:
    """Stretches of `doc_ids`, sorted by shard: those of one shard, or of several of at most `read_bytes` of text."""
    sizes = np.array([shard.text_bytes for shard in corpus.shards])
    edges = np.searchsorted(doc_ids, corpus.offsets)
    touched = np.flatnonzero(np.diff(edges))
    for first, last in runs(sizes[touched], read_bytes):
        yield int(edges[touched[first]]), int(edges[touched[last - 1] + 1])


def gathered(batches: list[pa.RecordBatch], ends: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Rows of several batches, in the order asked for.

    Args:
        ends: int64 [batches], how many rows there are up to the end of each.
        rows: int64 [n], at least one.
    """
    which = np.searchsorted(ends, rows, "right")
    order = np.argsort(which, kind="stable")
    rows, bounds = rows[order], np.searchsorted(which[order], np.arange(len(batches) + 1))
    parts = []
    for number in np.flatnonzero(np.diff(bounds)):
        inside = rows[bounds[number] : bounds[number + 1]] - (ends[number] - len(batches[number]))
        parts.append(batches[number].take(pa.array(inside)))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.Table.from_batches(parts).combine_chunks().take(pa.array(back))
