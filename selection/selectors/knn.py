"""kNN: the union of every task example's nearest passages (kNN-TAPT, Gururangan et al. 2020, section 5.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass
class KnnSelector:
    """See `selection.selectors.Selector`. Without `k`, k doubles until the union holds `wanted` passages."""

    name: ClassVar[str] = "knn"

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        if k is not None:
            return union(pool.neighbours(k))
        size = len(pool.corpus)
        k = max(1, -(-wanted // len(pool.task.train_texts)))
        while True:
            found = union(pool.neighbours(min(k, size)))
            if found.num_rows >= min(wanted, size) or k >= size:
                return found
            k *= 2
