"""DSIR: importance resampling on hashed n-grams (Xie et al. 2023, "Data Selection for Language Models via Importance
Resampling"; its package is ``data-selection``).

A passage's log importance weight is the sum over its unigrams and bigrams of log p_task - log p_corpus of their
buckets. Passages are drawn without replacement in proportion to the weights (Gumbel top-k), or the largest are taken.
Weights are sums, so long passages have the extreme ones; the package leaves out passages of fewer than 100 words
(``min_words=100``), which here is not the default.

Cost: the corpus is cut and hashed once a store (`selection.ngrams`), after that a pass over 2 bytes an n-gram.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from selection.ngrams import BUCKETS, NgramFeatures, corpus_counts, log_ratio, sums, text_counts
from selection.selectors import Pool
from selection.selectors.ranked import Ranked, Scored, gumbel


@dataclass
class DsirSelector:
    """See `selection.selectors.Selector`. Its score is the log importance weight; it has no query.

    Attributes:
        draw: ``gumbel`` or ``top``.
        buckets: of the hashed n-grams.
        min_words: passages of fewer words and punctuation marks are left out.
    """

    draw: Literal["gumbel", "top"] = "gumbel"
    buckets: int = BUCKETS
    min_words: int = 0
    name: ClassVar[str] = "dsir"
    text_alone: ClassVar[bool] = True
    _ranked: Ranked = field(default_factory=Ranked, init=False, repr=False, compare=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        return self._ranked.best(pool.count(k, wanted), lambda: self._scan(pool))

    def _scan(self, pool: Pool) -> Iterator[Scored]:
        features = NgramFeatures(pool.store, self.buckets)
        raw = corpus_counts(pool.store, self.buckets, features)
        weights = log_ratio(text_counts(pool.task.train_texts, self.buckets), raw)
        first = 0
        noise = gumbel(pool.seed, self.name, (len(shard) for shard in features))
        for shard, noisy in zip(features, noise, strict=True):
            scores = sums(shard, weights)
            ids = np.arange(first, first + len(scores))
            ranked = scores + noisy if self.draw == "gumbel" else scores
            words = (shard.lengths + 1) // 2
            yield np.where(words >= self.min_words, ranked, -np.inf), ids, scores.astype(np.float32)
            first += len(scores)
