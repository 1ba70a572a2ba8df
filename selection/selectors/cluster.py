"""Cluster: passages of the corpus's clusters, as often as the task is in them (CRISP, Grangier et al. 2024,
"Task-Adaptive Pretrained Language Models via Clustered-Importance Sampling").

The clusters' shares in a set are the task's, to a passage, whatever its size, until a cluster is used up; then the
others fill its place. Passages of one cluster stand in random order, and the clusters take turns: the i-th passage of
cluster c comes at (i + u_c) / P_task(c), i from 0, with one random u_c in [0, 1) a cluster, so that small clusters have
their share of small sets too. Sets of different sizes are nested. (CRISP draws with replacement, clusters by P_task;
here nothing is twice.)

Centroids are those of the store's inverted lists (`ivf` and its kin) where these are the index in use, or the one that
`--index` names, else spherical k-means of a sample. Cost: a product of all passages with the centroids. Memory: 24
bytes a passage, and the sample.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.embedding import Embeddings
from selection.errors import NearkinError, StoreError
from selection.index.blocks import Blocks
from selection.index.kinds import BY_NAME
from selection.index.kmeans import nearest_centroids, spherical_kmeans
from selection.index.search import find_index
from selection.selectors import Pool
from selection.selectors.ranked import Ranked, Scored

log = logging.getLogger(__name__)

FEWEST, MOST, PASSAGES = 16, 4096, 8  # clusters at least and at most, and passages in one at least
SAMPLED, SHARDS = 64, 4096  # passages a cluster that k-means looks at, from so many shards at most
UNVISITED, STEP = -1000.0, 64.0  # far below any weight
NUMBER = "float32"  # the fastest format is not the same on every run

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


@dataclass
class ClusterSelector:
    """See `selection.selectors.Selector`. Its score is log P_task(c) / P_corpus(c); it has no query.

    Clusters without a task example come after all others, the one whose centroid is nearest to any example first, the
    passages within one in random order; their scores are under -1000.

    Attributes:
        clusters: None takes the inverted lists in use, or 2 sqrt(passages), between 16 and 4096, if it has none.
    """

    clusters: int | None = None
    name: ClassVar[str] = "cluster"
    _ranked: Ranked = field(default_factory=Ranked, init=False, repr=False, compare=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        return self._ranked.best(pool.count(k, wanted), lambda: self._scan(pool))

    def _scan(self, pool: Pool) -> Iterator[Scored]:
        embeddings = pool.all_embeddings(self.name)
        centroids = centroids_for(pool, embeddings, self.clusters)
        blocks = [nearest_centroids(block, centroids, number=NUMBER)[:, 0].astype(np.int32) for block in embeddings]
        clusters = np.concatenate(blocks)
        corpus = np.bincount(clusters, minlength=len(centroids))
        weights = cluster_weights(pool.queries, centroids, corpus)
        rng = np.random.default_rng([pool.seed, *self.name.encode()])
        turns = in_turn(clusters, weights, rng)
        for first, stop in pairwise(embeddings.offsets.tolist()):
            scores = weights[clusters[first:stop]].astype(np.float32)
            yield turns[first:stop], np.arange(first, stop), scores


def in_turn(clusters: npt.NDArray[np.int32], weights: Floats, rng: np.random.Generator) -> Vectors:
    """What ranks passages, the largest first, float32 [n]: clusters at their shares, then those without an example.

    A passage's place in its cluster is drawn; float32 tells apart places up to 16 million, past which neighbours tie.

    Args:
        clusters: of each passage, int32 [n].
        weights: of each cluster, `cluster_weights`.
    """
    sizes = np.bincount(clusters, minlength=len(weights))
    few = clusters.astype(np.uint16) if len(weights) <= 1 << 16 else clusters  # which are sorted by their digits
    members, starts = np.argsort(few, kind="stable"), np.cumsum(sizes) - sizes
    visited = weights > UNVISITED
    shares = np.where(visited, np.exp(weights) * sizes, 0)  # P_task, but for a common factor
    order = np.argsort(-weights, kind="stable")
    waiting = np.where(visited, 0, sizes)[order]
    before = np.empty(len(weights), np.int64)
    before[order] = np.cumsum(waiting) - waiting
    shifts = rng.random(len(weights))
    turns = np.empty(len(clusters), np.float32)
    for cluster in np.flatnonzero(sizes):
        place = rng.permutation(sizes[cluster])
        mine = members[starts[cluster] : starts[cluster] + sizes[cluster]]
        turns[mine] = (
            shares[cluster] / (place + shifts[cluster]) if visited[cluster] else -(before[cluster] + place + 1)
        )
    return turns


def cluster_weights(queries: Vectors, centroids: Vectors, corpus: npt.NDArray[np.int64]) -> Floats:
    """log P_task / P_corpus of each cluster, float64 [clusters]; those without an example as in `ClusterSelector`.

    Args:
        queries: the task's vectors, float32 [n, dim].
        centroids: float32 [clusters, dim].
        corpus: passages of each, int64 [clusters].
    """
    task = np.bincount(nearest_centroids(queries, centroids, number=NUMBER)[:, 0], minlength=len(centroids))
    reached = (task > 0) & (corpus > 0)
    log.info("cluster: the task is in %d of %d clusters", reached.sum(), len(centroids))
    weights = np.zeros(len(centroids))
    weights[reached] = np.log(task[reached] / len(queries)) - np.log(corpus[reached] / corpus.sum())
    near = nearness(queries, centroids)
    rest = np.flatnonzero(~reached)
    order = rest[np.argsort(-near[rest], kind="stable")]
    weights[order] = UNVISITED - STEP * np.arange(1, len(order) + 1)
    return weights


def nearness(queries: Vectors, centroids: Vectors) -> Vectors:
    """The largest inner product of each centroid with any task example, float32 [clusters]."""
    best = np.full(len(centroids), -np.inf, np.float32)
    for start in range(0, len(queries), 4096):
        np.maximum(best, (queries[start : start + 4096] @ centroids.T).max(axis=0), out=best)
    return best


def centroids_for(pool: Pool, embeddings: Embeddings, clusters: int | None) -> Vectors:
    """Centroids float32 [clusters, dim]: of the store's current inverted lists, unless a number is given.

    Raises:
        NearkinError: more clusters than passages, or none.
        StoreError: the index that was named is not there, or older than the embeddings.
    """
    rows = len(embeddings)
    if clusters is None:
        found = _stored_centroids(pool, embeddings)
        if found is not None:
            pool.centroids = pool.index_used
            return found
        clusters = max(1, min(max(FEWEST, min(MOST, int(2 * rows**0.5))), rows // PASSAGES))
    if not 1 <= clusters <= rows:
        raise NearkinError(f"cluster: clusters must be from 1 to the {rows:,} passages there are, not {clusters}")
    sample = embeddings.sample(min(rows, SAMPLED * clusters), SHARDS, pool.seed)
    if len(sample) < clusters:
        sample = np.concatenate(list(embeddings))
    pool.centroids = "k-means"
    return spherical_kmeans(sample.astype(np.float32), clusters, pool.seed, number=NUMBER)


def _stored_centroids(pool: Pool, embeddings: Embeddings) -> Vectors | None:
    """Those of the index in use, or of the one that was named; None where it has none, or is older."""
    try:
        entry = find_index(pool.store, pool.slug, pool.index)
    except StoreError as error:
        if pool.index is not None:
            raise
        log.warning("clusters are made anew: %s", error)
        return None
    if not BY_NAME[entry.kind].has_lists:
        return None
    pool.index_used = entry.kind
    return Blocks(pool.store, entry, embeddings).centroids
