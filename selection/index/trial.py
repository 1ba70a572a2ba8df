"""What this machine does in a second: measured in a few, so that a plan is for this machine and not for another."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.corpus import SHARD_ROWS
from selection.files import ASIDE, sha256_of_file
from selection.index import load_faiss
from selection.index.blocks import AT, PLAIN, add_to_lists, rescored, search_lists
from selection.index.exact import exact_search
from selection.index.kinds import BY_NAME, Kind, Vectors, empty_index
from selection.index.kmeans import nearest_centroids, spherical_kmeans
from selection.index.ranking import Ids

PASSAGES = 16_384
QUERIES = 4096
SCORED = 65_536  # more than caches hold
LONG, SHORT = (32, 1024), (256, 128)  # lists and their passages: more than caches hold
EMPTY = 1024
CLUSTERS = 64
GRAPH = 8192
TRIAL_MB = 32
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
def pair_seconds(dim: int, device: str | None = None) -> tuple[float, float]:
    """Exact search: seconds for a query and a passage, and for a candidate that has to be scored again.

    Args:
        device: see `selection.index.exact.exact_search`.
    """
    passages, queries = unit_vectors(PASSAGES, dim).astype(np.float16), unit_vectors(QUERIES, dim, 1)
    blocks = [passages[i : i + SHARD_ROWS] for i in range(0, len(passages), SHARD_ROWS)]

    def search(parts: int, k: int) -> float:
        return _seconds(lambda: exact_search(blocks[:parts], queries, k, device))

    few, most = 1, len(blocks)
    search(most, few)  # until processor and allocator run at their speed
    start, bare, full = search(1, few), search(most, few), search(most, 2 * AT)
    again = max(full - bare, 0.0) / (QUERIES * candidates(len(passages), 2 * AT))
    # Where other work disturbs one of the two: what begins a search is part of it, and no more than half.
    whole = bare / (len(passages) * QUERIES)
    return float(np.clip((bare - start) / ((len(passages) - SHARD_ROWS) * QUERIES), whole / 2, whole)), again


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
    few = _seconds(lambda: spherical_kmeans(points, CLUSTERS, iterations=2)) / (2 * PASSAGES)
    return max(few - CLUSTERS * centroid_seconds(dim), 0.0)


@functools.cache
def order_seconds(dim: int) -> float:
    """Seconds for a query and a centroid, where the nearest lists are put in order."""
    vectors = unit_vectors(2048, dim)
    return _seconds(lambda: nearest_centroids(vectors, vectors, 64)) / len(vectors) ** 2


@functools.cache
def again_seconds(dim: int) -> float:
    """Seconds to score a candidate of a list again."""
    passages, queries = unit_vectors(SCORED, dim).astype(np.float16), unit_vectors(1024, dim, 1)
    ids = np.random.default_rng(0).integers(len(passages), size=(len(queries), 8 * AT))

    def parts(rows: Ids) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float16]]]:
        for shard in range(SCORED // SHARD_ROWS):
            positions = np.flatnonzero(rows // SHARD_ROWS == shard)
            yield positions, passages[rows[positions]]

    return _seconds(lambda: rescored(parts, queries, ids, AT)) / ids.size


@dataclass(frozen=True)
class Scan:
    """Seconds that searching lists of a kind takes.

    Attributes:
        opening: a list, once for all queries that are searched together, whether or not one of them visits it.
        decoding: a passage, once for all queries that are searched together.
        visiting: a query and a list.
        looking: a query and a passage of that list.
    """

    opening: float
    decoding: float
    visiting: float
    looking: float


@dataclass(frozen=True)
class Lists:
    """Seconds that lists of a kind take.

    Attributes:
        training: of its codes.
        adding: a passage.
        together: queries that are searched list by list; None for a kind that is not.
        alone: queries that are searched one by one.
    """

    training: float
    adding: float
    together: Scan | None
    alone: Scan


@functools.cache
def lists(kind: Kind, dim: int, count: int) -> Lists:
    """By a small index with long and short lists of random vectors.

    Args:
        count: candidates kept for a query.
    """
    faiss = load_faiss()
    sizes = np.repeat([LONG[1], SHORT[1]], [LONG[0], SHORT[0]])
    vectors = unit_vectors(int(sizes.sum()), dim)
    begun = time.perf_counter()
    index = empty_index(faiss, kind, dim, np.ascontiguousarray(vectors[: len(sizes)]), vectors[:PASSAGES])
    training = time.perf_counter() - begun
    begun = time.perf_counter()
    add_to_lists(faiss, index, vectors, np.repeat(np.arange(len(sizes)), sizes))
    adding = (time.perf_counter() - begun) / len(vectors)
    together = _scan(index, dim, count, True) if kind.name in PLAIN else None
    return Lists(training, adding, together, _scan(index, dim, count, False))


def _scan(index: Any, dim: int, count: int, together: bool) -> Scan:
    runs, taken = [], []
    opening = _opening_seconds(dim) if together else 0.0
    for queries, visits, (first, most, length) in (
        (512, 8, (0, *LONG)), (2048, 8, (0, *LONG)), (2048, 32, (LONG[0], *SHORT)),
    ):  # fmt: skip
        asked = queries if together else queries // 16
        rng = np.random.default_rng(0)
        visited = first + rng.permuted(np.tile(np.arange(most), (asked, 1)), axis=1)[:, :visits]
        coarse = None if together else np.zeros(visited.shape, np.float32)
        run = functools.partial(search_lists, index, unit_vectors(asked, dim, 1), count, visited, coarse)
        least = opening * index.nlist
        taken.append(max(_seconds(run) - least, least / 10))
        runs.append((index.ntotal if together else 0, asked * visits, asked * visits * length))
    return Scan(opening, *shares(np.array(runs, dtype=np.float64), np.array(taken)))


@functools.cache
def _opening_seconds(dim: int) -> float:
    """Seconds for a list that nothing is in, where queries are searched list by list."""
    centroids = unit_vectors(EMPTY, dim)
    index = empty_index(load_faiss(), BY_NAME["ivf"], dim, centroids, centroids)
    queries, visited = unit_vectors(EMPTY + 2, dim, 1), np.zeros((EMPTY + 2, 1), np.int64)  # all the same one
    return _seconds(lambda: search_lists(index, queries, 1, visited, None)) / EMPTY


def shares(runs: npt.NDArray[np.float64], taken: npt.NDArray[np.float64]) -> list[float]:
    """What each thing takes, none less than nothing, by least squares of relative errors.

    Args:
        runs: float64 [runs, things], how many of each.
        taken: seconds, float64 [runs].
    """
    kept = np.flatnonzero(runs.any(axis=0))
    found = np.zeros(runs.shape[1])
    while len(kept):
        solved = np.linalg.lstsq(runs[:, kept] / taken[:, None], np.ones(len(taken)), rcond=None)[0]
        if (solved >= 0).all():
            found[kept] = solved
            break
        kept = kept[solved >= 0]
    return [float(share) for share in found]


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
def _write_seconds(folder: Path) -> float:
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder, prefix=".trial", suffix=ASIDE) as file:
        begun = time.perf_counter()
        file.write(os.urandom(1 << 20) * TRIAL_MB)
        file.flush()
        os.fsync(file.fileno())
        sha256_of_file(Path(file.name))
        return (time.perf_counter() - begun) / (TRIAL_MB << 20)
    return UNTRIED
