"""Histogram: how many values lie in each of some bins with round edges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

BINS = 20


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many values lie in each bin.

    Attributes:
        edges: float64 [bins + 1], ascending; a bin holds its lower edge, the last one both.
        counts: int64 [bins].
        beyond: how many values lie above the last edge.
        whole: whether the values are whole numbers.
    """

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    beyond: int = 0
    whole: bool = False

    @classmethod
    def of(cls, values: npt.NDArray[np.generic], highest: float | None = None, bins: int = BINS) -> Histogram:
        """At most about `bins` bins with round edges; what is above `highest` is only counted.

        Args:
            values: [n], n at least 1; of an integer type where they are whole.
        """
        whole = bool(np.issubdtype(values.dtype, np.integer))
        shown = np.asarray(values, dtype=np.float64)
        beyond = 0 if highest is None else int((shown > highest).sum())
        shown = shown if highest is None else shown[shown <= highest]
        low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, float(highest or 0))
        edges = round_edges(low, high, bins, whole)
        counts = np.histogram(np.clip(shown, edges[0], edges[-1]), edges)[0].astype(np.int64)
        return cls(edges, counts, beyond, whole)

    def labels(self) -> list[str]:
        """What each bin holds, in words: ``0.4 to 0.45``; ``10 to 19`` and ``3`` where values are whole."""
        if not self.whole:
            names = edge_names(self.edges)
            return [f"{low} to {high}" for low, high in pairwise(names)]
        pairs = zip(self.edges[:-1], self.edges[1:] - 1, strict=True)
        return [f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}" for low, high in pairs]


def round_edges(low: float, high: float, bins: int, whole: bool) -> npt.NDArray[np.float64]:
    """Edges of at most about `bins` equal bins from `low` to `high`, at round numbers; whole ones where asked for."""
    wanted = (high - low) / bins
    if wanted <= 1e-12 * max(abs(low), abs(high), 1e-30):  # all of one value
        wanted = 1.0 if whole else max(abs(low), 1e-6) / 10
    wanted = max(wanted, 1.0 if whole else 1e-7)
    unit = 10.0 ** np.floor(np.log10(wanted))
    step = next(m * unit for m in ((1, 2, 5, 10, 20) if whole else (1, 2, 2.5, 5, 10, 20)) if m * unit >= wanted)
    first = np.floor(low / step)
    last = np.floor(high / step) + 1 if whole else max(np.ceil(high / step), first + 1)
    decimals = 3 - int(np.floor(np.log10(step)))
    return np.asarray(np.round(step * np.arange(first, last + 1), decimals), dtype=np.float64)


def edge_names(edges: npt.NDArray[np.float64]) -> list[str]:
    """Numbers with as many decimals as all of them need, at most 6; past that as powers of ten."""
    slack = 1e-3 * float(np.diff(edges).min())
    for decimals in range(7):
        if np.allclose(np.round(edges, decimals), edges, rtol=0, atol=slack):
            return [f"{edge:,.{decimals}f}" for edge in edges]
    return [f"{edge:.4g}" for edge in edges]
