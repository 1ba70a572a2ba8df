"""Neighbours of a whole task at once: one batch search, then ties put in doc_id order."""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.embedding import Embeddings
from selection.errors import StoreError
from selection.index import load_faiss
from selection.store import IndexEntry, Store

log = logging.getLogger(__name__)

NEIGHBOURS = pa.schema(
    [("query_id", pa.int32()), ("rank", pa.int32()), ("doc_id", pa.int64()), ("score", pa.float32())]
)


def find_index(store: Store, slug: str, kind: str | None = None) -> IndexEntry:
    """The index of encoder `slug`; exact where there are several and none is named.

    Raises:
        StoreError: there is none, or it is older than the embeddings.
    """
    embeddings = Embeddings(store, slug)
    kinds = [kind] if kind else ["flat", "ivf"]
    known = [store.manifest.indexes.get(f"{slug}-{k}") for k in kinds]
    current = [entry for entry in known if entry and entry.embeddings == embeddings.fingerprint]
    if not current:
        state = "is older than its embeddings" if any(known) else "does not exist"
        which, option = (f"{kind} index", f" --kind {kind}") if kind else ("index", "")
        raise StoreError(f"{store.path}: the {which} of {slug} {state}: run `nearkin index {store.path}{option}`")
    return current[0]


def search(
    store: Store, slug: str, queries: npt.NDArray[np.float32], k: int, kind: str | None = None, first_query: int = 0
) -> pa.Table:
    """The `k` nearest passages of each query by inner product.

    Args:
        queries: float32 [n, dim], unit norm.
        k: neighbours a query; clipped to the corpus with a warning.
        kind: ``flat`` or ``ivf``; None takes what the store has.
        first_query: query_id of the first query, where these are a part of a task's.

    Returns:
        `NEIGHBOURS`, sorted by query_id then rank; rank 1 is the nearest, equal scores stand in doc_id order.

    Raises:
        StoreError: no current index, or a damaged one.
    """
    faiss = load_faiss()
    entry = find_index(store, slug, kind)
    path = store.check(entry.file, f"run `nearkin index {store.path}` to make it again")
    index = faiss.read_index(str(path), _map_flag(faiss) if entry.kind == "flat" else 0)
    if index.ntotal != entry.file.rows or index.d != queries.shape[1]:
        raise StoreError(f"{path} does not fit the store: run `nearkin index {store.path}` to make it again")
    if k > index.ntotal:
        log.warning("k = %d is more than the corpus holds: %d neighbours each", k, index.ntotal)
        k = index.ntotal
    params = faiss.SearchParametersIVF(nprobe=entry.settings["nprobe"]) if entry.kind == "ivf" else None
    scores, ids = index.search(np.ascontiguousarray(queries), k, params=params)
    return neighbour_table(scores, ids, first_query)


def _map_flag(faiss: Any) -> int:
    """FAISS's flag for mapping a file instead of reading it, where it can (it cannot outside Linux)."""
    return int(getattr(faiss, "IO_FLAG_MMAP_IFC", 0)) if sys.platform == "linux" else 0


def neighbour_table(scores: npt.NDArray[np.float32], ids: npt.NDArray[np.int64], first_query: int = 0) -> pa.Table:
    """`NEIGHBOURS` from FAISS's two [n, k] arrays; places it left empty (id -1) are dropped."""
    order = np.lexsort((ids, -scores), axis=-1)
    scores, ids = np.take_along_axis(scores, order, -1), np.take_along_axis(ids, order, -1)
    n, k = ids.shape
    found = (ids >= 0).reshape(-1)
    columns = [
        np.repeat(np.arange(first_query, first_query + n, dtype=np.int32), k)[found],
        np.tile(np.arange(1, k + 1, dtype=np.int32), n)[found],
        ids.reshape(-1)[found],
        scores.reshape(-1)[found],
    ]
    return pa.table([pa.array(c) for c in columns], schema=NEIGHBOURS)
