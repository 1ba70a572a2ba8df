"""What this machine does in a second, and what this corpus asks of inverted lists: measured in a few seconds.

A plan made of these is for this machine and these vectors, where rules of thumb are for others.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selection.corpus import SHARD_ROWS
from selection.embedding import Embeddings
from selection.files import ASIDE, sha256_of_file
from selection.index import load_faiss
from selection.index.blocks import AT
from selection.index.exact import exact_search
from selection.index.kinds import Kind, Vectors, empty_index
from selection.index.kmeans import nearest_centroids, spherical_kmeans
from selection.index.tune import Probes, list_ranks, lists_for

PASSAGES = 16_384
QUERIES = 4096
SCANNED = 65_536
LISTS = 64
PILOT = 65_536
PILOT_PROBES = 256
PILOT_SHARDS = 64
LENGTHS = (128, 256, 512, 1024, 2048)
FEW_LISTS = 16
GRAPH = 8192
UNTRIED = 2e-9


def unit_vectors(rows: int, dim: int, seed: int = 0) -> Vectors:
    """Random unit vectors float32 [rows, dim]."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _seconds(run: Callable[[], object], times: int = 2) -> float:
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return min(taken)


@functools.cache
def pair_seconds(dim: int) -> tuple[float, float]:
    """Exact search: seconds for a query and a passage, and for a candidate that has to be scored again."""
    passages, queries = unit_vectors(2 * PASSAGES, dim).astype(np.float16), unit_vectors(QUERIES, dim, 1)
    blocks = [passages[i : i + SHARD_ROWS] for i in range(0, len(passages), SHARD_ROWS)]

    def search(parts: int, k: int) -> float:
        return _seconds(lambda: exact_search(blocks[:parts], queries, k))

    few, most = 1, len(blocks)
    for _ in range(2):
        search(most, few)  # until processor and allocator run at their speed
    start, bare, full = search(1, few), search(most, few), search(most, 2 * AT)
    again = max(full - bare, 0.0) / (QUERIES * candidates(len(passages), 2 * AT))
    return max(bare - start, 1e-9) / ((len(passages) - SHARD_ROWS) * QUERIES), again


def candidates(passages: int, k: int) -> float:
    """How many passages a query scores on the way, where they come in random order: its k best so far, each time."""
    return k * (1 + max(0.0, float(np.log(max(passages, 1) / max(2048, k)))))


@functools.cache
def centroid_seconds(dim: int) -> float:
    """Seconds for a vector and a centroid."""
    vectors = unit_vectors(PASSAGES, dim)
    return _seconds(lambda: nearest_centroids(vectors, vectors[:2048])) / (PASSAGES * 2048)


@functools.cache
def point_seconds(dim: int) -> float:
    """Seconds for a point in a round of k-means, its products with centroids left out."""
    points = unit_vectors(PASSAGES, dim)
    few = _seconds(lambda: spherical_kmeans(points, LISTS, iterations=2)) / (2 * PASSAGES)
    return max(few - LISTS * centroid_seconds(dim), 0.0)


@functools.cache
def scan_seconds(kind: Kind, dim: int) -> tuple[float, float, float]:
    """Seconds to train codes, to add a passage, and to look at one passage of a list."""
    faiss = load_faiss()
    vectors, queries = unit_vectors(SCANNED, dim), unit_vectors(64, dim, 1)  # more than caches hold
    centroids = np.ascontiguousarray(vectors[:LISTS])
    begun = time.perf_counter()
    index = empty_index(faiss, kind, dim, centroids, vectors[:PASSAGES])
    training = time.perf_counter() - begun
    lists = np.ascontiguousarray(nearest_centroids(vectors, centroids)[:, 0])
    ids = np.arange(len(vectors))
    begun = time.perf_counter()
    index.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
    adding = (time.perf_counter() - begun) / len(vectors)
    every = nearest_centroids(queries, centroids, LISTS)
    coarse = np.take_along_axis(queries @ centroids.T, every, axis=1)
    index.nprobe = LISTS
    looking = _seconds(lambda: index.search_preassigned(queries, AT, every, coarse)) / (len(queries) * len(vectors))
    return training, adding, looking


