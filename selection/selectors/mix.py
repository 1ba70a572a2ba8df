"""Mix: shares of several methods, as ``mix:knn=0.8,random=0.2``; the candidates have these shares, whatever the budget.

Where the gate keeps more of one method out, the others fill its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.errors import NearkinError
from selection.selectors import CANDIDATES, Pool, Selector, SelectsFrom
from selection.selectors.registry import find_selector, fresh


@dataclass
class MixSelector:
    """See `selection.selectors.Selector`. Rank, score and query are those of the method that brought a passage first.

    Attributes:
        parts: each method's share of the passages; they are scaled to a sum of 1.
    """

    parts: list[tuple[Selector, float]]

    def __post_init__(self) -> None:
        self.parts = [(fresh(part), share) for part, share in self.parts]

    name: ClassVar[str] = "mix"

    @classmethod
    def from_settings(cls, settings: dict[str, str]) -> MixSelector:
        """From ``{"knn": "0.8", "random": "0.2"}``.

        Raises:
            NearkinError: fewer than two methods, a share that is no positive number, a method that cannot be mixed.
        """
        if len(settings) < 2:
            raise NearkinError("method mix wants at least two methods, as mix:knn=0.8,random=0.2")
        parts = []
        for name, text in settings.items():
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if not 0 < share < float("inf"):
                raise NearkinError(f"method mix: the share of {name} must be a number above 0, not {text!r}")
            if name in ("mix", "curated"):
                raise NearkinError(f"method mix cannot mix in {name}: name methods that choose from the store")
            selector = find_selector(name)
            if isinstance(selector, SelectsFrom):
                raise NearkinError(f"method mix cannot mix in {name}, whose passages are not the store's")
            parts.append((selector, share))
        return cls(parts)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        target = pool.count(k, wanted)
        total, shares = target, np.array([share for _, share in self.parts]) / sum(share for _, share in self.parts)
        while True:
            asked = [min(len(pool.corpus), int(np.ceil(total * share)) + 1) for share in shares]
            found = [
                part.candidates(pool, None, count).slice(0, count)
                for (part, _), count in zip(self.parts, asked, strict=True)
            ]
            merged = self._merge(found, shares)
            if merged.num_rows >= target:
                return merged if k is None else merged.slice(0, target)
            if all(t.num_rows < n or n >= len(pool.corpus) for t, n in zip(found, asked, strict=True)):
                return merged
            total *= 2

    def _merge(self, found: list[pa.Table], shares: npt.NDArray[np.float64]) -> pa.Table:
        """The methods' candidates in turn, each at its share, a passage where it first occurs."""
        tables = []
        for (part, _), table in zip(self.parts, found, strict=True):
            method = pa.repeat(pa.scalar(part.name), table.num_rows)
            tables.append(table.select(CANDIDATES.names).append_column("method", method))
        place = np.concatenate([(np.arange(len(t)) + 0.5) / share for t, share in zip(found, shares, strict=True)])
        merged = pa.concat_tables(tables).take(pa.array(np.argsort(place, kind="stable")))
        _, first = np.unique(merged["doc_id"].to_numpy(), return_index=True)
        return merged.take(pa.array(np.sort(first)))
