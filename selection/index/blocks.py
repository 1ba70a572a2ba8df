"""An index as blocks: FAISS files of consecutive shards, each whole in itself, made one by one, searched together.

A block holds at most `BLOCK_BYTES`, so memory does not grow with the corpus; a killed build keeps the blocks it
finished; and a corpus added later becomes further blocks, while those before stay. Inverted lists are read where they
lie on disk (memory-mapped). All blocks have the same centroids, which stand in the first one's file and are held once,
so a query finds its lists once for all of them. (Files made before each hold a copy, and are read all the same.)
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings
from selection.errors import StoreError
from selection.files import atomic_write
from selection.index import load_faiss
from selection.index.exact import as_tensor, pair_scores
from selection.index.kinds import BY_NAME, Kind, Vectors
from selection.index.kmeans import nearest_centroids, rows_at_once
from selection.index.ranking import Ids, Ranking, Scores
from selection.manifest import IndexBlock, IndexEntry
from selection.runs import runs
from selection.store import Store

BLOCK_BYTES = 512 << 20
CANDIDATES_HELD = 4_000_000
BATCH = 512
PLAIN = ("ivf", "ivf-sq8")  # whose codes are decoded at once
AT = 50
UNFINISHED = "~"
MAPPED = os.name != "nt"  # on Windows FAISS cannot leave lists on disk


def block_bounds(embeddings: Embeddings, kept: int, passage_bytes: int, block_bytes: int) -> list[tuple[int, int]]:
    """Shards [start, stop) of each block still to be made, after the first `kept` shards."""
    rows = max(block_bytes // passage_bytes, 1)
    return [(kept + start, kept + stop) for start, stop in runs(np.diff(embeddings.offsets[kept:]), rows)]


def kept_blocks(store: Store, entry: IndexEntry, embeddings: Embeddings) -> list[IndexBlock]:
    """The blocks, from the first on, that are whole and of the embeddings as they are."""
    kept, start = [], 0
    for block in entry.blocks:
        stop = start + block.shards
        of_these = stop <= embeddings.shards and block.embeddings == embeddings.fingerprint_of(start, stop)
        if not of_these or not store.is_whole(block.file):
            break
        kept.append(block)
        start = stop
    return kept


def add_blocks(
    store: Store,
    entry: IndexEntry,
    embeddings: Embeddings,
    make: Callable[[], Any],
    block_bytes: int,
    tick: Callable[[int], object],
) -> None:
    """Makes the blocks that `entry` lacks and enters each into the manifest once it is on disk.

    Args:
        make: gives an empty, trained FAISS index; further blocks of lists take the first one's training.
    """
    faiss = load_faiss()
    kind = BY_NAME[entry.kind]
    name = f"{entry.encoder}-{entry.kind}"
    folder, before = store.path / "index" / name, store.manifest.indexes.get(name)
    # No file that the manifest names is written over while it names it.
    named = [*entry.blocks, *(before.blocks if before else [])]
    taken = {block.file.path for block in named if store.is_whole(block.file)}
    done = sum(block.shards for block in entry.blocks)
    for start, stop in block_bounds(embeddings, done, kind.bytes(embeddings.dim), block_bytes):
        again = entry.blocks and kind.has_lists
        index = _emptied(faiss, store.path / entry.blocks[0].file.path) if again else make()
        centroids = centroids_of(faiss, index) if kind.has_lists else None
        for number in range(start, stop):
            _add(faiss, index, embeddings.shard(number), centroids)
            tick(int(embeddings.offsets[number + 1] - embeddings.offsets[number]))
        path = next(path for path in _paths(folder) if store.relative(path) not in taken)
        taken.add(store.relative(path))
        with atomic_write(path) as aside, _without_centroids(faiss, index if again else None):
            write_index(faiss, index, str(aside))
        file = store.entry(path, int(index.ntotal))
        entry.blocks.append(IndexBlock(file, stop - start, embeddings.fingerprint_of(start, stop)))
        store.manifest.indexes[f"{name}{UNFINISHED}"] = entry
        store.save()


def clear_blocks(store: Store, slug: str) -> None:
    """Removes files of an encoder's indexes that none of them names, once the manifest on disk does not either."""
    listed = {store.path / block.file.path for entry in store.manifest.indexes.values() for block in entry.blocks}
    for kind in BY_NAME:
        for path in (store.path / "index" / f"{slug}-{kind}").glob("faiss*.index"):
            if path not in listed:
                path.unlink()


