"""The order in which rows are trained on: by (seed, epoch) alone.

A masked LM's batches hold pieces of like length, which need little padding. A classifier's are drawn at random, as in
the plain way, since of few examples a class may have one length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from adaptation.masking import Epoch, generator

BLOCK = 65_536
STRETCH = 50


class Order(Sampler[int], ABC):
    """Row numbers of an epoch; the base of those below.

    Args:
        lengths: tokens of every piece.
        batch_size: pieces an optimiser step takes, over all processes.
        seed: draws the order, together with the epoch.
        epoch: shared counter.
    """

    def __init__(self, lengths: np.ndarray[Any, Any], batch_size: int, seed: int, epoch: Epoch) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rows = self.rows()
        blocks = (rows[start : start + BLOCK].tolist() for start in range(0, len(rows), BLOCK))
        return chain.from_iterable(blocks)  # Trainer asks a sampler for Python numbers

    @abstractmethod
    def rows(self) -> npt.NDArray[np.int64]:
        """All row numbers in the order of this epoch, int64 [rows]."""


class LengthGroupedBatches(Order):
    """Row numbers in random order with pieces of like length side by side, so that little is padding.

    Stretches of `STRETCH` batches are sorted from long to short, as transformers' grouping does; the batches are
    shuffled again here, so that no epoch walks from long texts to short ones. The longest batch stays first: what does
    not fit in memory fails at once.
    """

    def rows(self) -> npt.NDArray[np.int64]:
        draws = generator(self._seed, self._epoch.number)
        rows = length_grouped(self._lengths, self._batch_size, draws)
        whole = len(rows) // self._batch_size
        if whole > 2:
            middle = 1 + torch.randperm(whole - 1, generator=draws).numpy()
            batches = rows[: whole * self._batch_size].reshape(whole, self._batch_size)
            rows = np.concatenate([batches[0], batches[middle].ravel(), rows[whole * self._batch_size :]])
        return rows


def length_grouped(lengths: np.ndarray[Any, Any], batch_size: int, draws: torch.Generator) -> npt.NDArray[np.int64]:
    """What transformers' `get_length_grouped_indices` gives, by arrays: int64 [rows]."""
    rows = torch.randperm(len(lengths), generator=draws).numpy()
    size = batch_size * max(min(len(rows) // (batch_size * 4), STRETCH), 1)
    for start in range(0, len(rows), size):
        stretch = rows[start : start + size]
        stretch[:] = stretch[np.argsort(-lengths[stretch], kind="stable")]
    firsts = np.arange(0, len(rows), size)
    longest = firsts[int(np.argmax(lengths[rows[firsts]]))]
    rows[[0, longest]] = rows[[longest, 0]]
    return rows


class ShuffledBatches(Order):
    """Row numbers in random order."""

    def rows(self) -> npt.NDArray[np.int64]:
        rows: npt.NDArray[np.int64] = torch.randperm(
            len(self._lengths), generator=generator(self._seed, self._epoch.number)
        ).numpy()
        return rows
