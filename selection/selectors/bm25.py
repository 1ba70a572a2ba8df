"""BM25: every task text as a query, the union of their best passages (TLM, Yao et al. 2022, section 3.2).

Scores are those of Lucene's BM25 (Kamphuis et al. 2020, "Which BM25 Do You Mean?"; the default of bm25s), without
stemming: a passage d of l words scores, summed over the words t of a query, log(1 + (N - df + 0.5) / (df + 0.5)) * tf /
(tf + k1 * (1 - b + b * l / mean l)), with tf how often t is in d, and df in how many of the N passages it is.

One pass cuts the corpus and counts words; only those of the task are kept, since no other can add to a score. Then
passages are scored shard by shard, as products of a block of queries and the shard's weights: as a dense matrix for
words that many passages hold, as a sparse one for the rest. On 134,105 passages and 4,169 queries, k = 50, one thread:
2.7 s, nearly all of it the first pass; bm25s with numba takes 10.6 s.

Memory, whatever the corpus: 8 bytes for each pair of a passage and one of its words that the task has, at most
`KEPT_BYTES` in all (shards past that are cut again for each pass); one shard and its words; 20 bytes a neighbour of a
block of queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp
from tqdm import tqdm

from selection.ahead import ahead
from selection.corpus import Corpus
from selection.errors import NearkinError
from selection.index.ranking import Ids, Ranking, Scores, neighbour_table
from selection.selectors import Pool
from selection.selectors.knn import GrowingUnion, union
from selection.tokens import Ragged, Words, split_words
from selection.words import Vocabulary, key_phrases

KEPT_BYTES = 1 << 30
BLOCK_PAIRS = 8_000_000
BLOCK_QUERIES = 64  # with a shard's passages, scores that stay in the cache
DENSE_SHARE, MOST_DENSE = 0.02, 1024  # words of more passages than this share have a row of a dense matrix
SHARES = 4  # of the queries a thread, so that none waits long for the last
CROWDED = 4  # times k scores of a query above its floor, past which its k best are found first

Counted = tuple[sp.csc_matrix, npt.NDArray[np.int64]]


@dataclass
class Bm25Selector:
    """See `selection.selectors.Selector`. Without `k`, k is the least power of two whose union holds `wanted`.

    Passages that share no word with any query are no candidates.

    Attributes:
        queries: ``text``, the whole of each task text; or ``phrases``, its key phrases (`selection.words.key_phrases`).
        k1: how soon a repeated word ceases to add, at least 0.
        b: how much long passages are held back, from 0 to 1.
    """

    queries: Literal["text", "phrases"] = "text"
    k1: float = 1.5
    b: float = 0.75
    name: ClassVar[str] = "bm25"
    text_alone: ClassVar[bool] = True
    _lexical: LexicalSearch | None = field(default=None, init=False, repr=False, compare=False)
    _grown: GrowingUnion = field(default_factory=GrowingUnion, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (0 <= self.k1 < np.inf and 0 <= self.b <= 1):
            raise NearkinError(f"method bm25: k1 must be at least 0 and b from 0 to 1, not {self.k1:g} and {self.b:g}")

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        search = self._lexical
        if search is None:
            texts = pool.task.train_texts
            search = LexicalSearch(
                pool.corpus, key_phrases(texts) if self.queries == "phrases" else texts, self.k1, self.b
            )
            self._lexical = search
        if k is not None:
            return union(search.neighbours(k))
        wanted = min(wanted, search.reachable)
        return self._grown.holding(wanted, len(pool.task.train_texts), len(pool.corpus), search.neighbours)


class LexicalSearch:
    """The best passages of texts by BM25; see this module for how.

    Args:
        corpus: passages; read once now, and again by each search as far as their counts were not kept.
        texts: queries.
        k1, b: see `Bm25Selector`.

    Attributes:
        reachable: how many passages share a word with any query.
    """

    def __init__(self, corpus: Corpus, texts: pa.Array | pa.ChunkedArray, k1: float = 1.5, b: float = 0.75) -> None:
        self._corpus, self._k1, self._b = corpus, k1, b
        self._vocabulary = Vocabulary()
        words = self._vocabulary(texts)
        first, self._which = words.distinct()
        self._queries = _frequencies(words.take(first), len(self._vocabulary)).tocsr()
        self._kept: dict[int, Counted] = {}
        self.reachable = 0
        self._count()

    def _count(self) -> None:
        """The first pass: what the weights need to know of the whole corpus."""
        passages, total, kept = np.zeros(len(self._vocabulary), np.int64), 0, 0
        size = len(self._corpus)
        with tqdm(total=size, desc="counting words", unit=" passages", unit_scale=True, disable=None) as bar:
            for number, (counts, lengths) in enumerate(self._shards()):
                passages += np.diff(counts.indptr)
                total += int(lengths.sum())
                self.reachable += int(np.count_nonzero(np.bincount(counts.indices)))
                kept += counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes + lengths.nbytes
                if kept <= KEPT_BYTES:
                    self._kept[number] = counts, lengths
                bar.update(len(lengths))
        self._mean_length = max(total / max(size, 1), 1e-9)
        self._rarity = np.log1p((size - passages + 0.5) / (passages + 0.5))
        frequent = np.argsort(-passages, kind="stable")[:MOST_DENSE]
        self._dense = np.sort(frequent[passages[frequent] > DENSE_SHARE * size])
        self._sparse = np.setdiff1d(np.flatnonzero(passages), self._dense)

    def _shards(self) -> Iterator[Counted]:
        """Counts of each shard: float32 [passages, words] of the task's words; each passage's length in all words."""
        kept, shards = set(self._kept), range(len(self._corpus.shards))
        left = (n for n in shards if n not in kept)
        with closing(ahead(lambda number: split_words(self._corpus.texts(number)), left)) as cut:
            for number in shards:
                yield self._kept[number] if number in kept else self._counted(next(cut))

    def _counted(self, cut: Words) -> Counted:
        words = self._vocabulary.of_words(cut, grow=False)
        known = np.concatenate([[0], np.cumsum(words.values >= 0)])[words.offsets]
        return _frequencies(Ragged(words.values[words.values >= 0], known), len(self._vocabulary)), words.lengths

    def neighbours(self, k: int) -> Iterator[pa.Table]:
        """The `k` best passages of each text, as `selection.index.ranking.NEIGHBOURS`, in blocks of texts.

        A text has fewer where fewer passages share a word with it; equal scores stand in doc_id order.
        """
        at_once = max(1, BLOCK_PAIRS // k)
        for start in range(0, len(self._which), at_once):
            rows, where = np.unique(self._which[start : start + at_once], return_inverse=True)
            scores, ids = self._search(self._queries[rows], k)
            yield neighbour_table(scores[where], ids[where], start)

    def _search(self, queries: sp.csr_matrix, k: int) -> tuple[Scores, Ids]:
        """One pass over the corpus for `queries`, float32 [queries, words]: float32 and int64 [queries, k].

        Each thread has some of the queries to itself, so nothing depends on how many threads there are.
        """
        dense, sparse = queries[:, self._dense], queries[:, self._sparse]
        count = max(BLOCK_QUERIES, -(-queries.shape[0] // (SHARES * pa.cpu_count())))
        starts = range(0, queries.shape[0], count)
        shares = [_Share(dense[start : start + count], sparse[start : start + count], k) for start in starts]
        first = 0
        with ThreadPoolExecutor(pa.cpu_count(), "score") as pool:
            for counts, lengths in self._shards():
                weights = self._weights(counts, lengths)
                frequent = np.ascontiguousarray(weights[:, self._dense].toarray().T)
                rare = weights[:, self._sparse].T.tocsr()
                for done in [pool.submit(share.see, frequent, rare, first) for share in shares]:
                    done.result()
                first += len(lengths)
        best = [share.ranking.best() for share in shares]
        return np.concatenate([scores for scores, _ in best]), np.concatenate([ids for _, ids in best])

    def _weights(self, counts: sp.csc_matrix, lengths: npt.NDArray[np.int64]) -> sp.csc_matrix:
        """What a word adds to a passage's score, float32 [passages, words]."""
        saturation = self._k1 * (1 - self._b + self._b * lengths / self._mean_length)
        rarity = np.repeat(self._rarity, np.diff(counts.indptr))
        values = rarity * counts.data / (counts.data + saturation[counts.indices])
        return sp.csc_matrix((values.astype(np.float32), counts.indices, counts.indptr), counts.shape)


