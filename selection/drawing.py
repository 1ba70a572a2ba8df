"""Numbers drawn without replacement, in memory that goes by how many are drawn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHUFFLE_ROWS = 20_000_000
MANY = 10_000_000
FRUGAL, WORTH = 50, 8


def distinct(rng: np.random.Generator, size: int, count: int) -> npt.NDArray[np.int64]:
    """`count` of `size` numbers, int64, without replacement, in random order.

    As NumPy's `choice` draws, which fills memory with all `size` numbers, 8 bytes each, where more than a fiftieth of
    them are drawn. Of more than `MANY` numbers a fiftieth to an eighth is therefore drawn with repeats, and what came
    twice is made up for: some 30 bytes a number drawn.
    """
    if size <= MANY or not size // FRUGAL < count <= size // WORTH:
        return rng.choice(size, count, replace=False)
    drawn = np.empty(0, np.int64)
    while len(drawn) < count:
        # A little more than will do, as a rule; the surplus goes at random, so that none is preferred.
        more = int(1.1 * (count - len(drawn))) + 64
        drawn = np.unique(np.concatenate([drawn, rng.integers(size, size=more)]))
    rng.shuffle(drawn)
    return drawn[:count]


def draw(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` of `size` numbers, int64, without replacement, in random order.

    Up to `SHUFFLE_ROWS` the draw is a prefix of one shuffle, so a larger draw holds the smaller one; past that the
    shuffle would cost memory in step with the corpus, and only the draw itself is made, by `distinct`.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(size)[:count] if size <= SHUFFLE_ROWS else distinct(rng, size, count)
    return drawn.astype(np.int64)
