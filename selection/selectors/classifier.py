"""Classifier: which passages a classifier takes for the task's (Brown et al. 2020, appendix A, there for quality).

A logistic regression tells the task's training texts from passages drawn from the corpus. GPT-3's filter keeps a
document where Pareto noise (alpha 9) exceeds 1 - p, p being what the classifier gives it, so with a chance of
(2 - p) ** -9. Here passages are drawn without replacement in proportion to that chance (Gumbel top-k). Sets of
different sizes are nested, and those that are small beside what the filter would keep have its mixture; larger ones run
out of passages of high p and hold more of the others. (Ranking by the noise less 1 - p would be the filter at its own
size, but a small set would be of the noise's tail, where p counts for little.)

Features are the store's embeddings, or hashed n-grams (`selection.ngrams`; log(1 + count), scaled to unit length).

Cost: training takes seconds; then a pass over the embeddings, or over 2 bytes an n-gram. Memory: a shard's features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from selection.ngrams import BUCKETS, NgramFeatures, NgramHasher
from selection.selectors import Pool
from selection.selectors.ranked import Ranked, Scored, gumbel
from selection.tokens import Ragged

PARETO = 9.0
NEGATIVES, LEAST, MOST = 5, 2_000, 50_000


@dataclass
class ClassifierSelector:
    """See `selection.selectors.Selector`. Its score is the probability of the task; it has no query.

    Attributes:
        features: ``embeddings``; or ``ngrams``, which need none, but tell a task by its markers rather than its domain
            where its texts have any.
        draw: ``noisy``, as GPT-3's filter lets through; or ``top``, by probability alone.
    """

    features: Literal["embeddings", "ngrams"] = "embeddings"
    draw: Literal["noisy", "top"] = "noisy"
    name: ClassVar[str] = "classifier"
    _ranked: Ranked = field(default_factory=Ranked, init=False, repr=False, compare=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        return self._ranked.best(pool.count(k, wanted), lambda: self._scan(pool))

    def _scan(self, pool: Pool) -> Iterator[Scored]:
        source = _Ngrams(pool) if self.features == "ngrams" else _Embedded(pool)
        model = trained(source.task(), source.sample(sampled(pool)))
        first = 0
        counts = np.diff(pool.corpus.offsets).tolist()
        for shard, noise in zip(source.shards(), gumbel(pool.seed, self.name, counts), strict=True):
            with threadpool_limits(1):
                scores = model.predict_proba(shard)[:, 1]
            ranked = noise - PARETO * np.log(2 - scores) if self.draw == "noisy" else scores
            yield ranked, np.arange(first, first + len(scores)), scores.astype(np.float32)
            first += len(scores)


def sampled(pool: Pool) -> npt.NDArray[np.int64]:
    """Passages that stand for the corpus, int64 ascending: `NEGATIVES` a task example, `LEAST` to `MOST` of them."""
    wanted = min(max(NEGATIVES * len(pool.task.train_texts), LEAST), MOST, len(pool.corpus))
    drawn = np.random.default_rng((pool.seed, 0)).choice(len(pool.corpus), wanted, replace=False)
    return np.sort(drawn).astype(np.int64)


def trained(task: Any, corpus: Any) -> Any:
    """A scikit-learn LogisticRegression of `task` (class 1) against `corpus` (class 0), both classes weighing the same.

    Args:
        task, corpus: [n, features], dense or CSR.
    """
    from sklearn.linear_model import LogisticRegression

    both = sp.vstack([task, corpus], format="csr") if sp.issparse(task) else np.concatenate([task, corpus])
    labels = np.repeat([1, 0], [task.shape[0], corpus.shape[0]])
    with threadpool_limits(1):  # sums in another order would be other scores
        return LogisticRegression(C=1.0, class_weight="balanced", max_iter=200).fit(both, labels)


def ngram_rows(ngrams: Ragged) -> sp.csr_matrix:
    """Texts as rows float32 [texts, `BUCKETS`]: log(1 + count) of each bucket, scaled to unit length."""
    ones = np.ones(len(ngrams.values), dtype=np.float32)
    rows = sp.csr_matrix((ones, ngrams.values.astype(np.int32), ngrams.offsets), shape=(len(ngrams), BUCKETS))
    rows.sum_duplicates()
    np.log1p(rows.data, out=rows.data)
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    rows.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(rows.indptr))
    return rows


class _Ngrams:
    def __init__(self, pool: Pool) -> None:
        self._pool, self._features = pool, NgramFeatures(pool.store)

    def task(self) -> sp.csr_matrix:
        return ngram_rows(NgramHasher()(self._pool.task.train_texts))

    def sample(self, doc_ids: npt.NDArray[np.int64]) -> sp.csr_matrix:
        offsets = self._pool.corpus.offsets
        parts = []
        for number in range(len(self._features)):
            low, high = np.searchsorted(doc_ids, offsets[number : number + 2])
            if low < high:
                parts.append(ngram_rows(self._features.shard(number).take(doc_ids[low:high] - offsets[number])))
        return sp.vstack(parts, format="csr")

    def shards(self) -> Iterator[sp.csr_matrix]:
        return (ngram_rows(shard) for shard in self._features)


class _Embedded:
    def __init__(self, pool: Pool) -> None:
        self._pool, self._embeddings = pool, pool.all_embeddings("classifier:features=embeddings")

    def task(self) -> npt.NDArray[np.float32]:
        return self._pool.queries

    def sample(self, doc_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self._embeddings.take(doc_ids)

    def shards(self) -> Iterator[npt.NDArray[np.float32]]:
        return (shard.astype(np.float32) for shard in self._embeddings)
