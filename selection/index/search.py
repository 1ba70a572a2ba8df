"""Neighbours of a whole task at once, by the store's index; the same scores and order of ties by every kind."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.embedding import Embeddings
from selection.errors import NearkinError, StoreError
from selection.index.blocks import Blocks
from selection.index.exact import stream_search
from selection.index.kinds import BY_NAME
from selection.index.ranking import NEIGHBOURS, neighbour_table
from selection.index.tune import DEPTHS, effort_for, recall_of
from selection.manifest import IndexEntry
from selection.store import Store

__all__ = ["NEIGHBOURS", "Searcher", "find_index"]

log = logging.getLogger(__name__)

CHECKED_FROM, CHECKED = 512, 64


def find_index(store: Store, slug: str, kind: str | None = None) -> IndexEntry:
    """The index of encoder `slug` that was made last, of that kind where one is named.

    Raises:
        StoreError: there is none, or it is older than the embeddings.
    """
    embeddings = Embeddings(store, slug)
    chosen = kind or store.manifest.encoders[slug].settings.get("index", "stream")
    if chosen == "stream":
        return IndexEntry(slug, "stream", embeddings.fingerprint)
    known = store.manifest.indexes.get(f"{slug}-{chosen}")
    if known and known.settings and known.embeddings == embeddings.fingerprint:
        return known
    state = "is older than its embeddings" if known else "does not exist"
    which, option = (f"{kind} index", f" --kind {kind}") if kind else ("index", "")
    raise StoreError(f"{store.path}: the {which} of {slug} {state}: run `nearkin index {store.path}{option}`")


class Searcher:
    """An index opened once, for as many searches as there are.

    Args:
        store, slug: the store and its encoder.
        kind: one of `selection.index.kinds.KINDS`; None takes the index that was made last.
        device: where exact search forms its products, see `stream_search`.

    Raises:
        StoreError: no current index, or a damaged one.
    """

    def __init__(self, store: Store, slug: str, kind: str | None = None, device: str | None = None) -> None:
        self.entry = find_index(store, slug, kind)
        self.embeddings = Embeddings(store, slug)
        self._device, self._checked = device, False
        exact = BY_NAME[self.entry.kind].exact  # a flat file is for others: the embeddings are half as large
        self._blocks = None if exact else Blocks(store, self.entry, self.embeddings)

    def search(self, queries: npt.NDArray[np.float32], k: int, first_query: int = 0) -> pa.Table:
        """The `k` nearest passages of each query by inner product.

        Args:
            queries: float32 [n, dim], unit norm.
            k: neighbours a query; clipped to the corpus with a warning.
            first_query: query_id of the first query, where these are a part of a task's.

        Returns:
            `NEIGHBOURS`, sorted by query_id then rank; rank 1 is the nearest, equal scores stand in doc_id order.
        """
        if not np.isfinite(queries).all():
            raise NearkinError("a query vector holds numbers that are not finite")
        if k > len(self.embeddings):
            log.warning("k = %d is more than the corpus holds: %d neighbours each", k, len(self.embeddings))
            k = len(self.embeddings)
        if self._blocks is None or k > max(DEPTHS):  # deeper than any index was measured
            scores, ids = stream_search(self.embeddings, queries, k, self._device)
        else:
            settings = self.entry.settings
            scores, ids = self._blocks.search(queries, k, effort_for(settings, k), settings["rerank"])
            short = (ids < 0).any(axis=1)  # the lists visited hold fewer than k
            if short.any():
                scores[short], ids[short] = stream_search(self.embeddings, queries[short], k, self._device)
            self._check(queries, ids, k)
        return neighbour_table(scores, ids, first_query)

    def _check(self, queries: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], k: int) -> None:
        """Holds the recall that was promised against exact search, for some queries of a large batch."""
        if self._checked or len(queries) < CHECKED_FROM:
            return
        self._checked = True
        some = np.random.default_rng(0).choice(len(queries), CHECKED, replace=False)
        _, exact = stream_search(self.embeddings, queries[some], k, self._device)
        recall, error = recall_of(ids[some], exact)
        settings = self.entry.settings
        log.info("recall@%d %.3f of exact search among %d queries", k, recall, CHECKED)
        if recall + 2 * error < settings["target"]:
            log.warning(
                "%s finds %.1f%% of these queries' exact neighbours, %.0f%% were promised: `nearkin index --kind %s "
                "--task` measures it among them, `--index stream` is exact",
                self.entry.kind, 100 * recall, 100 * settings["target"], self.entry.kind,
            )  # fmt: skip
