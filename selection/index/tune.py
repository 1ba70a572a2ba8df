"""How hard an index must look: chosen on some queries from a measured curve, checked on others.

The queries are passages of the corpus (their own row left out) and, where a task is named, its examples. For inverted
lists the curve needs no search: once the exact neighbours are known, a query finds those whose list is among the
`nprobe` lists nearest to it. What coarser codes lose is won back by scoring more candidates, measured by searching.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings
from selection.errors import NearkinError
from selection.index.blocks import AT, Blocks
from selection.index.exact import stream_search
from selection.index.kinds import Kind, Vectors
from selection.index.kmeans import nearest_centroids, rows_at_once
from selection.index.ranking import MOST_PASSAGES, Ids

PROBES = 512
DEPTHS = (10, 50, 200)
HARDER = 4


@dataclass(frozen=True)
class Probes:
    """Queries with their exact neighbours.

    Attributes:
        queries: float32 [n, dim].
        own: int64 [n], the doc_id of a query that is a passage, -1 for one that is not.
        exact: int64 [n, depth], neighbours other than `own`, best first; -1 where there are fewer.
    """

    queries: Vectors
    own: Ids
    exact: Ids

    def of(self, which: npt.NDArray[np.bool_]) -> Probes:
        return Probes(self.queries[which], self.own[which], self.exact[which])


def draw_probes(
    embeddings: Embeddings,
    extra: Vectors | None,
    tick: Callable[[int], object],
    device: str | None = None,
) -> Probes:
    """Up to `PROBES` passages, and of `extra` queries as many, in random order, with their exact neighbours.

    Args:
        device: where these are searched, see `selection.index.exact.stream_search`.
    """
    rng = np.random.default_rng(0)
    own = rng.choice(len(embeddings), min(PROBES, len(embeddings)), replace=False)
    queries = embeddings.take(own)
    if extra is not None:
        some = extra[rng.permutation(len(extra))[:PROBES]]
        queries = np.concatenate([queries, some])
        own = np.concatenate([own, np.full(len(some), -1)])
    order = rng.permutation(len(queries))
    queries, own = np.ascontiguousarray(queries[order]), own[order]
    _, found = stream_search(embeddings, queries, max(DEPTHS) + 1, device, tick)
    return Probes(queries, own, without(found, own, max(DEPTHS)))


def without(ids: Ids, own: Ids, count: int) -> Ids:
    """The first `count` of each row that are not the row's own, -1 where there are fewer."""
    last = np.argsort((ids == own[:, None]) | (ids < 0), axis=1, kind="stable")
    kept = np.take_along_axis(np.where(ids == own[:, None], -1, ids), last, axis=1)
    return kept[:, :count]


def recall_of(found: Ids, exact: Ids) -> tuple[float, float]:
    """(mean share of a row's exact neighbours that were found, its standard error)."""
    there = exact >= 0
    row = np.arange(len(exact))[:, None] * MOST_PASSAGES  # so that one look-up serves all rows
    hits = (np.isin(exact + row, (found + row)[found >= 0]) & there).sum(axis=1)
    shares = (hits / np.maximum(there.sum(axis=1), 1))[there.any(axis=1)]
    if len(shares) == 0:
        return 1.0, 0.0
    return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))


def list_ranks(probes: Probes, neighbours: Vectors, centroids: Vectors) -> npt.NDArray[np.int64]:
    """How many lists a query must visit to reach each of its neighbours: int64 [n, depth], counted from 1.

    Args:
        neighbours: float32 [n, depth, dim], the vectors of `probes.exact`.
    """
    n, depth, dim = neighbours.shape
    home = nearest_centroids(neighbours.reshape(-1, dim), centroids)[:, 0].reshape(n, depth)
    ranks, some = np.empty_like(home), rows_at_once(len(centroids)) // 4  # each holds its place among all lists
    for start in range(0, n, some):
        order = nearest_centroids(probes.queries[start : start + some], centroids, len(centroids))
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.broadcast_to(np.arange(1, len(centroids) + 1), order.shape), axis=1)
        ranks[start : start + some] = np.take_along_axis(rank, home[start : start + some], axis=1)
    return ranks


def lists_for(ranks: npt.NDArray[np.int64], target: float) -> tuple[int, list[tuple[int, float]]]:
    """The least nprobe whose recall is `target` with two standard errors to spare, and the curve (nprobe, recall)."""
    most = int(ranks.max())
    tries = np.unique(np.concatenate([np.geomspace(1, most, 60).astype(int), [most]]))
    shares = (ranks[:, :, None] <= tries).mean(axis=1)
    means, errors = shares.mean(axis=0), shares.std(axis=0) / np.sqrt(len(shares))
    enough = np.flatnonzero(means - 2 * errors >= target)
    chosen = int(tries[enough[0]]) if len(enough) else most
    return chosen, [(int(t), round(float(m), 4)) for t, m in zip(tries[::6], means[::6], strict=True)]


