"""How far one encoder's neighbours are another's: the figure that a cheaper encoder is judged by.

Exact and all against all, so it is for some thousands of passages: time grows with their square, memory does not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 1024
RECALL_AT = 50
MIN_RECALL = 0.95  # what is promised where nothing else is asked for, by encoders, indexes and cascades alike


def worth(student: npt.NDArray[np.float32], teacher: npt.NDArray[np.float32]) -> dict[str, float | int]:
    """What the store's manifest keeps of a fitted encoder: ``recall`` of so many ``neighbours``, mean ``cosine``.

    Args:
        student, teacher: float32 [n, dim], unit rows, of ``passages`` that it was not fitted to.
    """
    return {
        "recall": round(neighbour_recall(student, teacher, RECALL_AT), 4),
        "neighbours": RECALL_AT,
        "cosine": round(float((student * teacher).sum(axis=1).mean()), 5),
        "passages": len(student),
    }


def told(found: dict[str, float | int]) -> str:
    """The same for a person."""
    return "recall@{neighbours} {recall:.3f}, cosine {cosine:.4f} over {passages:,} passages".format(**found)


def neighbour_recall(student: npt.NDArray[np.float32], teacher: npt.NDArray[np.float32], k: int) -> float:
    """The share of each passage's k nearest by `teacher` that are among its k nearest by `student`, on average.

    Nearness is the inner product, and a passage is not its own neighbour. Which of several equally near passages count
    is not defined.

    Args:
        student: float32 [n, d], unit norm.
        teacher: float32 [n, e], unit norm, the same passages in the same order.
        k: how many neighbours; n - 1 at most are compared. With k = n - 1 all lists are equal and the answer is 1.

    Returns:
        Between 0 and 1. Vectors without relation have about k / (n - 1). NaN where there is nothing to compare.
    """
    k = min(k, len(teacher) - 1)
    if k < 1:
        return float("nan")
    found = 0
    for start in range(0, len(teacher), BLOCK):
        both = np.concatenate([_nearest(vectors, start, k) for vectors in (student, teacher)], axis=1)
        both.sort(axis=1)
        found += int((both[:, 1:] == both[:, :-1]).sum())
    return found / (len(teacher) * k)


def _nearest(vectors: npt.NDArray[np.float32], start: int, k: int) -> npt.NDArray[np.int64]:
    """int64 [rows of the block, k], unsorted."""
    scores = vectors[start : start + BLOCK] @ vectors.T
    rows = np.arange(len(scores))
    scores[rows, start + rows] = -np.inf
    return np.argpartition(scores, -k, axis=1)[:, -k:]
