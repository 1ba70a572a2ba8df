"""Cluster: passages of the corpus's clusters, as often as the task is in them (CRISP, Grangier et al. 2024,
"Task-Adaptive Pretrained Language Models via Clustered-Importance Sampling").

Each passage weighs P_task(c) / P_corpus(c), c being its cluster; passages are drawn without replacement in proportion
(Gumbel top-k), so the clusters' shares in a set are the task's, until a cluster runs out of passages.

Centroids are those of the store's inverted lists (`--index ivf` and its kin) where it has current ones, else spherical
k-means of a sample. Cost: a product of all passages with the centroids. Memory: 4 bytes a passage, and the sample.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.embedding import Embeddings
from selection.errors import NearkinError
from selection.index.blocks import Blocks
from selection.index.kinds import BY_NAME
from selection.index.kmeans import nearest_centroids, spherical_kmeans
from selection.selectors import Pool
from selection.selectors.ot import all_embeddings
from selection.selectors.ranked import Ranked, Scored, gumbel

log = logging.getLogger(__name__)

FEWEST, MOST, PASSAGES = 16, 4096, 8  # clusters at least and at most, and passages in one at least
SAMPLED = 64  # passages a cluster that k-means looks at
UNVISITED, STEP = -1000.0, 64.0  # far below any weight, and further apart than the noise reaches

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


@dataclass
class ClusterSelector:
    """See `selection.selectors.Selector`. Its score is log P_task(c) / P_corpus(c); it has no query.

    Clusters without a task example come after all others, the one whose centroid is nearest to any example first, the
    passages within one in random order; their scores are under -1000.

    Attributes:
        clusters: None takes the store's inverted lists, or 2 sqrt(passages), between 16 and 4096, if it has none.
    """

    clusters: int | None = None
    name: ClassVar[str] = "cluster"
    _ranked: Ranked = field(default_factory=Ranked, init=False, repr=False, compare=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        return self._ranked.best(pool.count(k, wanted), lambda: self._scan(pool))

    def _scan(self, pool: Pool) -> Iterator[Scored]:
        embeddings = all_embeddings(pool, self.name)
        centroids = centroids_for(pool, embeddings, self.clusters)
        clusters = [nearest_centroids(block, centroids)[:, 0].astype(np.int32) for block in embeddings]
        corpus = sum(np.bincount(block, minlength=len(centroids)) for block in clusters)
        weights = cluster_weights(pool.queries, centroids, np.asarray(corpus))
        noise = gumbel(pool.seed, self.name, (len(block) for block in clusters))
        for shard, (block, noisy) in enumerate(zip(clusters, noise, strict=True)):
            scores, first = weights[block], int(embeddings.offsets[shard])
            yield scores + noisy, np.arange(first, first + len(block)), scores.astype(np.float32)


def cluster_weights(queries: Vectors, centroids: Vectors, corpus: npt.NDArray[np.int64]) -> Floats:
    """log P_task / P_corpus of each cluster, float64 [clusters]; those without an example as in `ClusterSelector`.

    Args:
        queries: the task's vectors, float32 [n, dim].
        centroids: float32 [clusters, dim].
        corpus: passages of each, int64 [clusters].
    """
    task = np.bincount(nearest_centroids(queries, centroids)[:, 0], minlength=len(centroids))
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
    """
    rows = len(embeddings)
    if clusters is None:
        found = _stored_centroids(pool, embeddings)
        if found is not None:
            return found
        clusters = max(1, min(max(FEWEST, min(MOST, int(2 * rows**0.5))), rows // PASSAGES))
    if not 1 <= clusters <= rows:
        raise NearkinError(f"cluster: clusters must be from 1 to the {rows:,} passages there are, not {clusters}")
    sample = embeddings.sample(min(rows, SAMPLED * clusters), embeddings.shards, pool.seed)
    if len(sample) < clusters:
        sample = np.concatenate(list(embeddings))
    return spherical_kmeans(sample.astype(np.float32), clusters, pool.seed)


def _stored_centroids(pool: Pool, embeddings: Embeddings) -> Vectors | None:
    for entry in pool.store.manifest.indexes.values():
        whole = bool(entry.settings) and entry.embeddings == embeddings.fingerprint
        if entry.encoder == pool.slug and BY_NAME[entry.kind].lists and whole and pool.index in (None, entry.kind):
            return Blocks(pool.store, entry, embeddings).centroids
    return None
