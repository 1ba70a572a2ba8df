"""The k best passages of each query, kept while a corpus streams past: one int64 a neighbour.

The high half of a key is the score's bits, put in an order that integers share; the low half counts doc_ids downwards.
So the larger key is the better neighbour, and among equal scores the one with the smaller doc_id: a total order, which
makes the result independent of blocks, threads and the order in which candidates arrive.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

NEIGHBOURS = pa.schema(
    [("query_id", pa.int32()), ("rank", pa.int32()), ("doc_id", pa.int64()), ("score", pa.float32())]
)
MOST_PASSAGES = 2**32
NOTHING = np.iinfo(np.int64).min

Keys = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def to_keys(scores: Scores, ids: Ids) -> Keys:
    """Keys of scored passages, any shape; ids in [0, 2**32); `NOTHING` where an id is negative or a score NaN."""
    bits = np.ascontiguousarray(scores + np.float32(0), dtype=np.float32).view(np.int32)  # -0 becomes 0
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys = (ordered << 32) | (MOST_PASSAGES - 1 - ids)
    return np.where((ids < 0) | np.isnan(scores), NOTHING, keys)


def scores_of(keys: Keys) -> Scores:
    """The scores in keys; -inf for `NOTHING`."""
    high = (keys >> 32).astype(np.int32)
    scores = np.where(high < 0, high ^ np.int32(0x7FFFFFFF), high).view(np.float32)
    return np.where(keys == NOTHING, np.float32(-np.inf), scores)


def ids_of(keys: Keys) -> Ids:
    """The doc_ids in keys; -1 for `NOTHING`."""
    return np.where(keys == NOTHING, -1, MOST_PASSAGES - 1 - (keys & (MOST_PASSAGES - 1)))


class Ranking:
    """The best `k` passages of each of `queries` queries so far.

    Attributes:
        floor: float32 [queries], the k-th best score so far, -inf until there are k. A later passage (of a larger
            doc_id) enters only with more than this. Whoever knows better may raise it.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self._keys = np.full((queries, k), NOTHING, dtype=np.int64)
        self.floor = np.full(queries, -np.inf, dtype=np.float32)

    def add(self, queries: npt.NDArray[np.intp], scores: Scores, ids: Ids) -> None:
        """Offers passages, one an entry, in any order; a passage is offered to a query once."""
        if len(queries) == 0:
            return
        order = np.argsort(queries.astype(np.int32), kind="stable")
        keys, rows = to_keys(scores, ids)[order], queries[order]
        counts = np.bincount(rows - rows[0])  # over the range asked of, a tile's, which is small beside all queries
        few = np.flatnonzero(counts)
        touched, counts = few + rows[0], counts[few]
        starts = np.cumsum(counts) - counts
        wide = np.full((len(touched), self.k + int(counts.max())), NOTHING, dtype=np.int64)
        wide[:, : self.k] = self._keys[touched]
        within = np.arange(len(rows)) - np.repeat(starts, counts)
        wide[np.repeat(np.arange(len(touched)), counts), self.k + within] = keys
        self._keep(touched, wide)

    def add_rows(self, scores: Scores, ids: Ids) -> None:
        """Offers each of the queries, from the first on, its own row of passages, [n, any]; id -1 is no passage."""
        rows = np.arange(len(scores))
        self._keep(rows, np.concatenate([self._keys[rows], to_keys(scores, ids)], axis=1))

    def _keep(self, rows: npt.NDArray[np.intp], wide: Keys) -> None:
        best = np.partition(wide, wide.shape[1] - self.k, axis=1)[:, wide.shape[1] - self.k :]
        self._keys[rows] = best
        self.floor[rows] = np.maximum(self.floor[rows], scores_of(best.min(axis=1)))

    def best(self) -> tuple[Scores, Ids]:
        """(float32 [queries, k], int64 [queries, k]), best first; -inf and -1 where there are fewer than k."""
        keys = np.sort(self._keys, axis=1)[:, ::-1]
        return scores_of(keys), ids_of(keys)


def neighbour_table(scores: Scores, ids: Ids, first_query: int = 0) -> pa.Table:
    """`NEIGHBOURS` from two [n, k] arrays, best first; places left empty (id -1) are dropped."""
    n, k = ids.shape
    found = (ids >= 0).reshape(-1)
    columns = [
        np.repeat(np.arange(first_query, first_query + n, dtype=np.int32), k)[found],
        np.tile(np.arange(1, k + 1, dtype=np.int32), n)[found],
        ids.reshape(-1)[found],
        scores.reshape(-1)[found],
    ]
    return pa.table([pa.array(c) for c in columns], schema=NEIGHBOURS)
