"""Hashed n-grams: what DSIR, the n-gram classifier and KL reduction see of a text.

As in DSIR (Xie et al. 2023, and its package ``data-selection``): the lower-cased text cut into runs of word characters
and runs of punctuation (NLTK's WordPunct), each unigram and each bigram put into one of 10,000 buckets by its sha256.

A corpus has few distinct words and bigrams, so each is hashed once and then found by number: twenty times the package's
speed on one thread. What comes out, 2 bytes an n-gram (about 0.7 of the text's size), is kept in the store under
``ngrams/``, filed by the fingerprint of the shard's text like embeddings, so that the second task reads arrays only;
beside it how often each bucket occurs in the corpus, which is all that `inspect` asks for (of more than `COUNTED`
shards, some are counted for it and nothing else is kept). All of it may be deleted at
any time; a store that cannot be written to uses a temporary folder.

Memory: one shard, and words and bigrams seen, at most `MOST_BIGRAMS` (16 bytes each) and `MOST_WORDS` (about 250 bytes
each, 250 MB in all), past which they are forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from selection.ahead import ahead
from selection.corpus import Corpus
from selection.errors import NearkinError
from selection.files import fingerprint, require_space
from selection.kept import read_kept, write_kept
from selection.store import Store
from selection.tokens import Ragged, Words, split_words
from selection.words import Vocabulary

BUCKETS = 10_000
WORD_PUNCT = r"\w+|[^\w\s]+"
MOST_WORDS, MOST_BIGRAMS = 1_000_000, 8_000_000
SMALLEST = 1e-8  # added to every probability, as the package does
BYTES_A_BYTE = 0.8
COUNTED = 1000

Buckets = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Cut:
    """Texts as numbers of their words: `tokens`, the `names` new among them, and whether numbering starts anew."""

    tokens: Ragged
    names: list[bytes]
    anew: bool


class NgramHasher:
    """Texts to the buckets of their unigrams and bigrams, in two steps, each of which may have a thread of its own.

    Args:
        buckets: how many there are.
    """

    def __init__(self, buckets: int = BUCKETS) -> None:
        if not 1 <= buckets < 1 << 31:
            raise NearkinError(f"there can be 1 to {(1 << 31) - 1:,} buckets of n-grams, not {buckets:,}")
        self.buckets = buckets
        self.dtype = np.uint16 if buckets <= 1 << 16 else np.uint32
        self._vocabulary = Vocabulary(WORD_PUNCT, ())
        self._numbered = 0
        self._forget(words=True)

    def _forget(self, words: bool) -> None:
        if words:
            self._names: list[bytes] = []
            self._unigrams = np.empty(0, self.dtype)
        self._pairs = np.empty(0, np.int64)  # sorted; first token's number in the high half
        self._bigrams = np.empty(0, self.dtype)

    def __call__(self, texts: pa.Array | pa.ChunkedArray) -> Ragged:
        """Buckets of each text, uint16 (uint32 where there are more than 65,536), each unigram before its bigram."""
        return self.hash(self.cut(split_words(texts)))

    def cut(self, words: Words) -> Cut:
        """The first step: numbers of words and marks."""
        if anew := len(self._vocabulary) > MOST_WORDS:
            self._vocabulary, self._numbered = Vocabulary(WORD_PUNCT, ()), 0
        tokens = self._vocabulary.of_words(words)
        names = [word.encode() for word in self._vocabulary.words[self._numbered :]]
        self._numbered += len(names)
        return Cut(tokens, names, anew)

    def hash(self, cut: Cut) -> Ragged:
        """The second step, in the order of the first: buckets, as calling it gives."""
        if cut.anew or len(self._pairs) > MOST_BIGRAMS:
            self._forget(words=cut.anew)
        self._names += cut.names
        self._unigrams = np.concatenate([self._unigrams, self._hashed(cut.names)])
        tokens, bounds = cut.tokens.values, cut.tokens.offsets
        values = np.empty((len(tokens), 2), self.dtype)
        values[:, 0] = self._unigrams[tokens]
        has_next = np.ones(len(tokens), dtype=bool)
        has_next[bounds[1:][bounds[1:] > bounds[:-1]] - 1] = False
        first = np.flatnonzero(has_next)
        pairs = (tokens[first].astype(np.int64) << 32) | tokens[first + 1]
        values[first, 1] = self._bigram_buckets(pairs)
        keep = np.ones((len(tokens), 2), dtype=bool)
        keep[:, 1] = has_next
        return Ragged(values[keep], 2 * bounds - np.concatenate([[0], np.cumsum(bounds[1:] > bounds[:-1])]))

    def _bigram_buckets(self, pairs: npt.NDArray[np.int64]) -> Buckets:
        encoded = pc.dictionary_encode(pa.array(pairs))
        distinct = encoded.dictionary.to_numpy()
        order = np.argsort(distinct)
        wanted = distinct[order]
        at = np.minimum(np.searchsorted(self._pairs, wanted), max(len(self._pairs) - 1, 0))
        known = self._pairs[at] == wanted if len(self._pairs) else np.zeros(len(wanted), dtype=bool)
        fresh = wanted[~known]
        names = self._names
        left, right = (fresh >> 32).tolist(), (fresh & 0xFFFFFFFF).tolist()
        hashed = self._hashed([names[i] + b" " + names[j] for i, j in zip(left, right, strict=True)])
        sorted_buckets = np.empty(len(wanted), self.dtype)
        sorted_buckets[known] = self._bigrams[at[known]]
        sorted_buckets[~known] = hashed
        where = np.searchsorted(self._pairs, fresh)
        self._pairs = np.insert(self._pairs, where, fresh)
        self._bigrams = np.insert(self._bigrams, where, hashed)
        buckets = np.empty(len(wanted), self.dtype)
        buckets[order] = sorted_buckets
        return np.asarray(buckets[encoded.indices.to_numpy()])

    def _hashed(self, ngrams: list[bytes]) -> Buckets:
        sha, number, buckets = hashlib.sha256, int.from_bytes, self.buckets
        return np.fromiter((number(sha(n).digest(), "big") % buckets for n in ngrams), self.dtype, len(ngrams))


class NgramFeatures:
    """The hashed n-grams of a store's corpus, shard by shard, memory-mapped; made where they are missing.

    Args:
        store: the store.
        buckets: how many there are.

    Raises:
        StoreError: the disk has no room for them; a text has changed since it was read.
    """

    def __init__(self, store: Store, buckets: int = BUCKETS) -> None:
        self.buckets = buckets
        self._corpus: Corpus = store.corpus
        self._texts = [shard.text for shard in self._corpus.shards]
        self._folder = store.path / "ngrams" / str(buckets)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._good: set[str] = set()
        self._make()

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[Ragged]:
        """Buckets of the passages of each shard, in doc_id order."""
        return (self.shard(number) for number in range(len(self)))

    def shard(self, number: int) -> Ragged:
        """Buckets of one shard's passages."""
        found = self._read(number)
        if found is None:  # damaged or deleted meanwhile
            self._good.discard(self._texts[number])
            self._make()
            found = self._read(number)
        assert found is not None
        return found

    def counts(self) -> npt.NDArray[np.int64]:
        """How often each bucket occurs in the corpus, int64 [buckets]."""
        total = np.zeros(self.buckets, np.int64)
        for shard in self:
            total += np.bincount(shard.values, minlength=self.buckets)
        return total

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._texts[number][:32]}.arrow"

    def _make(self) -> None:
        first = {text: number for number, text in reversed(list(enumerate(self._texts)))}
        shards = sorted(number for number in first.values() if self._read(number) is None)
        if not shards:
            return
        share = BYTES_A_BYTE * np.dtype(NgramHasher(self.buckets).dtype).itemsize / 2
        bytes_needed = int(share * sum(self._corpus.shards[n].text_bytes for n in shards))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._folder).close()
        except OSError:
            if self._temporary is not None:
                raise
            self._temporary = tempfile.TemporaryDirectory(prefix="nearkin-")
            self._folder, self._good = Path(self._temporary.name), set()
            return self._make()
        require_space(self._folder, bytes_needed)
        hasher = NgramHasher(self.buckets)
        total = sum(self._corpus.shards[n].rows for n in shards)
        with (
            tqdm(total=total, desc="hashing n-grams", unit=" passages", unit_scale=True, disable=None) as bar,
            closing(
                ahead(lambda number: hasher.cut(split_words(self._corpus.unchanged_texts(number))), shards)
            ) as cuts,
        ):
            for number, cut in zip(shards, cuts, strict=True):
                self._write(number, hasher.hash(cut))
                bar.update(self._corpus.shards[number].rows)
        current = {self._path(number) for number in range(len(self))}
        for path in self._folder.glob("*.arrow"):
            if path not in current:
                path.unlink(missing_ok=True)

    def _write(self, number: int, ngrams: Ragged) -> None:
        column = pa.LargeListArray.from_arrays(pa.array(ngrams.offsets), pa.array(ngrams.values))
        batch = pa.RecordBatch.from_arrays([column], ["ngrams"])
        write_kept(self._path(number), batch, {"text": self._texts[number]})
        self._good.add(self._texts[number])

    def _read(self, number: int) -> Ragged | None:
        """What is kept of a shard; None where it is missing, damaged or of another text. Hashed once a run."""
        text = self._texts[number]
        kept = read_kept(self._path(number), check=text not in self._good)
        if kept is None or kept[1] != {"text": text}:
            return None
        self._good.add(text)
        column = kept[0].column(0)
        return Ragged(column.values.to_numpy(), column.offsets.to_numpy())