def _frequencies(words: Ragged, vocabulary: int) -> sp.csc_matrix:
    """How often each row has each word: float32 [rows, vocabulary], each pair once, by word and then by row."""
    ones = np.ones(len(words.values), np.float32)
    matrix = sp.csr_matrix((ones, words.values, words.offsets), shape=(len(words), vocabulary)).tocsc()
    matrix.sum_duplicates()
    return matrix


class _Share:
    """Some of the queries, [queries, words that many passages hold] and [queries, other words], and their best."""

    def __init__(self, dense: sp.csr_matrix, sparse: sp.csr_matrix, k: int) -> None:
        self._blocks = [
            (start, dense[start : start + BLOCK_QUERIES], sparse[start : start + BLOCK_QUERIES])
            for start in range(0, dense.shape[0], BLOCK_QUERIES)
        ]
        self.ranking = Ranking(dense.shape[0], k)
        self.ranking.floor[:] = 0  # a passage that shares no word is no neighbour

    def see(self, frequent: npt.NDArray[np.float32], rare: sp.csr_matrix, first: int) -> None:
        """Scores the passages of a shard, from doc_id `first` on, by their weights [words, passages] of either kind."""
        for start, dense, sparse in self._blocks:
            scores = (sparse @ rare).toarray()
            scores += dense @ frequent
            self._offer(start, scores, first)

    def _offer(self, start: int, scores: Scores, first: int) -> None:
        """Offers to the queries from `start` on what can be among their best; `scores` [queries, passages]."""
        k, (rows, width) = self.ranking.k, scores.shape
        found = np.flatnonzero(scores > self.ranking.floor[start : start + rows, None])
        row = found // width
        if len(found) > CROWDED * k and k < width:
            crowded = np.flatnonzero(np.bincount(row, minlength=rows) > CROWDED * k)
            least = np.zeros(rows, np.float32)
            least[crowded] = np.partition(scores[crowded], width - k, axis=1)[:, width - k]
            found = found[scores.ravel()[found] >= least[row]]
            row = found // width
        self.ranking.add(start + row, scores.ravel()[found], first + found - row * width)
