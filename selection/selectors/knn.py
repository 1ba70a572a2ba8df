"""kNN: the union of every task example's nearest passages (kNN-TAPT, Gururangan et al. 2020, section 5.2)."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from selection.selectors import CANDIDATES, Pool

UNION = """
    with ranked as (
        select *, row_number() over (partition by doc_id order by rank, score desc, query_id) as place,
               count(*) over (partition by doc_id) as n_queries
        from neighbours
    )
    select doc_id, score, rank, query_id, n_queries::int as n_queries from ranked
    where place = 1 order by rank, score desc, doc_id
"""


def union(neighbours: pa.Table) -> pa.Table:
    """`CANDIDATES` of a neighbour table: each passage once, with the query that ranked it best.

    All nearest passages come before all second-nearest ones, and among equals in rank the higher score, so that any
    prefix serves every task example alike.
    """
    with duckdb.connect() as connection:
        connection.register("neighbours", neighbours)
        return connection.sql(UNION).to_arrow_table().cast(CANDIDATES)


class KnnSelector:
    """See `selection.selectors.Selector`. Without `k`, k doubles until the union holds `wanted` passages."""

    name = "knn"

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        if k is not None:
            return union(pool.neighbours(k))
        size = len(pool.corpus)
        k = max(1, -(-wanted // len(pool.queries)))
        while True:
            found = union(pool.neighbours(min(k, size)))
            if found.num_rows >= min(wanted, size) or k >= size:
                return found
            k *= 2
