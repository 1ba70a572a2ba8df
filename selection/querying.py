"""Query: every task example with its nearest passages, their scores, ids and sources."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from selection.corpus import Corpus
from selection.files import text_bytes
from selection.store import Store
from selection.task import Task, read_task

log = logging.getLogger(__name__)

FETCH_ROWS, FETCH_BYTES = 200_000, 256 << 20


@dataclass(frozen=True)
class Answer:
    """Neighbours of a task.

    Attributes:
        task: the examples.
        neighbours: `selection.index.search.NEIGHBOURS`.
        encode_seconds, search_seconds: what the examples' encoding and the search took.
    """

    task: Task
    corpus: Corpus
    neighbours: pa.Table
    encode_seconds: float
    search_seconds: float

    def rows(self) -> Iterator[pa.Table]:
        """The neighbours joined with their passages, some whole examples at a time, so that memory stays bounded.

        Columns: those of the neighbours, then ``id``, ``source``, ``text``.
        """
        query = self.neighbours["query_id"].to_numpy()
        if len(query) == 0:
            return
        shards = np.unique(np.searchsorted(self.corpus.offsets, self.neighbours["doc_id"].to_numpy(), "right") - 1)
        touched = [self.corpus.shards[number] for number in shards]
        rows, text = sum(shard.rows for shard in touched), sum(shard.text_bytes for shard in touched)
        start = 0
        while start < len(query):
            at_once = max(1, min(FETCH_ROWS, int(FETCH_BYTES * rows / max(text, 1))))
            stop = min(start + at_once, len(query))
            if stop < len(query):
                stop = max(int(np.searchsorted(query, query[stop], "left")), start + 1)
                stop = int(np.searchsorted(query, query[stop - 1], "right"))
            part = self.neighbours.slice(start, stop - start)
            found = self.corpus.take(part["doc_id"].to_numpy())
            for name in ("id", "source", "text"):
                part = part.append_column(name, found[name])
            yield part
            rows, text = part.num_rows, text_bytes(found["text"])  # neighbours may be longer than the corpus's mean
            start = stop


def query(
    store: Path | str,
    task: Path | str,
    k: int = 5,
    *,
    encoder: str | None = None,
    index: str | None = None,
    device: str | None = None,
    limit: int | None = None,
    min_recall: float | None = None,
    report: Callable[[str], None] = log.info,
) -> Answer:
    """Finds the `k` nearest passages of each of a task's training texts, all in one batch.

    Args:
        encoder: one of the store's, or ``cascade[:MODEL]``; None where it has only one.
        index: one of its kinds of index; None takes the one made last.
        limit: only the first so many examples.
        min_recall: the share of the full encoder's neighbours that a cascade promises; None is 0.95.
        report: told what a cascade plans and finds.

    Raises:
        NearkinError: no store, no task, a store of another encoder, a damaged file; a `k` that is more than there is.
    """
    from selection.filling import Budget
    from selection.selectors.pool import Pool

    wanted = Budget(k=k)
    opened, examples = Store(store), read_task(task)
    if limit is not None:
        examples = Task(examples.path, {**examples.splits, "train": examples.splits["train"].slice(0, limit)})
    pool = Pool(opened, examples, encoder, 0, device, index, min_recall, report)
    opened.check_corpora()
    wanted.check(opened.corpus)
    start = encoded = time.perf_counter()
    if not pool.cascade and len(pool.queries):  # a cascade encodes them itself, by two encoders
        encoded = time.perf_counter()
    neighbours = pa.concat_tables(pool.neighbours(k))
    searched = time.perf_counter()
    pool.tell_unused()
    opened.save_checked()
    return Answer(examples, opened.corpus, neighbours, encoded - start, searched - encoded)
