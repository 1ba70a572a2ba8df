"""What a corpus asks of inverted lists, from two samples of it: how many to visit, how many candidates to score again.

Both follow from how its vectors lie, which no rule of thumb knows; how they grow with the corpus is seen between the
samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selection.embedding import Embeddings
from selection.index import load_faiss
from selection.index.blocks import AT, add_to_lists
from selection.index.exact import exact_search
from selection.index.kinds import Kind, Vectors, empty_index
from selection.index.kmeans import nearest_centroids, spherical_kmeans
from selection.index.ranking import MOST_PASSAGES, Ids
from selection.index.tune import Probes, list_ranks, lists_for

SAMPLE = 65_536
PROBES = 256
SHARDS = 64
LENGTHS = (128, 256, 512, 1024, 2048)
FEW_LISTS = 16


@dataclass(frozen=True)
class Reach:
    """How many lists of a mean length a query visits for its recall, in a sample, and how that grows with it.

    Attributes:
        length: passages a list.
        visited: lists.
        sample: passages.
        growth: exponent of the lists that are visited, by passages.
    """

    length: int
    visited: float
    sample: int
    growth: float

    def at(self, passages: int) -> float:
        return float(self.visited * (passages / self.sample) ** self.growth)


def drawn(embeddings: Embeddings) -> Vectors:
    """Vectors float32 [at most `SAMPLE` + `PROBES`, dim] for a pilot, from all over the corpus, in random order."""
    rng = np.random.default_rng(0)
    order = rng.permutation(embeddings.shards)
    enough = int(np.searchsorted(np.cumsum(np.diff(embeddings.offsets)[order]), SAMPLE + PROBES)) + 1
    shards = np.sort(order[: max(SHARDS, enough)])
    rows = np.concatenate([np.arange(embeddings.offsets[s], embeddings.offsets[s + 1]) for s in shards])
    return embeddings.take(rng.permutation(rows)[: SAMPLE + PROBES])


class Pilot:
    """A sample of a corpus, a quarter of it, and queries with their exact neighbours in each.

    Args:
        vectors: float32 [n, dim], as `drawn`; the first `PROBES` ask, the others are the sample.
        examples: float32 [n, dim], a task's, who ask as well.
        device: where exact neighbours are searched, see `selection.index.exact.exact_search`.
    """

    def __init__(self, vectors: Vectors, examples: Vectors | None = None, device: str | None = None) -> None:
        groups, self._sample = [vectors[:PROBES]], vectors[PROBES:]
        if examples is not None:
            some = np.random.default_rng(0).permutation(len(examples))[:PROBES]
            groups.append(np.ascontiguousarray(examples[some]))
        self._sizes = [size for size in (len(self._sample) // 4, len(self._sample)) if size >= FEW_LISTS * LENGTHS[0]]
        self._asked = {
            size: [_probes(queries, self._sample[:size], device) for queries in groups] for size in self._sizes
        }

    def reaches(self, target: float) -> list[Reach]:
        """For each length of list, how many must be visited for `target` of the neighbours; none of a small corpus."""
        found: dict[tuple[int, int], float] = {}
        whole = len(self._sample)
        for size in self._sizes:
            pool = self._sample[:size]
            for length in LENGTHS:
                if size // length >= FEW_LISTS:
                    centroids = spherical_kmeans(pool, size // length, iterations=5)
                    ranks = [list_ranks(probes, pool[probes.exact], centroids) for probes in self._asked[size]]
                    found[size, length] = float(max(lists_for(rank, target)[0] for rank in ranks))
        few, many = ({n: found[size, n] for n in LENGTHS if (size, n) in found} for size in (whole // 4, whole))
        growths = [np.log(many[length] / few[length]) / np.log(4) for length in few if length in many]
        # A length's own growth hangs on a list or two, so all take the same.
        growth = float(np.clip(np.median(growths), 0.0, 0.8)) if growths else 0.5
        return [Reach(length, visited, whole, growth) for length, visited in many.items()]

    def rerank(self, kind: Kind, target: float, passages: int) -> int:
        """The least of ``kind.rerank`` with which its codes keep `target` of the neighbours among so many passages."""
        if len(kind.rerank) == 1 or not self._sizes:
            return kind.rerank[len(kind.rerank) // 2]
        depths = [max(lists_for(ranks, target)[0] for ranks in self._code_ranks(kind, size)) for size in self._sizes]
        growth = 0.5 if len(depths) == 1 else max(np.log(depths[1] / depths[0]) / np.log(4), 0.0)
        depth = depths[-1] * (passages / self._sizes[-1]) ** growth
        return next((rerank for rerank in kind.rerank if AT * rerank >= depth), kind.rerank[-1])

    def _code_ranks(self, kind: Kind, size: int) -> list[Ids]:
        """For each group of queries, where its exact neighbours stand among all passages by their codes, from 1."""
        faiss, pool = load_faiss(), self._sample[:size]
        centroids = spherical_kmeans(pool, FEW_LISTS, iterations=5)
        index = empty_index(faiss, kind, pool.shape[1], centroids, pool)
        add_to_lists(faiss, index, pool, np.ascontiguousarray(nearest_centroids(pool, centroids)[:, 0]))
        index.nprobe = FEW_LISTS
        deepest = min(AT * kind.rerank[-1], size)
        return [found_at(index.search(probes.queries, deepest)[1], probes.exact) for probes in self._asked[size]]


def found_at(found: Ids, exact: Ids) -> Ids:
    """Where each of `exact` [n, any] stands in its row of `found` [n, depth], from 1; depth + 1 for nowhere."""
    depth = found.shape[1]
    row = np.arange(len(exact))[:, None] * MOST_PASSAGES
    keys = (found + row).ravel()
    order = np.argsort(keys)
    at = np.searchsorted(keys, exact + row, sorter=order).clip(max=len(keys) - 1)
    return np.asarray(np.where(keys[order[at]] == exact + row, order[at] % depth + 1, depth + 1))


def _probes(queries: Vectors, pool: Vectors, device: str | None) -> Probes:
    _, ids = exact_search([pool.astype(np.float16)], queries, AT, device)
    return Probes(queries, np.full(len(queries), -1), ids)
