"""Search speed: a task's neighbours over a store, nearkin's path beside brute force in NumPy on the same vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.results import Row, alternate
from selection.embedding import Embeddings
from selection.index.search import search as search_index
from selection.querying import open_encoder
from selection.selectors import encode_task
from selection.store import Store
from selection.task import read_task

BLOCK = 512


def search(
    store: Path | str,
    task: Path | str,
    k: int = 50,
    *,
    rounds: int = 3,
    encoder: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Times the neighbours of a task's training texts, index file read and ties ordered, encoding left out.

    Returns:
        One row a path: ``path``, ``queries``, ``passages``, ``k``, ``seconds`` (median), ``queries_s``, ``ratio`` to
        NumPy and ``recall`` of its neighbours.
    """
    opened, examples = Store(store), read_task(task)
    slug = open_encoder(opened, encoder)
    queries = encode_task(opened, slug, examples)
    kinds = [e.kind for e in opened.manifest.indexes.values() if e.encoder == slug]
    paths: dict[str, Callable[[], npt.NDArray[np.int64]]] = {
        "numpy brute force": lambda: brute_force(opened, slug, queries, k)
    }
    for kind in sorted(kinds):
        paths[f"nearkin {kind}"] = lambda kind=kind: _ids(  # type: ignore[misc]
            search_index(opened, slug, queries, k, kind), len(queries), k
        )
    median, ids = alternate(paths, rounds, say)
    exact = ids["numpy brute force"]
    return [
        {
            "path": name,
            "queries": len(queries),
            "passages": len(opened.corpus),
            "k": k,
            "seconds": taken,
            "queries_s": len(queries) / taken,
            "ratio": median["numpy brute force"] / taken,
            "recall": float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, ids[name], strict=True)])),
        }
        for name, taken in median.items()
    ]


def brute_force(store: Store, slug: str, queries: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Exact neighbours int64 [n, k], unordered: one matrix product a block of queries, then ``argpartition``."""
    corpus = np.concatenate(list(Embeddings(store, slug))).astype(np.float32)
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ corpus.T
        found[start : start + BLOCK] = np.argpartition(scores, -k, axis=1)[:, -k:]
    return found


def _ids(neighbours: pa.Table, n: int, k: int) -> npt.NDArray[np.int64]:
    ids = np.full((n, k), -1, dtype=np.int64)
    ids[neighbours["query_id"].to_numpy(), neighbours["rank"].to_numpy() - 1] = neighbours["doc_id"].to_numpy()
    return ids
