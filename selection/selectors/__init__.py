"""Selectors: one protocol, one file a method, found by name.

A selector ranks passages for a task. It knows nothing of budgets in tokens, duplicates, leaks or files: it is asked
for some number of candidates, best first, and asked again for more where too few of them survive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.cascade import cascade_neighbours
from selection.choosing import full_encoder, stored_encoder
from selection.corpus import Corpus
from selection.encoders import CASCADE, STATIC, Encoder, cascade_model, slug_of
from selection.errors import NearkinError, StoreError
from selection.index.ranking import neighbour_table
from selection.index.search import Searcher
from selection.querying import open_encoder
from selection.store import Store
from selection.task import Task

log = logging.getLogger(__name__)

BLOCK_PAIRS = 8_000_000
METHODS = ("knn", "random")
CANDIDATES = pa.schema(
    [
        ("doc_id", pa.int64()),
        ("score", pa.float32()),
        ("rank", pa.int32()),
        ("query_id", pa.int32()),
        ("n_queries", pa.int32()),
    ]
)


@dataclass
class Pool:
    """What a selector may draw on: the corpus, the task, and neighbours on request.

    Attributes:
        store, task: what was named.
        slug: the encoder whose embeddings are searched.
        seed: for methods that draw.
        device: where task texts are encoded.
        index: the kind of index; None is the store's own.
        cascade: whether `slug`, a static encoder, only says which passages the full one has to see.
        min_recall: what the cascade promises.
        report: told what the cascade plans and finds.
    """

    store: Store
    task: Task
    slug: str
    seed: int = 0
    device: str | None = None
    index: str | None = None
    cascade: bool = False
    min_recall: float = 0.95
    report: Callable[[str], None] = log.info
    _encoders: tuple[Encoder, Encoder] | None = field(default=None, repr=False)
    _queries: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, store: Store, task: Task, encoder: str | None, **settings: Any) -> Pool:
        """With the encoder that `encoder` names: one of the store's, or ``cascade[:MODEL]``.

        Raises:
            StoreError: the store has no such embeddings.
        """
        model = cascade_model(encoder)
        if model is None:
            return cls(store, task, open_encoder(store, encoder), **settings)
        static = [slug for slug, entry in store.manifest.encoders.items() if entry.model.startswith(STATIC)]
        slug = static[0] if encoder == CASCADE and len(static) == 1 else slug_of(STATIC + model)
        if slug not in store.manifest.encoders:
            raise StoreError(
                f"{store.path} has no static embeddings for a cascade: "
                f"run `nearkin build {store.path} --encoder {encoder}` first"
            )
        entry = store.manifest.encoders[slug]
        full = slug_of(entry.model.removeprefix(STATIC), entry.settings.get("cascade", "exact"))
        there = store.manifest.encoders.get(full)
        if there is not None and all(shard.text in there.shards for _, _, shard in store.corpus.shards):
            return cls(store, task, full, **settings)  # everything is encoded already
        return cls(store, task, slug, cascade=True, **settings)

    @property
    def name(self) -> str:
        """The encoder, as ``--encoder`` names it."""
        model = self.store.manifest.encoders[self.slug].model
        return f"{CASCADE}:{model.removeprefix(STATIC)}" if self.cascade else self.slug

    @property
    def corpus(self) -> Corpus:
        return self.store.corpus

    @property
    def queries(self) -> npt.NDArray[np.float32]:
        """Vectors float32 [n, dim] of the task's training texts by the store's own encoder; encoded once."""
        if self._queries is None:
            self._queries = encode_task(self.store, self.slug, self.task, self.device)
        return self._queries

    def neighbours(self, k: int) -> Iterator[pa.Table]:
        """The `k` nearest passages of each training text, as `selection.index.search.NEIGHBOURS`.

        In one batch search where they are at most `BLOCK_PAIRS`, else in as few as keep to that; by a cascade in one.
        """
        if self.cascade:
            if self._encoders is None:
                full = full_encoder(self.store, self.slug, self.device, self.report)
                self._encoders = full, stored_encoder(self.store, self.slug, self.device)
            full, cheap = self._encoders
            scores, ids, _ = cascade_neighbours(
                self.store, self.slug, full, cheap, self.task.train_texts, k, self.min_recall, self.report, self.seed
            )
            yield neighbour_table(scores, ids)
            return
        searcher = Searcher(self.store, self.slug, self.index, self.device)
        queries = max(1, BLOCK_PAIRS // k)
        for start in range(0, len(self.queries), queries):
            yield searcher.search(self.queries[start : start + queries], k, start)


def encode_task(store: Store, slug: str, task: Task, device: str | None = None) -> npt.NDArray[np.float32]:
    """Vectors float32 [n, dim] of a task's training texts by the encoder that wrote `slug`.

    Raises:
        StoreError: this machine's encoder of that name is not the one that wrote the embeddings.
    """
    entry = store.manifest.encoders[slug]
    encoder = stored_encoder(store, slug, device)
    if encoder.fingerprint != entry.fingerprint:
        raise StoreError(
            f"{store.path} was embedded by another version of {entry.model}: "
            f"use that one, or run `nearkin build {store.path}` to embed it anew"
        )
    return encoder.encode(task.train_texts)


class Selector(Protocol):
    """One way to choose passages.

    Attributes:
        name: what ``--method`` calls it.
    """

    name: str

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        """At least `wanted` passages (or all it has), best first.

        Args:
            pool: corpus, task, seed.
            k: passages a task example, where the user said so; then it bounds the candidates instead of `wanted`.
            wanted: how many candidates may be needed.

        Returns:
            `CANDIDATES`, each doc_id once; query_id is -1 and score null where the method has none.
        """
        ...


def find_selector(name: str) -> Selector:
    """The selector called `name`.

    Raises:
        NearkinError: there is none, with the names that there are.
    """
    from selection.selectors.knn import KnnSelector
    from selection.selectors.random import RandomSelector

    for selector in (KnnSelector(), RandomSelector()):
        if selector.name == name:
            return selector
    raise NearkinError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
