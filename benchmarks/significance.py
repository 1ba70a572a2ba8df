"""Whether one arm beats another: paired differences over seeds, pooled over tasks.

Arms are compared seed by seed within a task, since a seed draws the same classifier, order and dropout in both. Tasks
weigh alike, however many seeds each has. The p-value is that of a sign-flip permutation test, exact where there are few
pairs (Dror et al., 2018, section 3.2). With three seeds of one task the least there can be is 0.25: pool tasks, or run
more seeds. The interval is Student's t, with Welch and Satterthwaite's degrees of freedom where tasks are pooled: a
bootstrap of three seeds knows three values, and its interval of 95 % holds the mean in three of four cases.

What is tested is the finetuning of given models. Where all seeds of an arm share one adapted model, the noise of
selection and of masked-LM training is not in p: only more tasks, or more such models, speak of the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXACT = 16
DRAWS = 20_000
LEVEL = 0.95
ALIKE = 1e-9  # points of F1 that are rounding

Scores = Mapping[str, Mapping[int, float]]
"""F1 by task and seed."""


@dataclass(frozen=True)
class Gain:
    """How much higher one arm scores than another.

    Attributes:
        mean: of the tasks' mean differences, in points of F1.
        low, high: ends of its interval at `LEVEL`; None where a task has one seed alone, or all differ alike.
        p: two-sided.
        pairs: seeds of all tasks.
        tasks: how many.
    """

    mean: float
    low: float | None
    high: float | None
    p: float
    pairs: int
    tasks: int


def gain(arm: Scores, other: Scores, seed: int = 0) -> Gain | None:
    """The gain of `arm` over `other`, over the tasks and seeds that both have; None where there are none.

    Args:
        seed: of the permutations.
    """
    both = {task: sorted(arm[task].keys() & other[task].keys()) for task in arm.keys() & other.keys()}
    differences = [
        np.array([arm[task][run] - other[task][run] for run in both[task]]) for task in sorted(both) if both[task]
    ]
    if not differences:
        return None
    draws = np.random.default_rng(seed)
    values = np.concatenate(differences)
    # Each pair's weight in the mean of the tasks' means.
    weights = np.concatenate([np.full(len(d), 1 / len(d) / len(differences)) for d in differences])
    low, high = _interval(differences)
    return Gain(float(values @ weights), low, high, _p(values * weights, draws), len(values), len(differences))


def _p(parts: npt.NDArray[np.float64], draws: np.random.Generator) -> float:
    """Share of sign flips whose sum is at least as far from 0 as that of `parts`; the given signs count among them."""
    count = len(parts)
    if count <= EXACT:
        flips = 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        extra = 0
    else:
        flips = draws.choice([-1.0, 1.0], (DRAWS, count))
        extra = 1
    far = np.abs(flips @ parts) >= abs(parts.sum()) - ALIKE
    return float((far.sum() + extra) / (len(flips) + extra))


def _interval(differences: list[npt.NDArray[np.float64]]) -> tuple[float | None, float | None]:
    from scipy.stats import t

    counts = np.array([len(d) for d in differences])
    if counts.min() < 2:
        return None, None
    # Variance that each task's mean brings into the mean of them.
    parts = np.array([d.var(ddof=1) for d in differences]) / counts / len(counts) ** 2
    mean, whole = np.mean([d.mean() for d in differences]), parts.sum()
    if np.sqrt(whole) < ALIKE:  # differences that are all alike say nothing of how far they may lie apart
        return None, None
    freedom = whole**2 / (parts**2 / (counts - 1)).sum()
    half = t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(whole)
    return float(mean - half), float(mean + half)
