"""Batches by tokens, not by rows: a length sort, then as many rows as a budget holds, none padded by much.

With a fixed number of rows a batch of short texts is too little work for the machine and one of long texts leaves its
cache; and rows of unequal length compute padding. Both are settled once a window, by arithmetic on the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selection.tokens import Ragged

MAX_PADDING = 0.04
STEPS = 32


@dataclass(frozen=True)
class Batch:
    """Rows of a window that are encoded together.

    Attributes:
        rows: int64 [b], their places in the window.
        ids: int64 [b, width], padded.
        mask: int64 [b, width], 1 where a token is.
    """

    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]


def widths_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each length rounded up, by at most one part in `STEPS`, so that an engine meets few shapes; int64 [n]."""
    step = 2 ** np.maximum(np.floor(np.log2(np.maximum(lengths, 1) / STEPS)), 0).astype(np.int64)
    return -(-lengths // step) * step


def plan_batches(lengths: npt.NDArray[np.int64], budget: int) -> list[tuple[npt.NDArray[np.int64], int]]:
    """(rows int64 [b], width) of each batch, longest first, so that what does not fit memory fails at once.

    A batch holds at most `budget` tokens, padding included (or one row); at most about `MAX_PADDING` of it is padding.
    """
    order = np.argsort(-lengths, kind="stable")
    widths = widths_of(lengths[order])
    batches, start = [], 0
    while start < len(order):
        width = int(widths[start])
        stop = start + max(budget // max(width, 1), 1)
        # Rows this short would be padded too much: they open the next batch.
        stop = min(stop, int(np.searchsorted(-widths, -width * (1 - 2 * MAX_PADDING), side="right")))
        batches.append((order[start:stop], width))
        start = stop
    return batches


def batches(inputs: Ragged, budget: int, pad: int) -> Iterator[Batch]:
    """The batches of a window, with `pad` after the shorter rows."""
    lengths = inputs.lengths
    for rows, width in plan_batches(lengths, budget):
        ids = np.full((len(rows), width), pad, dtype=np.int64)
        inside = np.arange(width) < lengths[rows, None]
        ids[inside] = inputs.take(rows).values
        yield Batch(rows, ids, inside.astype(np.int64))