def _paths(folder: Path) -> Iterator[Path]:
    """The names of blocks' files, in order."""
    yield folder / "faiss.index"
    for number in count(1):
        yield folder / f"faiss-{number:05d}.index"


def _emptied(faiss: Any, path: Path) -> Any:
    """Inverted lists with the training of those at `path` and none of their passages."""
    index = read_index(faiss, path)
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = 0
    return index


@contextlib.contextmanager
def _without_centroids(faiss: Any, index: Any | None) -> Iterator[None]:
    """Takes its centroids from an index of lists for as long as it is written."""
    if index is None:
        yield
        return
    kept, owned, none = index.quantizer, index.own_fields, faiss.IndexFlatIP(index.d)
    index.own_fields, index.quantizer = False, none
    try:
        yield
    finally:
        index.quantizer, index.own_fields = kept, owned
        none.this.own(True)


def _share_centroids(faiss: Any, first: Any, index: Any) -> None:
    """Gives an index of lists the centroids of `first`, which must outlive it, and frees its own."""
    # FAISS frees them with an index that owns them; to own them by Python's wrapper ends in wrappers of no type at all.
    owner = faiss.IndexIVFFlat(index.quantizer, index.d, 1, index.metric_type)
    owner.own_fields = True
    index.own_fields, index.quantizer = False, first.quantizer


def _add(faiss: Any, index: Any, block: npt.NDArray[np.float16], centroids: Vectors | None) -> None:
    vectors = np.ascontiguousarray(block, dtype=np.float32)
    if centroids is None:
        index.add(vectors)
    else:
        add_to_lists(faiss, index, vectors, np.ascontiguousarray(nearest_centroids(vectors, centroids)[:, 0]))


def add_to_lists(faiss: Any, index: Any, vectors: Vectors, lists: npt.NDArray[np.int64]) -> None:
    """Adds vectors float32 [n, dim] to the inverted lists that are given, int64 [n]; both contiguous."""
    ids = np.arange(index.ntotal, index.ntotal + len(vectors), dtype=np.int64)
    index.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(lists))


def centroids_of(faiss: Any, index: Any) -> Vectors:
    """Centroids float32 [lists, dim] of an index with inverted lists."""
    return np.asarray(faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist), dtype=np.float32)


