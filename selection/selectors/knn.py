"""kNN: the union of every task example's nearest passages (kNN-TAPT, Gururangan et al. 2020, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import duckdb
import pyarrow as pa

from selection.selectors import CANDIDATES, Pool

UNION = """
    with ranked as (
        select *, row_number() over (partition by doc_id order by rank, score desc, query_id) as place,
               sum(n_queries) over (partition by doc_id) as queries
        from candidates
    )
    select doc_id, score, rank, query_id, queries as n_queries from ranked
    where place = 1 order by rank, score desc, doc_id
"""


def union(blocks: Iterable[pa.Table]) -> pa.Table:
    """`CANDIDATES` of neighbour tables: each passage once, with the query that ranked it best.

    All nearest passages come before all second-nearest ones, and among equals in rank the higher score, so that any
    prefix serves every task example alike. Blocks are joined one by one, so memory is that of a block and the union.
    """
    found = CANDIDATES.empty_table()
    with duckdb.connect() as connection:
        for block in blocks:
            ones = pa.repeat(pa.scalar(1, pa.int32()), block.num_rows)
            fresh = block.append_column("n_queries", ones).select(CANDIDATES.names).cast(CANDIDATES)
            connection.register("candidates", pa.concat_tables([found, fresh]))
            found = connection.sql(UNION).to_arrow_table().cast(CANDIDATES)
    return found


class GrowingUnion:
    """The union for the least power of two as k that holds enough passages; the largest is kept, 24 bytes a passage.

    So what is found depends on what is asked for, not on what was asked before. Of the union for a larger k the first
    passages are the same, with the same ranks, scores and queries; only more queries may count for one (`n_queries`).
    """

    def __init__(self) -> None:
        self._k = 0
        self._kept = CANDIDATES.empty_table()

    def holding(
        self, wanted: int, queries: int, size: int, neighbours: Callable[[int], Iterable[pa.Table]]
    ) -> pa.Table:
        """`CANDIDATES`, at least `wanted` of them where there are so many.

        Args:
            wanted, queries, size: passages asked for, queries, passages in the corpus.
            neighbours: tables of the k nearest passages of each query.
        """
        k, short = min(_rounded_up(-(-wanted // queries)), size), 0
        if self._k > k:
            k = self._k
        while True:
            found = self._union(k, neighbours)
            if found.num_rows < wanted and k < size:
                short, grown = k, k * wanted // max(found.num_rows, 1)  # passages a k only grow fewer
                k = min(max(2 * k, 1 << (grown.bit_length() - 1)), size)
                continue
            # Passages of rank r and better are the union for k = r.
            least = _rounded_up(found["rank"][wanted - 1].as_py()) if 0 < wanted <= found.num_rows else k
            if not short < least < k:
                return found
            k = least

    def _union(self, k: int, neighbours: Callable[[int], Iterable[pa.Table]]) -> pa.Table:
        if k == self._k:
            return self._kept
        found = union(neighbours(k))
        if k > self._k:
            self._k, self._kept = k, found
        return found


def _rounded_up(k: int) -> int:
    """The least power of two that is at least `k`."""
    return 1 << max(k - 1, 0).bit_length()


@dataclass
class KnnSelector:
    """See `selection.selectors.Selector`. Without `k`, k is the least power of two whose union holds `wanted`."""

    name: ClassVar[str] = "knn"
    _grown: GrowingUnion = field(default_factory=GrowingUnion, init=False, repr=False, compare=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        if k is not None:
            return union(pool.neighbours(k))
        size = len(pool.corpus)
        return self._grown.holding(min(wanted, size), len(pool.task.train_texts), size, pool.neighbours)