def graph_seconds(kind: Kind, dim: int, passages: int) -> float:
    """Seconds to add a passage to an HNSW graph, or to find one, growing with the logarithm of its size."""
    return _small_graph(kind, dim) * math.log(passages) / math.log(GRAPH)


@functools.cache
def _small_graph(kind: Kind, dim: int) -> float:
    vectors = unit_vectors(GRAPH, dim)
    index = empty_index(load_faiss(), kind, dim, None, vectors)
    return _seconds(lambda: index.add(vectors), 1) / len(vectors)


def write_seconds(folder: Path) -> float:
    """Seconds to write, sync and hash a byte in `folder`; a guess where nothing can be written."""
    while not folder.exists():
        folder = folder.parent
    return _write_seconds(folder)


@functools.cache
def _write_seconds(folder: Path, size: int = 32 << 20) -> float:
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".trial", suffix=ASIDE) as file:
        begun = time.perf_counter()
        file.write(os.urandom(1 << 20) * (size >> 20))
        file.flush()
        os.fsync(file.fileno())
        sha256_of_file(Path(file.name))
        return (time.perf_counter() - begun) / size
    return UNTRIED


@dataclass(frozen=True)
class Reach:
    """How many lists of a mean length a query visits for its recall, in a sample, and how that grows with it."""

    length: int
    visited: float
    sample: int
    growth: float

    def at(self, passages: int) -> float:
        return float(self.visited * (passages / self.sample) ** self.growth)


def pilot(embeddings: Embeddings, target: float, examples: Vectors | None = None, seed: int = 0) -> list[Reach]:
    """For each length of list, how many must be visited; from two samples, a quarter and the whole of `PILOT`.

    Args:
        examples: float32 [n, dim], a task's, who are asked for as well as passages.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(embeddings.shards)
    enough = int(np.searchsorted(np.cumsum(np.diff(embeddings.offsets)[order]), PILOT + PILOT_PROBES)) + 1
    shards = np.sort(order[: max(PILOT_SHARDS, enough)])
    rows = np.concatenate([np.arange(embeddings.offsets[s], embeddings.offsets[s + 1]) for s in shards])
    rows = rng.permutation(rows)[: min(PILOT + PILOT_PROBES, len(rows))]
    vectors = embeddings.take(rows)
    groups, sample = [vectors[:PILOT_PROBES]], vectors[PILOT_PROBES:]
    if examples is not None:
        groups.append(np.ascontiguousarray(examples[rng.permutation(len(examples))[:PILOT_PROBES]]))
    found: dict[tuple[int, int], float] = {}
    for size in (len(sample) // 4, len(sample)):
        pool = sample[:size]
        if size < FEW_LISTS * min(LENGTHS):
            continue
        asked = []
        for queries in groups:
            _, ids = exact_search([pool.astype(np.float16)], queries, AT)
            asked.append(Probes(queries, np.full(len(queries), -1), ids))
        for length in LENGTHS:
            if size // length >= FEW_LISTS:
                centroids = spherical_kmeans(pool, size // length, seed, iterations=5)
                ranks = [list_ranks(probes, pool[probes.exact], centroids) for probes in asked]
                found[size, length] = float(max(lists_for(rank, target)[0] for rank in ranks))
    reaches = []
    for length in LENGTHS:
        few, many = (found.get((size, length)) for size in (len(sample) // 4, len(sample)))
        if many is not None:
            growth = 0.5 if few is None else float(np.clip(np.log(many / few) / np.log(4), 0.0, 0.8))
            reaches.append(Reach(length, many, len(sample), growth))
    return reaches
