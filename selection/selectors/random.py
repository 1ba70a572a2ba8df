"""Random: passages drawn uniformly without replacement, the control for "any more data helps" (RAND-TAPT)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selection.selectors import CANDIDATES, Pool

SHUFFLE_ROWS = 20_000_000


class RandomSelector:
    """See `selection.selectors.Selector`. With `k`, as many draws as kNN has candidates: k a task example.

    Up to `SHUFFLE_ROWS` passages the draw is a prefix of one shuffle, so a larger budget holds the smaller one's
    passages; past that the shuffle would cost memory in step with the corpus, and only the draw itself is made.
    """

    name = "random"

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        size = len(pool.corpus)
        count = min(size, k * len(pool.task.train_texts) if k is not None else wanted)
        rng = np.random.default_rng(pool.seed)
        drawn = rng.permutation(size)[:count] if size <= SHUFFLE_ROWS else rng.choice(size, count, replace=False)
        columns = [
            pa.array(drawn.astype(np.int64)),
            pa.nulls(count, pa.float32()),
            pa.array(np.arange(1, count + 1, dtype=np.int32)),
            pa.array(np.full(count, -1, dtype=np.int32)),
            pa.array(np.zeros(count, dtype=np.int32)),
        ]
        return pa.table(columns, schema=CANDIDATES)