def corpus_counts(store: Store, buckets: int = BUCKETS, features: NgramFeatures | None = None) -> npt.NDArray[np.int64]:
    """How often each bucket occurs in a store's corpus, int64 [buckets]; kept in the store, one small file.

    Args:
        features: of the whole corpus, which are counted; without them, where the corpus has more than `COUNTED` shards,
            the text of so many that are drawn, since frequencies are all that is asked for.
    """
    sampled = features is None and len(store.corpus.shards) > COUNTED
    names = [f"counts-{buckets}.arrow", *([f"counts-{buckets}-of-{COUNTED}-shards.arrow"] if sampled else [])]
    about = {"texts": fingerprint(*(shard.text for shard in store.corpus.shards))}
    for name in names:
        path, kept = store.path / "ngrams" / name, None
        with contextlib.suppress(OSError):  # another user's
            kept = read_kept(path)
        if kept is not None and kept[1] == about:
            return np.asarray(kept[0].column(0).to_numpy())
    counts = _drawn_counts(store.corpus, buckets) if sampled else (features or NgramFeatures(store, buckets)).counts()
    with contextlib.suppress(OSError, NearkinError):  # a read-only store is counted anew
        write_kept(path, pa.RecordBatch.from_arrays([pa.array(counts)], ["count"]), about)
    return counts


