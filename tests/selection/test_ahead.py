from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from selection.ahead import ahead


def test_everything_in_order() -> None:
    assert list(ahead(lambda number: number * 2, range(5))) == [0, 2, 4, 6, 8]
    assert list(ahead(str, [])) == []


def test_the_next_is_made_while_one_is_worked_on_and_no_further() -> None:
    made = [threading.Event() for _ in range(4)]
    results = ahead(lambda number: made[number].set(), range(4))
    next(results)
    assert made[1].wait(10)
    assert not made[2].wait(0.05)
    next(results)
    assert made[2].wait(10)


def test_what_fails_is_raised_in_its_turn() -> None:
    def halves() -> Iterator[float]:
        yield from ahead(lambda number: 1 / number, [2, 1, 0])

    results = halves()
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
