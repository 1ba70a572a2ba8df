"""One step ahead: the next thing is made in another thread while the last is worked on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made]:
    """``make(item)`` of each item, in order, all of them in one other thread; at most one waits to be taken.

    What `make` raises is raised here, in the turn of its item. One that is left before its end is to be closed, as by
    `contextlib.closing`, which waits for what is being made.
    """
    worker = ThreadPoolExecutor(1, "ahead")
    try:
        waiting: Future[Made] | None = None
        for item in items:
            following = worker.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
    finally:
        worker.shutdown(cancel_futures=True)