def write_index(faiss: Any, index: Any, path: str) -> None:
    """Writes a FAISS file, through Python: FAISS itself takes one that could not be closed for a whole one."""
    with Path(path).open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_index(faiss: Any, path: Path) -> Any:
    """A FAISS file, whose inverted lists stay on disk where the system can do that."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP if MAPPED else 0)


class Blocks:
    """The blocks of an index, opened for searching.

    Raises:
        StoreError: a file is missing, damaged or not of this store.
    """

    def __init__(self, store: Store, entry: IndexEntry, embeddings: Embeddings) -> None:
        self._faiss = load_faiss()
        self._embeddings = embeddings
        self._kind = BY_NAME[entry.kind]
        self._open: list[tuple[int, Any]] = []
        first = 0
        for block in entry.blocks:
            remedy = f"run `nearkin index {store.path} --kind {entry.kind}` to make it again"
            path = store.check(block.file, remedy)
            index = read_index(self._faiss, path)
            fits = index.ntotal == block.file.rows and index.d == embeddings.dim
            if not fits or (self._kind.has_lists and index.nlist != entry.lists):
                raise StoreError(f"{path} does not fit the store: {remedy}")
            if self._kind.has_lists and self._open:
                _share_centroids(self._faiss, self._open[0][1], index)
            self._open.append((first, index))
            first += block.file.rows
        self.centroids = centroids_of(self._faiss, self._open[0][1]) if self._kind.has_lists else None

    @property
    def lists(self) -> int:
        return 0 if self.centroids is None else len(self.centroids)

    def search(self, queries: Vectors, k: int, effort: int, rerank: int) -> tuple[Scores, Ids]:
        """The `k` best passages found, scored by the embeddings themselves.

        Args:
            queries: float32 [n, dim].
            effort: lists visited, or what HNSW calls efSearch.
            rerank: so many times `k`, or `AT` where that is more, are scored.

        Returns:
            float32 [n, k] and int64 [n, k], as `selection.index.exact.exact_search`.
        """
        wide = max(k, AT) * rerank
        held = max(1, CANDIDATES_HELD // max(wide, effort))
        parts = [(np.empty((0, k), np.float32), np.empty((0, k), np.int64))]
        for start in range(0, len(queries), held):
            part = np.ascontiguousarray(queries[start : start + held])
            found = Ranking(len(part), wide)
            for scores, ids in self._candidates(part, wide, effort):
                found.add_rows(scores, ids)
            parts.append(rescored(self._embeddings.parts, part, found.best()[1], k))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _candidates(self, queries: Vectors, count: int, effort: int) -> Iterator[tuple[Scores, Ids]]:
        if self.centroids is not None:
            effort = min(effort, self.lists)
            lists = nearest_centroids(queries, self.centroids, effort)
            together = in_batch(self._kind, len(queries), effort, self.lists)
            coarse = None if together else _coarse(queries, self.centroids, lists)
        for first, index in self._open:
            if self.centroids is not None:
                scores, ids = search_lists(index, queries, count, lists, coarse)
            else:
                params = self._faiss.SearchParametersHNSW(efSearch=max(effort, count))
                scores, ids = index.search(queries, min(count, index.ntotal), params=params)
            yield scores, np.where(ids < 0, -1, ids + first)


def in_batch(kind: Kind, queries: int, visited: float, lists: int) -> bool:
    """Whether so many queries are searched list by list: not where they visit fewer than there are, nor can FAISS."""
    return kind.name in PLAIN and queries >= BATCH and queries * int(visited) > lists + 1


def search_lists(
    index: Any, queries: Vectors, count: int, lists: npt.NDArray[np.int64], coarse: Scores | None
) -> tuple[Scores, Ids]:
    """The `count` best in the lists of each query, by the index's own codes.

    Args:
        lists: int64 [n, any].
        coarse: float32 [n, any], products of queries with those lists' centroids; None searches list by list, all
            queries that visit one in a matrix product: up to three times faster than one by one.
    """
    index.nprobe = lists.shape[1]
    if coarse is not None:
        scores, ids = index.search_preassigned(queries, count, lists, coarse)
        return scores, ids
    from faiss.contrib.big_batch_search import big_batch_search

    assigned = lists.astype(np.int32)  # a copy, which it sorts in place
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress there
        found = big_batch_search(
            index, queries, count, method="pairwise_distances", verbose=1, threaded=1, q_assign=assigned
        )
    return found[0], found[1]


def _coarse(queries: Vectors, centroids: Vectors, lists: npt.NDArray[np.int64]) -> Scores:
    """Inner products float32 [n, count] of queries with their lists' centroids."""
    out = np.empty(lists.shape, dtype=np.float32)
    rows = min(1024, rows_at_once(len(centroids)))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        out[part] = np.take_along_axis(queries[part] @ centroids.T, lists[part], axis=1)
    return out


def rescored(
    parts: Callable[[Ids], Iterable[tuple[npt.NDArray[np.intp], npt.NDArray[np.float16]]]],
    queries: Vectors,
    ids: Ids,
    k: int,
) -> tuple[Scores, Ids]:
    """The `k` best of each query's candidates by float32 products with their vectors, read a shard at a time.

    Args:
        parts: `Embeddings.parts`, or what does the same.
        ids: int64 [n, any], -1 for none.
    """
    import torch

    ranking = Ranking(len(queries), k)
    query, place = np.nonzero(ids >= 0)
    passages = ids[query, place]
    left = torch.from_numpy(np.ascontiguousarray(queries))
    for positions, vectors in parts(passages):
        every = torch.arange(len(positions))
        scores = pair_scores(as_tensor(vectors), left, every, torch.from_numpy(query[positions])).numpy()
        ranking.add(query[positions], scores, passages[positions])
    return ranking.best()
