"""Domain: everything there is (DAPT, Gururangan et al. 2020, section 3), or a uniform part of it under a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.corpus import Corpus
from selection.errors import InputError
from selection.selectors import Pool
from selection.selectors.random import draw
from selection.selectors.ranked import candidate_table


@dataclass
class DomainSelector:
    """See `selection.selectors.Selector`. Everything stands in corpus order; a part of it is drawn by the seed.

    Attributes:
        source: only these of the store's corpora, with ``+`` between several; None takes all.
    """

    source: str | None = None
    name: ClassVar[str] = "domain"
    everything: ClassVar[bool] = True

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        rows = rows_of(pool.corpus, self.source)
        if pool.everything:
            return candidate_table(rows)
        return candidate_table(rows[draw(len(rows), min(len(rows), pool.count(k, wanted)), pool.seed)])


def rows_of(corpus: Corpus, source: str | None) -> npt.NDArray[np.int64]:
    """The doc_ids int64 of corpora named in `source` (``+`` between several; None is all), ascending.

    Raises:
        InputError: the store has no corpus of that name.
    """
    names = {name for name, _, _ in corpus.shards}
    wanted = names if source is None else set(source.split("+"))
    if unknown := sorted(wanted - names):
        raise InputError(f"the store has no corpus {unknown[0]!r}: it has {', '.join(sorted(names))}")
    parts = [
        np.arange(corpus.offsets[number], corpus.offsets[number + 1])
        for number, (name, _, _) in enumerate(corpus.shards)
        if name in wanted
    ]
    return np.concatenate(parts).astype(np.int64)
