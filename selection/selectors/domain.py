"""Domain: everything there is (DAPT, Gururangan et al. 2020, section 3), or a uniform part of it under a budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.corpus import Corpus
from selection.drawing import draw
from selection.errors import InputError
from selection.selectors import Pool
from selection.selectors.ranked import candidate_table


@dataclass
class DomainSelector:
    """See `selection.selectors.Selector`. Everything stands in corpus order; a part of it is drawn by the seed.

    Attributes:
        source: only these of the store's corpora, with ``+`` or a comma between several; None takes all.
    """

    source: str | None = None
    name: ClassVar[str] = "domain"
    text_alone: ClassVar[bool] = True
    everything: ClassVar[bool] = True

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        passages = PartOfCorpus(pool.corpus, self.source)
        size = len(passages)
        if pool.everything:
            return candidate_table(passages.all())
        return candidate_table(passages.doc_ids(draw(size, min(size, pool.count(k, wanted)), pool.seed)))


class PartOfCorpus:
    """The passages of some of a store's corpora, in doc_id order, by their place among themselves.

    Args:
        source: names of corpora with ``+`` or a comma between several; None is all.

    Raises:
        InputError: the store has no corpus of that name.
    """

    def __init__(self, corpus: Corpus, source: str | None) -> None:
        names = set(corpus.sources)
        wanted = names if source is None else set(re.split("[+,]", source))
        if unknown := sorted(wanted - names):
            raise InputError(f"the store has no corpus {unknown[0]!r}: it has {', '.join(sorted(names))}")
        mine = np.array([name in wanted for name in corpus.sources])
        self._starts = corpus.offsets[:-1][mine]
        self._ends = np.cumsum(np.diff(corpus.offsets)[mine])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def all(self) -> npt.NDArray[np.int64]:
        """Every doc_id, int64 [n]."""
        ends = self._starts + np.diff(self._ends, prepend=0)
        return np.concatenate([np.arange(start, end) for start, end in zip(self._starts, ends, strict=True)])

    def doc_ids(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The doc_ids int64 [n] of the passages at these places, int64 [n]."""
        shard = np.searchsorted(self._ends, places, "right")
        found: npt.NDArray[np.int64] = places - np.concatenate([[0], self._ends])[shard] + self._starts[shard]
        return found
