"""Numbers drawn without replacement: each once, none preferred, in memory that goes by how many."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from selection import drawing
from selection.drawing import distinct, draw


@pytest.mark.parametrize("count", [1, 500, 1000, 100_000])
def test_up_to_ten_million_the_draw_is_numpys_own(count: int) -> None:
    mine = distinct(np.random.default_rng(3), 100_000, count)
    np.testing.assert_array_equal(mine, np.random.default_rng(3).choice(100_000, count, replace=False))


def test_of_very_many_some_are_drawn_in_memory_of_their_own() -> None:
    size, count = 24_000_000, 500_000
    tracemalloc.start()
    found = draw(size, count, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * count  # an eighth of what all numbers take
    assert len(np.unique(found)) == len(found) == count
    assert found.min() >= 0
    assert found.max() < size
    np.testing.assert_array_equal(draw(size, count, 5), found)
    assert abs(np.corrcoef(found, np.arange(count))[0, 1]) < 0.01  # in random order
    np.testing.assert_allclose(np.bincount(found * 8 // size) / count, 1 / 8, atol=0.003)


def test_each_number_is_drawn_as_often_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MANY", 10)
    rng = np.random.default_rng(0)
    times = np.bincount(np.concatenate([distinct(rng, 80, 10) for _ in range(4000)]), minlength=80)
    assert times.sum() == 40_000
    assert abs(times - 500).max() < 5 * np.sqrt(500)
