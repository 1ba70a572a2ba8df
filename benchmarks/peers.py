"""Other ways to a task's neighbours, each as two functions: build an index of vectors, search it.

An approximate one is searched harder and harder until it finds the share of exact neighbours asked for; that last
search is the one that counts. Vectors are float32 in memory: reading and converting them is not in a peer's time.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
BLOCK = 512
EFFORTS = (64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
        package: what must be installed for it.
        build: vectors -> index, and its bytes.
        search: (index, queries, k, effort) -> int64 [n, k].
        efforts: what is tried, in order.
        exact: whether it finds all; ordered: whether best first.
    """

    name: str
    package: str
    build: Callable[[Vectors], tuple[Any, int]]
    search: Callable[[Any, Vectors, int, int], Ids]
    efforts: tuple[int, ...] = (0,)
    exact: bool = False
    ordered: bool = True

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def brute_force(vectors: Vectors, queries: Vectors, k: int) -> Ids:
    """Exact neighbours int64 [n, k], unordered: one matrix product a block of queries, then ``argpartition``."""
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), BLOCK):
        scores = queries[start : start + BLOCK] @ vectors.T
        found[start : start + BLOCK] = np.argpartition(scores, -k, axis=1)[:, -k:]
    return found


def _faiss_flat(vectors: Vectors) -> tuple[Any, int]:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index, vectors.nbytes


def _faiss_search(index: Any, queries: Vectors, k: int, effort: int) -> Ids:
    return np.asarray(index.search(queries, k)[1])


def _hnswlib(vectors: Vectors) -> tuple[Any, int]:
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=100, random_seed=0)
    index.add_items(vectors, np.arange(len(vectors)))
    return index, index.index_file_size()


def _hnswlib_search(index: Any, queries: Vectors, k: int, effort: int) -> Ids:
    index.set_ef(max(effort, k))
    return np.asarray(index.knn_query(queries, k)[0], dtype=np.int64)


def _usearch(vectors: Vectors) -> tuple[Any, int]:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=100)
    index.add(np.arange(len(vectors)), vectors)
    return index, index.memory_usage


def _usearch_search(index: Any, queries: Vectors, k: int, effort: int) -> Ids:
    index.expansion_search = max(effort, k)
    return np.asarray(index.search(queries, k).keys, dtype=np.int64)


def _usearch_exact(vectors: Vectors, queries: Vectors, k: int, effort: int) -> Ids:
    from usearch.index import search

    return np.asarray(search(vectors, queries, k, "ip", exact=True).keys, dtype=np.int64)


def _autofaiss(vectors: Vectors) -> tuple[Any, int]:
    import faiss
    from autofaiss import build_index

    logging.getLogger("autofaiss").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        index, _ = build_index(vectors, save_on_disk=False, metric_type="ip", verbose=logging.ERROR)
    return index, int(faiss.serialize_index(index).nbytes)


PEERS = (
    Peer(
        "NumPy product, argpartition",
        "numpy",
        lambda v: (v, v.nbytes),
        lambda v, q, k, _: brute_force(v, q, k),
        exact=True,
        ordered=False,
    ),
    Peer("FAISS IndexFlatIP", "faiss", _faiss_flat, _faiss_search, exact=True),
    Peer("usearch, exact", "usearch", lambda v: (v, v.nbytes), _usearch_exact, exact=True),
    Peer("hnswlib", "hnswlib", _hnswlib, _hnswlib_search, EFFORTS),
    Peer("usearch", "usearch", _usearch, _usearch_search, EFFORTS),
    Peer("autofaiss", "autofaiss", _autofaiss, _faiss_search),
)
