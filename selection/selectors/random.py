"""Random: passages drawn uniformly without replacement, the control for "any more data helps" (RAND-TAPT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from selection.drawing import draw
from selection.selectors import Pool
from selection.selectors.ranked import candidate_table


@dataclass
class RandomSelector:
    """See `selection.selectors.Selector`. With `k`, as many draws as kNN has candidates: k a task example."""

    name: ClassVar[str] = "random"
    text_alone: ClassVar[bool] = True

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        return candidate_table(draw(len(pool.corpus), pool.count(k, wanted), pool.seed))
