"""Cluster: weights as their definition says, shares as the task's, the store's own centroids."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.embedding import Embeddings
from selection.errors import NearkinError, StoreError
from selection.index.blocks import Blocks
from selection.index.kmeans import nearest_centroids
from selection.index.search import find_index
from selection.indexing import index
from selection.selectors import CANDIDATES
from selection.selectors.cluster import STEP, UNVISITED, ClusterSelector, centroids_for, cluster_weights, in_turn
from selection.selectors.pool import Pool
from selection.store import Store
from selection.task import read_task


@pytest.fixture
def pool(built: Path, task_folder: Path) -> Pool:
    return Pool(Store(built), read_task(task_folder))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 40))
def test_weights_are_ratios_and_unvisited_clusters_stand_by_distance(seed: int, clusters: int, queries: int) -> None:
    rng = np.random.default_rng(seed)
    centroids, task = (rng.normal(size=(n, 5)).astype(np.float32) for n in (clusters, queries))
    sizes = rng.integers(0, 50, clusters) + (np.arange(clusters) == 0)
    weights = cluster_weights(task, centroids, sizes)
    of_task = nearest_centroids(task, centroids, number="float32")[:, 0].tolist()
    visited = {c for c in of_task if sizes[c] > 0}
    for c in visited:
        assert weights[c] == pytest.approx(np.log(of_task.count(c) / queries / (sizes[c] / sizes.sum())))
    rest = sorted(set(range(clusters)) - visited, key=lambda c: -weights[c])
    near = [(task @ centroids[c]).max() for c in rest]
    assert all(a >= b - 1e-5 for a, b in pairwise(near))
    assert max((weights[c] for c in rest), default=-2000) < -1000


def test_shares_of_clusters_are_the_tasks(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    centroids = centroids_for(pool, pool.embeddings, 6)
    monkeypatch.setattr("selection.selectors.cluster.centroids_for", lambda *_: centroids)
    vectors = np.concatenate(list(pool.embeddings)).astype(np.float32)
    which = nearest_centroids(vectors, centroids, number="float32")[:, 0]
    sizes = np.bincount(which, minlength=6)
    task = np.zeros(6)
    task[np.argsort(-sizes)[:3]] = 0.3, 0.2, 0.5
    examples = [vectors[which == c][: round(20 * task[c])] for c in range(6)]
    pool.__dict__["queries"] = np.concatenate(examples)
    drawn = []
    for seed in range(400):
        pool.seed = seed
        drawn.append(ClusterSelector().candidates(pool, None, 5)["doc_id"].to_numpy())
    shares = np.bincount(which[np.concatenate(drawn)], minlength=6) / 2000
    np.testing.assert_allclose(shares, task, atol=0.04)
    within = Counter(np.concatenate(drawn)[which[np.concatenate(drawn)] == task.argmax()].tolist())
    assert max(within.values()) < 60  # of 30 on average: no passage is preferred within a cluster


def test_the_sample_is_of_so_many_shards_at_most(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, sample = [], Embeddings.sample
    monkeypatch.setattr(
        Embeddings, "sample", lambda self, n, shards, seed: asked.append(shards) or sample(self, n, shards, seed)
    )
    centroids_for(pool, pool.embeddings, 6)
    assert asked == [4096]


@pytest.mark.parametrize("budget", [20, 100, 200, 420])
def test_shares_hold_until_a_cluster_is_used_up(budget: int) -> None:
    """Clusters of 400, 100 and 60 passages of which the task is in the first two: 100 of the second end at 200."""
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.repeat(np.arange(3, dtype=np.int32), [400, 100, 60]))
    weights = np.log([0.5 / (400 / 560), 0.5 / (100 / 560), 1])
    weights[2] = UNVISITED - STEP
    turns = in_turn(clusters, weights, np.random.default_rng(1))
    chosen = clusters[np.argsort(-turns, kind="stable")[:budget]]
    second = min(budget / 2, 100)
    np.testing.assert_allclose(np.bincount(chosen, minlength=3), [budget - second, second, 0], atol=1)
    assert len(set(turns.tolist())) == 560


def test_small_clusters_have_their_share_of_small_sets() -> None:
    """Fifty clusters with one example each, one with fifty: half of ten passages are of the fifty, on average."""
    clusters = np.repeat(np.arange(51, dtype=np.int32), 30)
    weights = np.log(np.append(np.full(50, 0.01), 0.5) * 51)
    large = []
    for seed in range(200):
        turns = in_turn(clusters, weights, np.random.default_rng(seed))
        large.append(np.count_nonzero(clusters[np.argsort(-turns)[:10]] == 50))
    assert np.mean(large) == pytest.approx(5, abs=0.3)


def test_everything_is_ranked_and_repeats_itself(pool: Pool) -> None:
    selector = ClusterSelector()
    few, every = selector.candidates(pool, None, 30), selector.candidates(pool, None, 600)
    assert every.schema.equals(CANDIDATES)
    assert few.equals(every.slice(0, 30))
    assert ClusterSelector().candidates(pool, None, 600).equals(every)
    assert sorted(every["doc_id"].to_pylist()) == list(range(600))
    scores = every["score"].to_numpy()
    unvisited = scores < -1000
    assert 0 < unvisited.sum() < 600
    assert (np.diff(unvisited.astype(int)) >= 0).all()  # all of them last
    assert (np.diff(scores[unvisited]) <= 0).all()  # cluster by cluster
    assert len(set(scores[unvisited].tolist())) < unvisited.sum()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert ClusterSelector().candidates(pool, None, 600).equals(every)
    finally:
        torch.set_num_threads(before)
    pool.seed = 1
    assert ClusterSelector(16).candidates(pool, None, 30)["doc_id"].to_pylist() != few["doc_id"].to_pylist()


def test_what_format_is_fastest_decides_nothing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = []
    for number in ("float32", "bfloat16"):
        monkeypatch.setattr("selection.index.kmeans.fastest_number", lambda device, number=number: number)
        sets.append(ClusterSelector().candidates(pool, None, 600))
    assert sets[0].equals(sets[1])


def test_centroids_of_the_index_are_used_where_it_has_some(store: Path, task_folder: Path) -> None:
    own = centroids_for(Pool(Store(store), read_task(task_folder)), Pool(Store(store), None).embeddings, None)  # type: ignore[arg-type]
    assert own.shape == (48, 32)
    index(store, "ivf")
    pool = Pool(Store(store), read_task(task_folder))
    found = centroids_for(pool, pool.embeddings, None)
    stored = Blocks(pool.store, find_index(pool.store, pool.slug), pool.embeddings).centroids
    np.testing.assert_array_equal(found, stored)
    assert centroids_for(pool, pool.embeddings, 7).shape == (7, 32)
    pool.index = "stream"
    np.testing.assert_array_equal(centroids_for(pool, pool.embeddings, None), own)
    pool.index = None
    index(store, "stream")  # the one in use from now on: inverted lists beside it decide nothing
    pool = Pool(Store(store), read_task(task_folder))
    np.testing.assert_array_equal(centroids_for(pool, pool.embeddings, None), own)
    pool.index = "ivf"
    np.testing.assert_array_equal(centroids_for(pool, pool.embeddings, None), stored)
    next(iter(pool.store.manifest.indexes.values())).embeddings = "of older passages"
    with pytest.raises(StoreError, match="ivf index of tiny-encoder is older than its embeddings"):
        centroids_for(pool, pool.embeddings, None)
    pool.index = None
    np.testing.assert_array_equal(centroids_for(pool, pool.embeddings, None), own)


def test_numbers_of_clusters_that_cannot_be(pool: Pool) -> None:
    for clusters in (0, -3, 601):
        with pytest.raises(NearkinError, match="from 1 to the 600 passages"):
            ClusterSelector(clusters).candidates(pool, None, 5)
    assert len(ClusterSelector(600).candidates(pool, None, 5)) == 5
    assert len(ClusterSelector(1).candidates(pool, 2, 5)) == 80
    pool.__dict__["_resolved"] = (pool.slug, True)
    with pytest.raises(StoreError, match="cascade has no full embeddings"):
        ClusterSelector().candidates(pool, None, 5)
