"""Selectors: one protocol, one file a method, found by name.

A selector ranks passages for a task. It knows nothing of budgets in tokens, duplicates, leaks or files: it is asked
for some number of candidates, best first, and asked again for more where too few of them survive.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import pyarrow as pa

from selection.corpus import Corpus
from selection.selectors.pool import Pool

__all__ = ["CANDIDATES", "Pool", "Selector", "SelectsFrom"]

CANDIDATES = pa.schema(
    [
        ("doc_id", pa.int64()),
        ("score", pa.float32()),
        ("rank", pa.int32()),
        ("query_id", pa.int32()),
        ("n_queries", pa.int32()),
    ]
)


class Selector(Protocol):
    """One way to choose passages. Its parameters are the fields of a dataclass, which ``--method`` sets by name.

    One that never asks for vectors may say so by an attribute ``text_alone`` that is true: a run then keeps its sets
    when another encoder or index comes to the store.

    Attributes:
        name: what ``--method`` calls it.
    """

    @property
    def name(self) -> str: ...

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        """At least `wanted` passages (or all it has), best first.

        The same instance is asked again with a larger `wanted` where too few survive the guard, so what was costly
        may be kept in it.

        Args:
            pool: corpus, task, seed.
            k: passages a task example, where the user said so; then it bounds the candidates instead of `wanted`.
            wanted: how many candidates may be needed.

        Returns:
            `CANDIDATES`, each doc_id once; query_id is -1 and score null where the method has none. A further column
            ``method`` (string) may name which of several methods brought a passage.
        """
        ...


@runtime_checkable
class SelectsFrom(Protocol):
    """A selector whose doc_ids are of another corpus than the store's."""

    def corpus(self, pool: Pool) -> Corpus:
        """The passages that its candidates name."""
        ...
