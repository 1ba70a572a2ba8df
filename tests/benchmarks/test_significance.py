from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_rel

from benchmarks.significance import gain


def scores(values):
    return {"t": dict(enumerate(values))}


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8))
def test_one_task_is_scipys_exact_permutation_test(pairs) -> None:
    # Rounded, so that no two sums differ by rounding alone.
    ours, others = (np.round(column, 2) for column in zip(*pairs, strict=True))
    found = gain(scores(ours), scores(others))
    expected = permutation_test(
        (ours, others), lambda a, b, axis: np.round(np.mean(a - b, axis=axis), 6), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    )  # fmt: skip
    assert found is not None
    assert found.mean == pytest.approx(np.mean(ours - others))
    assert found.p == pytest.approx(min(expected.pvalue, 1), abs=1e-6)


def test_tasks_weigh_alike_and_only_common_seeds_count() -> None:
    arm = {"a": {0: 10.0, 1: 12.0, 2: 14.0}, "b": {0: 50.0, 5: 1.0}, "c": {0: 1.0}}
    other = {"a": {0: 9.0, 1: 10.0, 2: 11.0}, "b": {0: 40.0, 6: 1.0}}
    found = gain(arm, other)
    assert found is not None
    assert (found.mean, found.pairs, found.tasks) == (pytest.approx((2 + 10) / 2), 4, 2)
    assert found.p == pytest.approx(2 / 16)
    assert found.low is found.high is None  # b and its one seed have no spread to draw from
    both = gain(arm | {"b": {0: 50.0, 6: 3.0}}, other)
    assert both is not None
    assert both.low is not None
    assert both.high is not None
    assert both.low < both.mean < both.high
    assert gain({"a": {0: 1.0}}, {"b": {0: 1.0}}) is None


def test_many_pairs_are_drawn_and_say_what_the_exact_test_says() -> None:
    draws = np.random.default_rng(1)
    ours, others = draws.normal(1.0, 2, 30), draws.normal(0, 2, 30)
    found = gain(scores(ours), scores(others))
    assert found is not None
    expected = permutation_test(
        (ours, others), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=2,
    )  # fmt: skip
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    assert gain(scores(ours), scores(others)) == found


def test_no_difference_is_no_evidence() -> None:
    found = gain(scores([5.0, 5.0, 6.0]), scores([5.0, 5.0, 6.0]))
    assert found is not None
    assert (found.mean, found.p) == (0.0, 1.0)
    assert found.low is found.high is None  # differences that are all alike say nothing of their spread


def test_rounding_is_no_spread_and_no_evidence() -> None:
    found = gain(scores([50.1, 60.2, 70.3]), scores([49.8, 59.9, 70.0]))  # 0.3 each, but for the last bits
    assert found is not None
    assert found.low is found.high is None
    shifted = gain(scores([0.1 + 0.2, 0.0, 0.3]), scores([0.3, 0.0, 0.1 + 0.2]))
    assert shifted is not None
    assert shifted.p == 1.0


@pytest.mark.parametrize("spreads", [(1.0,), (1.0, 1.0, 1.0), (5.0, 3.0, 1.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(spreads) -> None:
    draws = np.random.default_rng(0)
    held = []
    for _ in range(400):
        values = {str(i): dict(enumerate(draws.normal(2.0, sd, 3))) for i, sd in enumerate(spreads)}
        found = gain(values, {task: dict.fromkeys(by, 0.0) for task, by in values.items()})
        assert found is not None
        held.append(found.low < 2.0 < found.high)
    assert 0.92 <= np.mean(held) <= 0.995


def test_the_interval_of_one_task_is_scipys() -> None:
    ours, others = np.array([3.0, 5.0, 4.5, 6.0]), np.array([2.0, 2.5, 4.0, 3.0])
    found = gain(scores(ours), scores(others))
    expected = ttest_rel(ours, others).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
