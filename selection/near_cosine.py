"""Near-duplicates and leaks in meaning: passages whose embedding is too near that of another text.

What `selection.near` does by runs of words: against forbidden texts (leaks), and better-ranked candidates (copies). It
sees a short text that was reworded, but not a sentence inside a longer passage, which runs of words find.

Cosines come from matrix products in the device's fastest number format; those near the limit are computed again in
float32 by one routine, so that a decision depends neither on the format nor on blocks or threads.

Cost: a product of each vector with every one kept or forbidden. Memory: 4 bytes a dimension of each of those where they
come as float16, 6 where they come as float32 (2 more where float32 products are the fastest), and some 50 MB for a
block and its scores. Nothing grows with the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.devices import search_devices
from selection.errors import NearkinError
from selection.index.exact import as_tensor, fastest_number, pair_scores
from selection.near import NONE, Copies, Leaks, Mask, Order, Positions

COSINE = 0.95
BLOCK_ROWS = 1024
TILE_ROWS = 4096
# How far a product of unit vectors may be off. bfloat16 rounds the numbers of both by up to 2**-8 of each, which makes
# 0.008; product and limit, below 1, by 2**-9 each, which makes 0.004 where only one of them is rounded at all, and
# float16 an eighth of that. Sums are off by less than 0.0002.
MARGIN = 0.012

Vectors = npt.NDArray[np.floating]
Pairs = tuple[Positions, Positions, npt.NDArray[np.float32]]


class CosineDuplicates:
    """Keeps, in rank order, each candidate whose cosine with all kept before is below `limit`; the others are copies.

    Cost: a product of every vector with every one kept. Memory: 4 bytes a dimension of each one kept (2 more where
    they come as float32, 2 more where float32 products are the fastest).

    Args:
        limit: of the cosine.
        device: where products are formed; None is the first CUDA GPU, else the CPU.
    """

    def __init__(self, limit: float = COSINE, device: str | None = None) -> None:
        self.limit = limit
        self._kept = _Tiles(device)
        self._positions = np.empty(0, np.int64)
        self._count = 0

    def find(self, vectors: Vectors, allowed: Mask) -> Copies:
        """Which of the next candidates are near copies; the original told is the first kept one that is near enough.

        Args:
            vectors: float16 or float32 [n, dim], in rank order.
            allowed: bool [n]; the others are neither compared nor kept.

        Raises:
            NearkinError: vectors that are not finite.
        """
        import torch

        found = Copies.none(len(vectors))
        with torch.inference_mode():
            for start in range(0, len(vectors), BLOCK_ROWS):
                rows = np.flatnonzero(allowed[start : start + BLOCK_ROWS]) + start
                block = self._kept.measure(vectors[rows])
                _tell(found, rows, self._positions, self._kept.near(block, self.limit))
                left = np.flatnonzero(~found.mask[rows])
                block, rows = block.take(left), rows[left]
                _tell(found, rows, rows + self._count, _greedy(block.near(block, self.limit), len(rows)))
                kept = np.flatnonzero(~found.mask[rows])
                self._kept.add(block.take(kept))
                self._positions = np.concatenate([self._positions, rows[kept] + self._count])
        self._count += len(vectors)
        return found


class CosineLeaks:
    """Finds passages whose cosine with a forbidden text is at least `limit`.

    Args:
        forbidden: vectors float16 or float32 [any, dim] by reason.
        limit, device: as for `CosineDuplicates`.

    Raises:
        NearkinError: vectors that are not finite.
    """

    def __init__(self, forbidden: Mapping[str, Vectors], limit: float = COSINE, device: str | None = None) -> None:
        import torch

        self.limit = limit
        self._order = Order({reason: len(vectors) for reason, vectors in forbidden.items()})
        self._tiles = _Tiles(device)
        with torch.inference_mode():
            for reason in self._order.reasons:
                for start in range(0, len(forbidden[reason]), TILE_ROWS):
                    self._tiles.add(self._tiles.measure(forbidden[reason][start : start + TILE_ROWS]))

    def find(self, vectors: Vectors) -> Leaks:
        """Which of these vectors (float16 or float32 [n, dim]) are too near; raises as `CosineDuplicates.find`."""
        import torch

        first = np.full(len(vectors), NONE)
        with torch.inference_mode():
            for start in range(0, len(vectors), BLOCK_ROWS):
                block = self._tiles.measure(vectors[start : start + BLOCK_ROWS])
                row, number, _ = self._tiles.near(block, self.limit)
                np.minimum.at(first, row + start, number)
        return self._order.leaks(first)


def _greedy(pairs: Pairs, rows: int) -> Pairs:
    """Of near pairs among the same rows, those of a row with an earlier one that is kept; a row without one is kept."""
    later, earlier, cosine = pairs
    order = np.lexsort((earlier, later))
    order = order[earlier[order] < later[order]]
    later, earlier, cosine = later[order], earlier[order], cosine[order]
    copies, counts = np.zeros(rows, dtype=bool), np.zeros(len(later), dtype=bool)
    bounds = np.searchsorted(later, np.arange(rows + 1))
    for row in np.unique(later):
        group = slice(bounds[row], bounds[row + 1])
        counts[group] = ~copies[earlier[group]]
        copies[row] = counts[group].any()
    return later[counts], earlier[counts], cosine[counts]


def _tell(found: Copies, rows: Positions, positions: Positions, pairs: Pairs) -> None:
    """Enters pairs of (copy, as a place in `rows`; original, as one in `positions`): of several the first original."""
    later, earlier, cosine = pairs
    order = np.lexsort((earlier, later))
    copies, first = np.unique(later[order], return_index=True)
    pick = order[first]
    found.mask[rows[copies]] = True
    found.of[rows[copies]], found.likeness[rows[copies]] = positions[earlier[pick]], cosine[pick]


@dataclass(frozen=True)
class _Measured:
    """Vectors on a device: `stored` as they came, `squares` of their lengths, `unit` of length 1 in a fast format."""

    stored: Any
    squares: Any
    unit: Any

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, rows: npt.NDArray[np.intp]) -> _Measured:
        import torch

        where = torch.from_numpy(rows).to(self.stored.device)
        return _Measured(self.stored[where], self.squares[where], self.unit[where])

    def then(self, other: _Measured) -> _Measured:
        import torch

        pairs = [(self.stored, other.stored), (self.squares, other.squares), (self.unit, other.unit)]
        return _Measured(*(torch.cat(pair) for pair in pairs))

    def near(self, others: _Measured, limit: float) -> Pairs:
        """Pairs whose cosine is at least `limit`: (row here, row of the others, cosine)."""
        import torch

        scores = torch.mm(self.unit, others.unit.T)
        rows = torch.arange(len(self), device=scores.device)
        if scores.numel():
            rows = rows[scores.amax(dim=1) >= limit - MARGIN]
        at, right = (scores[rows] >= limit - MARGIN).nonzero(as_tuple=True)
        cosine = pair_scores(others.stored, self.stored[rows].float(), right, at)
        cosine /= (self.squares[rows[at]] * others.squares[right]).sqrt()
        good = cosine >= limit
        return rows[at][good].cpu().numpy(), right[good].cpu().numpy(), cosine[good].cpu().numpy()


class _Tiles:
    """Vectors that others are compared with, at most `TILE_ROWS` in one product."""

    def __init__(self, device: str | None) -> None:
        import torch

        self._device = torch.device(search_devices(device)[0])
        self._kind = getattr(torch, fastest_number(str(self._device)))
        self._tiles: list[_Measured] = []

    def measure(self, vectors: Vectors) -> _Measured:
        """Brings vectors to the device; raises NearkinError where they are not finite."""
        import torch

        stored = as_tensor(np.ascontiguousarray(vectors)).to(self._device)
        full, every = stored.float(), torch.arange(len(stored), device=self._device)
        squares = pair_scores(stored, full, every, every)
        if not torch.isfinite(squares).all():
            raise NearkinError("a vector holds numbers that are not finite: build the embeddings anew")
        length = squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        return _Measured(stored, squares, (full / length[:, None]).to(self._kind))

    def add(self, rows: _Measured) -> None:
        """Keeps these as well, at most `TILE_ROWS` at a time."""
        if self._tiles and len(self._tiles[-1]) + len(rows) <= TILE_ROWS:
            self._tiles[-1] = self._tiles[-1].then(rows)
        else:
            self._tiles.append(rows)

    def near(self, block: _Measured, limit: float) -> Pairs:
        """Pairs of the block and of all that is kept, as `_Measured.near`."""
        parts: list[Pairs] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        first = 0
        for tile in self._tiles:
            row, number, cosine = block.near(tile, limit)
            parts.append((row, number + first, cosine))
            first += len(tile)
        later, earlier, likeness = (np.concatenate(column) for column in zip(*parts, strict=True))
        return later, earlier, likeness
