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
from selection.encoders import same_model, slug_of
from selection.errors import StoreError
from selection.store import Store
from selection.task import Task, read_task

log = logging.getLogger(__name__)

FETCH_ROWS = 200_000


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
        start = 0
        while start < len(query):
            stop = min(start + FETCH_ROWS, len(query))
            if stop < len(query):
                stop = max(int(np.searchsorted(query, query[stop], "left")), start + 1)
                stop = int(np.searchsorted(query, query[stop - 1], "right"))
            part = self.neighbours.slice(start, stop - start)
            found = self.corpus.take(part["doc_id"].to_numpy())
            for name in ("id", "source", "text"):
                part = part.append_column(name, found[name])
            yield part
            start = stop


def open_encoder(store: Store, encoder: str | None) -> str:
    """The slug of the store's encoder: the named one, or the only one.

    Raises:
        StoreError: the store has no embeddings, or was written by another encoder, or has several and none is named.
    """
    have = store.manifest.in_use
    if not have:
        raise StoreError(f"{store.path} has no embeddings yet: run `nearkin build {store.path}`")
    if encoder is None:
        if len(have) > 1:
            raise StoreError(f"{store.path} has embeddings by {', '.join(have)}: choose one with --encoder")
        return have[0]
    if encoder in store.manifest.encoders:
        return encoder
    if (slug := slug_held(store, encoder)) is not None:
        return slug
    alike = slug_of(encoder)  # by name, of another folder
    told = [f"{one} ({store.manifest.encoders[one].model})" if one == alike else one for one in have]
    raise StoreError(
        f"{store.path} was written by {', '.join(told)}, not by {encoder}: "
        f"name that one, or run `nearkin build {store.path} --encoder {encoder}` first"
    )


def slug_held(store: Store, model: str, precision: str = "exact") -> str | None:
    """The slug of the store's encoder of this very model, not of one with the same last name; None where none is."""
    slug = slug_of(model, precision)
    entry = store.manifest.encoders.get(slug)
    return slug if entry is not None and same_model(entry.model, model) else None


def check_slug(store: Store, slug: str, model: str, fingerprint: str | None = None) -> None:
    """Raises StoreError where another model of the same last name has embeddings as `slug`, which would be lost.

    Args:
        fingerprint: the encoder's; where it is the entry's, a model was only moved.
    """
    entry = store.manifest.encoders.get(slug)
    if entry is None or not entry.shards or entry.fingerprint == fingerprint or same_model(entry.model, model):
        return
    raise StoreError(
        f"{store.path} has embeddings {slug} by {entry.model}, and those by {model} would take their place: "
        "give the folder of one of the two models another name, or build another store"
    )


def query(
    store: Path | str,
    task: Path | str,
    k: int = 5,
    *,
    encoder: str | None = None,
    index: str | None = None,
    device: str | None = None,
    limit: int | None = None,
    min_recall: float = 0.95,
    report: Callable[[str], None] = log.info,
) -> Answer:
    """Finds the `k` nearest passages of each of a task's training texts, all in one batch.

    Args:
        encoder: one of the store's, or ``cascade[:MODEL]``; None where it has only one.
        index: one of its kinds of index; None takes the one made last.
        limit: only the first so many examples.
        min_recall: the share of the full encoder's neighbours that a cascade promises.
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
    opened.save_checked()
    return Answer(examples, opened.corpus, neighbours, encoded - start, searched - encoded)
