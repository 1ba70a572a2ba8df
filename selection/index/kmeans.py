"""Spherical k-means and nearest centroids, by matrix products in the device's fastest number format.

FAISS has both; on a CPU with bfloat16 these are several times faster, since a centroid need not be exact: whichever
list a passage goes to, the recall of the index is measured afterwards. Which format is fastest a trial says, so what
must be the same on every run names its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from selection.index.exact import fastest_number

ROWS, LEAST_ROWS = 4096, 64
SCORE_BYTES = 64 << 20
ITERATIONS = 10

Vectors = npt.NDArray[np.float32]


def rows_at_once(lists: int) -> int:
    """How many vectors are held against so many centroids at once: those whose float32 scores take `SCORE_BYTES`."""
    return max(LEAST_ROWS, min(ROWS, SCORE_BYTES // (4 * max(lists, 1))))


def nearest_centroids(
    vectors: npt.NDArray[np.floating], centroids: Vectors, count: int = 1, number: str | None = None
) -> npt.NDArray[np.int64]:
    """The `count` centroids of largest inner product with each vector, best first: int64 [n, count].

    Memory is that of `rows_at_once` vectors' scores, and four times as much where all centroids are put in order.

    Args:
        number: the format of the products, as torch names it; None finds one centroid in the fastest, and several in
            float32, since a coarser format would tie too many.
    """
    import torch

    rows = rows_at_once(len(centroids))
    kind = getattr(torch, number or (fastest_number("cpu") if count == 1 else "float32"))
    out = np.empty((len(vectors), count), dtype=np.int64)
    with torch.inference_mode():
        right = torch.from_numpy(np.ascontiguousarray(centroids)).to(kind).T
        for start in range(0, len(vectors), rows):
            part = np.require(vectors[start : start + rows], None, ["C", "W"])  # a mapped file is read-only
            scores = torch.from_numpy(part).to(kind) @ right
            # max, since argmax is slow in bfloat16
            best = scores.max(dim=1, keepdim=True).indices if count == 1 else scores.topk(count, dim=1).indices
            out[start : start + rows] = best.numpy()
    return out


def spherical_kmeans(
    points: Vectors, lists: int, seed: int = 0, iterations: int = ITERATIONS, number: str | None = None
) -> Vectors:
    """Unit centroids float32 [lists, dim] of unit points [n, dim], n at least `lists`; empty ones take far points.

    Args:
        number: the format of the products, as `nearest_centroids` has it.
    """
    import torch

    rng, values = np.random.default_rng(seed), torch.from_numpy(np.ascontiguousarray(points))
    centroids = points[np.sort(rng.choice(len(points), lists, replace=False))]
    for _ in range(iterations):
        which = nearest_centroids(points, centroids, number=number)[:, 0]
        counts = np.bincount(which, minlength=lists)
        order, starts = (
            torch.from_numpy(rows) for rows in (np.argsort(which, kind="stable"), counts.cumsum() - counts)
        )
        sums = torch.nn.functional.embedding_bag(order, values, starts, mode="sum").numpy()
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            parts = [slice(start, start + ROWS) for start in range(0, len(points), ROWS)]
            fit = np.concatenate([np.einsum("ij,ij->i", points[part], centroids[which[part]]) for part in parts])
            sums[empty] = points[np.argsort(fit, kind="stable")[: len(empty)]]
        centroids = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(centroids, dtype=np.float32)