def tune(
    kind: Kind, blocks: Blocks, embeddings: Embeddings, probes: Probes, target: float, name: str
) -> dict[str, Any]:
    """Settings of a built index: ``effort`` by k, ``rerank``, and the recall found on queries held back.

    Raises:
        NearkinError: no setting reaches `target`.
    """
    groups = [g for g in (probes.of(probes.own >= 0), probes.of(probes.own < 0)) if len(g.queries)]
    fit, held = ([_half(group, half) for group in groups] for half in (0, 1))
    settings: dict[str, Any] = {"target": target, "probes": len(probes.queries)}
    if blocks.centroids is not None:
        lists = share_of_lists(kind, target)
        ranks = [_ranks(group, embeddings, blocks.centroids) for group in fit]
        settings["effort"] = {str(k): max(lists_for(r[:, :k], lists)[0] for r in ranks) for k in DEPTHS}
        settings["curve"] = lists_for(ranks[0][:, :AT], target)[1]
    else:
        settings["effort"] = {str(k): _search_effort(blocks, fit, k, target) for k in DEPTHS}
    settings["rerank"] = _rerank(kind, blocks, fit, settings, target, name)
    for _ in range(HARDER):
        begun = time.perf_counter()
        recall, error = min(_recall(blocks, group, AT, effort_for(settings, AT), settings["rerank"]) for group in held)
        settings["query_seconds"] = (time.perf_counter() - begun) / sum(len(group.queries) for group in held)
        settings |= {"k": AT, "recall": round(recall, 4), "recall_error": round(error, 4)}
        if recall + 2 * error >= target:
            return settings
        settings["effort"] = {k: -(-3 * effort // 2) for k, effort in settings["effort"].items()}
    raise _missed(kind, name, recall, target)


def share_of_lists(kind: Kind, target: float) -> float:
    """The recall that visiting lists must reach: where codes lose neighbours too, lists may lose half of the loss."""
    return target if kind.rerank == (1,) else (1 + target) / 2


def _half(group: Probes, half: int) -> Probes:
    """Every other one; all of a group of one."""
    return group if len(group.queries) < 2 else group.of((np.arange(len(group.queries)) + half) % 2 > 0)


def _missed(kind: Kind, name: str, recall: float, target: float) -> NearkinError:
    return NearkinError(
        f"{name}: {kind.name} finds {recall:.1%} of the exact neighbours again and {target:.0%} are asked for: "
        "choose another --kind, or allow less with --min-recall"
    )


def _ranks(probes: Probes, embeddings: Embeddings, centroids: Vectors) -> npt.NDArray[np.int64]:
    whole = (probes.exact >= 0).all(axis=1)
    exact = probes.exact[whole] if whole.any() else np.maximum(probes.exact, 0)
    vectors = embeddings.take(exact.reshape(-1)).reshape(*exact.shape, embeddings.dim)
    some = probes.of(np.asarray(whole)) if whole.any() else probes
    return list_ranks(some, vectors, centroids)


def effort_for(settings: dict[str, Any], k: int) -> int:
    """The effort tuned for the least depth that covers `k`, else for the greatest."""
    tuned = sorted((int(depth), effort) for depth, effort in settings["effort"].items())
    return int(next((effort for depth, effort in tuned if depth >= k), tuned[-1][1]))


def _recall(blocks: Blocks, probes: Probes, k: int, effort: int, rerank: int) -> tuple[float, float]:
    _, found = blocks.search(probes.queries, k + 1, effort, rerank)
    return recall_of(without(found, probes.own, k), probes.exact[:, :k])


def _search_effort(blocks: Blocks, fit: list[Probes], k: int, target: float) -> int:
    effort = 16
    while True:
        found = [_recall(blocks, group, k, effort, 1) for group in fit]
        if all(recall - 2 * error >= target for recall, error in found) or effort >= 4096:
            return effort
        effort *= 2


def _rerank(kind: Kind, blocks: Blocks, fit: list[Probes], settings: dict[str, Any], target: float, name: str) -> int:
    best = 0.0
    for rerank in kind.rerank:
        found = [_recall(blocks, group, AT, effort_for(settings, AT), rerank) for group in fit]
        best = max(best, min(recall for recall, _ in found))
        if all(recall - error >= target for recall, error in found):
            return rerank
    raise _missed(kind, name, best, target)