def _drawn_counts(corpus: Corpus, buckets: int) -> npt.NDArray[np.int64]:
    total, hasher = np.zeros(buckets, np.int64), NgramHasher(buckets)
    drawn = np.sort(np.random.default_rng(0).permutation(len(corpus.shards))[:COUNTED])
    for number in tqdm(drawn.tolist(), desc="counting n-grams", unit=" shards", disable=None):
        total += np.bincount(hasher(corpus.unchanged_texts(number)).values, minlength=buckets)
    return total


def text_counts(texts: pa.Array | pa.ChunkedArray, buckets: int = BUCKETS) -> npt.NDArray[np.int64]:
    """How often each bucket occurs in some texts, int64 [buckets]."""
    total = np.zeros(buckets, np.int64)
    hasher = NgramHasher(buckets)
    for start in range(0, len(texts), 8192):
        total += np.bincount(hasher(texts.slice(start, 8192)).values, minlength=buckets)
    return total


def log_ratio(target: npt.NDArray[np.int64], raw: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """log p_target - log p_raw of each bucket, float64 [buckets], from counts (DSIR, section 3)."""
    ratio: npt.NDArray[np.float64] = np.log(target / target.sum() + SMALLEST) - np.log(raw / raw.sum() + SMALLEST)
    return ratio


def kl_divergence(target: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    """KL(target || other) in nats of two distributions over buckets, from counts.

    What a set takes off the corpus's is DSIR's KL reduction (Xie et al. 2023, section 4).
    """
    return float(target / target.sum() @ log_ratio(target, other))


def sums(ngrams: Ragged, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For each text the sum over its n-grams of their buckets' weights, float64 [texts]."""
    total = np.zeros(len(ngrams))
    filled = np.flatnonzero(ngrams.lengths)
    if len(filled):
        total[filled] = np.add.reduceat(weights[ngrams.values], ngrams.offsets[filled])
    return total
