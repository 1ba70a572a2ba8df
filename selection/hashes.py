"""64-bit hashes of texts, words and runs of words, by array arithmetic over Arrow's buffers.

Words that are equal have equal hashes wherever they stand. Among a billion different texts some pair collides with a
chance of 3 %.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.buffers import one, text_buffers
from selection.runs import runs
from selection.tokens import Ragged, split_words

Hashes = npt.NDArray[np.uint64]

SLICE_BYTES = 8 << 20
WINDOW_BYTES = 1 << 20  # of text, with 32 to 40 bytes each while it is hashed


def spread_bits(hashes: Hashes) -> Hashes:
    """Spreads each bit over all others, in place (the finaliser of SplitMix64, Steele et al. 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(factor)
    hashes ^= hashes >> np.uint64(31)
    return hashes


_BASE = np.uint64(0x9E3779B97F4A7C15)
_LETTERS = spread_bits(np.arange(1, 257, dtype=np.uint64) * _BASE)


# Scripts written without spaces, where a clause would else be one word; the long vowel belongs to no script.
UNSPACED = r" ?([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー]\pM*) ?"
_UNSPACED_FROM = 0xE0  # the least first byte of any of their characters in UTF-8


def spaced(normalised: pa.Array) -> pa.Array:
    """Texts (large_string [n]) with spaces around each character of a script that has none between words."""
    raw, _ = text_buffers(normalised)
    if len(raw) == 0 or raw.max() < _UNSPACED_FROM:
        return normalised
    return pc.utf8_ltrim(pc.replace_substring_regex(normalised, UNSPACED, r" \1 "), " ")


def word_hashes(normalised: pa.Array | pa.ChunkedArray) -> Ragged:
    """A uint64 hash of each word of each text, wherever and beside whatever it stands.

    Args:
        normalised: large_string [n], words with spaces between them and none before the first
            (`selection.guard.normalise`, `spaced`).
    """
    split = split_words(normalised)
    return Ragged(hash_each(split.dictionary)[split.words.values], split.words.offsets)


def hash_each(words: pa.Array, spaces: bool = False) -> Hashes:
    """uint64 [n] of large_binary [n]: a polynomial over the bytes.

    Args:
        spaces: whether white space counts; else what stands behind a word is not part of it.
    """
    raw, ends = text_buffers(words)
    sums = np.zeros(len(words), np.uint64)
    lengths = np.diff(ends)
    filled = np.flatnonzero(lengths)
    starts = ends[filled]
    powers = np.cumprod(np.full(min(int(lengths.max(initial=0)), WINDOW_BYTES), _BASE))
    for low in range(0, len(raw), WINDOW_BYTES):
        window = raw[low : low + WINDOW_BYTES]
        first = int(np.searchsorted(starts, low, "right")) - 1
        last = int(np.searchsorted(starts, low + len(window), "left"))
        begins = np.maximum(starts[first:last] - low, 0)
        within = np.arange(len(window)) - np.repeat(begins, np.diff(begins, append=len(window)))
        terms = _LETTERS[window] * powers[within]
        if not spaces:
            terms[window <= ord(" ")] = 0
        found = np.add.reduceat(terms, begins)
        found[:1] *= np.uint64(pow(int(_BASE), low - int(starts[first]), 1 << 64))  # of what began in a window before
        sums[filled[first:last]] += found
    return spread_bits(sums)


def ngram_hashes(words: Ragged, n: int) -> Ragged:
    """A uint64 hash of every run of `n` words within a text, in order; texts of fewer words have none.

    Args:
        words: `word_hashes`.
    """
    total = max(len(words.values) - n + 1, 0)
    sums = np.zeros(total, np.uint64)
    for place in range(n):
        sums *= _BASE
        sums += words.values[place : place + total]
    return Ragged(spread_bits(sums), words.offsets).cut(words.offsets[:-1], np.maximum(words.lengths - n + 1, 0))


def flat(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One large_string array without nulls."""
    return pc.fill_null(one(texts).cast(pa.large_string()), "")


def slices(texts: pa.Array) -> Iterator[slice]:
    """Rows of at most `SLICE_BYTES` of text at a time, or a single row of more."""
    sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    return (slice(start, stop) for start, stop in runs(sizes, SLICE_BYTES))


def text_hashes(texts: pa.Array | pa.ChunkedArray, spaces: bool = False) -> Hashes:
    """A uint64 hash of each text (large_string [n], as `selection.guard.normalise` gives it; others with `spaces`)."""
    texts = flat(texts)
    parts = [hash_each(texts[part].cast(pa.large_binary()), spaces) for part in slices(texts)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


class Seen:
    """A growing set of hashes, 8 bytes each: sorted runs, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def has(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these are in it, bool [n]."""
        found = np.zeros(len(hashes), dtype=bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            found |= run[at] == hashes
        return found

    def add(self, hashes: Hashes) -> None:
        """Adds these."""
        if len(hashes) == 0:
            return
        self._runs.append(np.unique(hashes))
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.union1d(self._runs[-1], last)

    def repeated(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these are in it or occurred before among these, bool [n]."""
        first = np.zeros(len(hashes), dtype=bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        return np.logical_or(~first, self.has(hashes))
