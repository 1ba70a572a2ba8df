"""For methods that give every passage one score: the best of them while the corpus streams past, as candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.index.ranking import ids_of, to_keys
from selection.selectors import CANDIDATES

AT_LEAST = 1_000_000

Scores = npt.NDArray[np.float32]
Scored = tuple[npt.NDArray[np.floating], npt.NDArray[np.int64], "Scores | None"]


class Best:
    """The `count` best of passages that arrive in any order; 24 bytes each of twice as many, whatever the corpus.

    Passages of score -inf are left out; equal ones stand in doc_id order.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._keys: list[npt.NDArray[np.int64]] = []
        self._shown: list[Scores] = []
        self._held = 0

    def add(
        self, scores: npt.NDArray[np.floating], doc_ids: npt.NDArray[np.int64], shown: Scores | None = None
    ) -> None:
        """Offers passages: `scores` rank them (NaN is not allowed), `shown` is what is told of them, if another."""
        ranked = np.asarray(scores, dtype=np.float32)
        if np.isnan(ranked).any():
            raise ValueError("a passage's score is not a number")
        keys = to_keys(ranked, doc_ids)
        good = ranked > -np.inf
        self._keys.append(keys[good])
        self._shown.append((ranked if shown is None else np.asarray(shown, np.float32))[good])
        self._held += int(good.sum())
        if self._held > 2 * self.count:
            self._prune()

    def _prune(self) -> None:
        keys, shown = np.concatenate(self._keys), np.concatenate(self._shown)
        if len(keys) > self.count:
            best = np.argpartition(keys, len(keys) - self.count)[len(keys) - self.count :]
            keys, shown = keys[best], shown[best]
        self._keys, self._shown, self._held = [keys], [shown], len(keys)

    def best(self) -> tuple[npt.NDArray[np.int64], Scores]:
        """(doc_ids int64, scores float32), best first."""
        if not self._keys:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        self._prune()
        order = np.argsort(self._keys[0])[::-1]
        return ids_of(self._keys[0][order]), self._shown[0][order]


def candidate_table(
    doc_ids: npt.NDArray[np.int64],
    scores: npt.NDArray[np.floating] | None = None,
    query_ids: npt.NDArray[np.integer] | None = None,
    n_queries: npt.NDArray[np.integer] | None = None,
) -> pa.Table:
    """`CANDIDATES` of passages in this order: rank 1 is the first; no score is null, no query is -1 and 0."""
    count = len(doc_ids)
    columns = [
        pa.array(np.asarray(doc_ids, np.int64)),
        pa.nulls(count, pa.float32()) if scores is None else pa.array(np.asarray(scores, np.float32)),
        pa.array(np.arange(1, count + 1, dtype=np.int32)),
        pa.array(np.full(count, -1, np.int32) if query_ids is None else np.asarray(query_ids, np.int32)),
        pa.array(np.zeros(count, np.int32) if n_queries is None else np.asarray(n_queries, np.int32)),
    ]
    return pa.table(columns, schema=CANDIDATES)


class Ranked:
    """The best passages of one pass, kept for when more of them are asked for.

    A pass keeps the best `AT_LEAST`, or four times what was wanted; only past that the corpus is scored again.
    """

    def __init__(self) -> None:
        self._kept: pa.Table | None = None
        self._room = 0

    def best(self, wanted: int, scan: Callable[[], Iterable[Scored]]) -> pa.Table:
        """`CANDIDATES` of the `wanted` best.

        Args:
            scan: one pass over all passages.
        """
        if self._kept is None or wanted > self._room:
            self._room = max(AT_LEAST, 4 * wanted)
            best = Best(self._room)
            for scored in scan():
                best.add(*scored)
            self._kept = candidate_table(*best.best())
        return self._kept.slice(0, wanted)


def gumbel(seed: int, method: str, counts: Iterable[int]) -> Iterator[npt.NDArray[np.float64]]:
    """Standard Gumbel noise, `counts` of it at a time; the whole is the same however it is cut.

    Added to log weights, the largest sums are a draw without replacement in proportion to the weights (Gumbel top-k,
    Kool et al. 2019).
    """
    rng = np.random.default_rng([seed, *method.encode()])  # methods in a mix draw apart
    for count in counts:
        yield rng.gumbel(size=count)
