"""A process of its own for what is measured, so that its peak memory, and what it leaves behind, are its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of a module returns in a new process, which ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def megabytes(peak: int | None) -> float | None:
    """Of bytes, as `selection.memory.peak_memory` gives them."""
    return None if peak is None else peak / 1e6
