"""How unlike each other passages are, from their embeddings, without ever forming the matrix of their cosines."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def diversity(blocks: Iterable[npt.NDArray[np.floating]]) -> tuple[float, float]:
    """(mean cosine of two different passages, Vendi score).

    The mean follows from the sum of the unit vectors. The Vendi score (Friedman and Dieng 2023), the exponential of the
    entropy of the eigenvalues of the cosine matrix over n, is how many passages unlike each other would be as diverse;
    that matrix has the eigenvalues of the dim x dim matrix formed here, so the cost is n dim^2 and the memory dim^2.

    Args:
        blocks: float [any, dim] each; vectors are scaled to unit length.
    """
    total, products, count = np.zeros(1), np.zeros((1, 1)), 0
    for block in blocks:
        vectors = np.asarray(block, dtype=np.float32)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        total = total + vectors.sum(axis=0, dtype=np.float64)
        products = products + (vectors.T @ vectors).astype(np.float64)
        count += len(vectors)
    if count == 0:
        return float("nan"), float("nan")
    shares = np.linalg.eigvalsh(products / count)
    shares = shares[shares > 1e-12]
    shares = shares / shares.sum()
    mean = (total @ total - count) / (count * (count - 1)) if count > 1 else 1.0
    return float(mean), float(np.exp(-(shares * np.log(shares)).sum()))
