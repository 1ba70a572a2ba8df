"""Random: passages drawn uniformly without replacement, the control for "any more data helps" (RAND-TAPT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.index.drawing import distinct
from selection.selectors import Pool
from selection.selectors.ranked import candidate_table

SHUFFLE_ROWS = 20_000_000


def draw(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` of `size` numbers, int64, without replacement, in random order.

    Up to `SHUFFLE_ROWS` the draw is a prefix of one shuffle, so a larger draw holds the smaller one; past that the
    shuffle would cost memory in step with the corpus, and only the draw itself is made, by `distinct`.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(size)[:count] if size <= SHUFFLE_ROWS else distinct(rng, size, count)
    return drawn.astype(np.int64)


@dataclass
class RandomSelector:
    """See `selection.selectors.Selector`. With `k`, as many draws as kNN has candidates: k a task example."""

    name: ClassVar[str] = "random"
    text_alone: ClassVar[bool] = True

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        return candidate_table(draw(len(pool.corpus), pool.count(k, wanted), pool.seed))
