"""Runs: consecutive items, cut where together they would be too large."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def runs(sizes: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of items of at most `most` in all, or of a single item that is larger.

    Args:
        sizes: int64 [n].
    """
    ends, start = np.cumsum(sizes), 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + most, "right")), start + 1)
        yield start, stop
        start = stop
