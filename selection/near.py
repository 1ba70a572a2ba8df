"""Near-duplicates and leaks in words: passages that agree with another text in long runs of words.

kNN seeks out near-duplicates of what it is asked with, so comparing whole texts (`selection.guard`) is not enough. A
passage that shares 13 words in a row with a test text holds a piece of it (the contamination check of GPT-3, Brown et
al. 2020, appendix C); one that shares half of its runs with better-ranked passages is a near copy of them.
`selection.near_cosine` does the same by meaning.

In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character counts as a word.

N-grams are 64-bit hashes, made and looked up by array arithmetic. Among a billion different ones some pair collides
with a chance of 3 %, and a collision adds one n-gram to a share.

Memory: fifteen times a slice of text (`selection.hashes.SLICE_BYTES`). Beside it stand 12 bytes for each different
n-gram ranked so far (2 kB a passage of 170 words, twice that while runs are merged). Nothing grows with the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.guard import PRIORITY
from selection.hashes import Hashes, flat, ngram_hashes, slices, spaced, word_hashes

WORDS = 13
SHORTEST = 8
SHARE = 0.5

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]

NONE = np.iinfo(np.int64).max  # no forbidden text


@dataclass(frozen=True)
class Leaks:
    """Which passages are too near to a forbidden text, each for one reason, the first that applies.

    Attributes:
        reasons: in order of priority.
        reason: int64 [n], position in `reasons`, -1 where the passage may stay.
        row: int64 [n], the first such text among that reason's texts, -1 where the passage may stay.
    """

    reasons: tuple[str, ...]
    reason: Positions
    row: Positions

    @property
    def masks(self) -> dict[str, Mask]:
        """For each reason, which passages (bool [n]) it keeps out, as `selection.guard.Guard.reasons` tells it."""
        return {name: self.reason == number for number, name in enumerate(self.reasons)}


@dataclass(frozen=True)
class Copies:
    """Which candidates are near copies of earlier ones.

    Attributes:
        mask: bool [n].
        of: int64 [n], which candidate it is a copy of, counted from 0 over all calls, -1 where it is none.
        likeness: float32 [n], the share of n-grams seen before, or the cosine; 0 where it is no copy.
    """

    mask: Mask
    of: Positions
    likeness: npt.NDArray[np.float32]

    @classmethod
    def none(cls, n: int) -> Copies:
        return cls(np.zeros(n, bool), np.full(n, -1, np.int64), np.zeros(n, np.float32))


@dataclass(frozen=True)
class _Owned:
    """Different n-grams, each with the first text that has it: hashes uint64 [n] ascending, owners int32 [n]."""

    hashes: Hashes
    owners: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, hashes: Hashes) -> Positions:
        """The owner of each, int64, -1 where there is none."""
        if len(self) == 0:
            return np.full(len(hashes), -1, np.int64)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self) - 1)
        return np.where(self.hashes[at] == hashes, self.owners[at], -1).astype(np.int64)

    def merge(self, other: _Owned) -> _Owned:
        """Both, which have no n-gram in common."""
        where = np.searchsorted(self.hashes, other.hashes)
        return _Owned(np.insert(self.hashes, where, other.hashes), np.insert(self.owners, where, other.owners))


class _Sieve:
    """Passes over nearly all hashes that are not in a set by one look at a table, 8 to 16 bytes a member."""

    def __init__(self, members: Hashes) -> None:
        bits = min(max((8 * len(members)).bit_length(), 8), 28)
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=bool)
        self._table[members >> self._shift] = True

    def maybe(self, hashes: Hashes) -> npt.NDArray[np.intp]:
        """Positions of those that may be members."""
        return np.flatnonzero(self._table[hashes >> self._shift])


class Contained:
    """Finds passages that hold `n` words in a row of a forbidden text.

    Of a forbidden text of fewer words, but at least `SHORTEST`, all must occur; one of still fewer is left to exact
    comparison (8 and 13 are the bounds of Brown et al. 2020). Memory: at most 28 bytes a different n-gram of the
    forbidden texts, 75 while it is built.

    Args:
        forbidden: normalised texts by reason (`selection.guard.Guard.forbidden`).
        n: words in a row.
    """

    def __init__(self, forbidden: Mapping[str, pa.Array], n: int = WORDS) -> None:
        self.n = n
        self._order = Order({reason: len(texts) for reason, texts in forbidden.items()})
        texts = pa.concat_arrays([pa.array([], pa.large_string()), *(flat(forbidden[r]) for r in self._order.reasons)])
        hashes: dict[int, list[Hashes]] = {length: [] for length in range(min(SHORTEST, n), n + 1)}
        owners: dict[int, list[npt.NDArray[np.int32]]] = {length: [] for length in hashes}
        for part in slices(texts):
            words = word_hashes(spaced(texts[part]))
            for length in hashes:
                rows = np.flatnonzero(np.minimum(words.lengths, n) == length)
                grams = ngram_hashes(words.take(rows), length)
                hashes[length].append(grams.values)
                owners[length].append(np.repeat((rows + part.start).astype(np.int32), grams.lengths))
        self._tables = []
        for length, found in hashes.items():
            distinct, first = np.unique(np.concatenate([np.empty(0, np.uint64), *found]), return_index=True)
            if len(distinct):
                table = _Owned(distinct, np.concatenate(owners[length])[first])
                self._tables.append((length, table, _Sieve(distinct)))

    def find(self, normalised: pa.Array | pa.ChunkedArray) -> Leaks:
        """Which of these texts (large_string [n], normalised) hold a piece of a forbidden one."""
        texts = flat(normalised)
        first = np.full(len(texts), NONE)
        for part in slices(texts):
            words = word_hashes(spaced(texts[part]))
            for length, table, sieve in self._tables:
                grams = ngram_hashes(words, length)
                maybe = sieve.maybe(grams.values)
                owners = table.find(grams.values[maybe])
                hit = owners >= 0
                holders = np.searchsorted(grams.offsets, maybe[hit], "right") - 1 + part.start
                np.minimum.at(first, holders, owners[hit])
        return self._order.leaks(first)


class Order:
    """Forbidden texts numbered through all reasons, those of higher priority first."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.reasons = tuple(sorted(sizes, key=PRIORITY.index))
        self._firsts = np.cumsum([0, *(sizes[reason] for reason in self.reasons)], dtype=np.int64)

    def leaks(self, first: Positions) -> Leaks:
        """From the first forbidden text that each passage is too near to, `NONE` where there is none."""
        found = first != NONE
        reason = np.where(found, np.searchsorted(self._firsts, first, "right") - 1, -1)
        return Leaks(self.reasons, reason, np.where(found, first - self._firsts[reason], -1))


class NearDuplicates:
    """Finds candidates of whose different n-grams at least `share` occurred in better-ranked ones.

    Every allowed candidate counts as such, a near copy too: what it holds occurred. So the result does not depend on
    how candidates are cut into blocks. Texts of fewer than `n` words are no near copies.

    N-grams lie in sorted runs, each at least twice as long as the next, so one is moved a logarithm of times.

    Args:
        n: words in a row.
        share: in (0, 1].
    """

    def __init__(self, n: int = WORDS, share: float = SHARE) -> None:
        self.n, self.share = n, share
        self._count = 0
        self._runs: list[_Owned] = []

    def find(self, normalised: pa.Array | pa.ChunkedArray, allowed: Mask) -> Copies:
        """Which of the next candidates are near copies; remembers them all.

        What is told to be the original is the candidate that was the first to have most of the n-grams seen before.

        Args:
            normalised: large_string [n], in rank order.
            allowed: bool [n]; the others are neither compared nor remembered.
        """
        texts, found = flat(normalised), Copies.none(len(normalised))
        for part in slices(texts):
            rows = np.flatnonzero(allowed[part]) + part.start
            grams = ngram_hashes(word_hashes(spaced(texts.take(pa.array(rows)))), self.n)
            self._judge(*self._owners(grams.values, np.repeat(rows + self._count, grams.lengths)), found)
        self._count += len(texts)
        return found

    def _owners(self, hashes: Hashes, texts: Positions) -> tuple[Positions, Positions]:
        """For each different n-gram of each text, the text and the first one to have it; remembers those new."""
        order = np.argsort(hashes, kind="stable")
        hashes, texts = hashes[order], texts[order]
        fresh = np.ones(len(hashes), dtype=bool)
        np.not_equal(hashes[1:], hashes[:-1], out=fresh[1:])
        once = fresh.copy()
        once[1:] |= texts[1:] != texts[:-1]
        distinct, owners = hashes[fresh], texts[fresh]
        known = np.full(len(distinct), -1, np.int64)
        for run in self._runs:
            np.maximum(known, run.find(distinct), out=known)
        new = known < 0
        self._remember(_Owned(distinct[new], owners[new].astype(np.int32)))
        return texts[once], np.where(new, owners, known)[np.cumsum(fresh)[once] - 1]

    def _remember(self, run: _Owned) -> None:
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = self._runs[-1].merge(last)

    def _judge(self, texts: Positions, owners: Positions, found: Copies) -> None:
        """Fills in `found` from pairs of text and first owner, one a different n-gram."""
        rows, before, size = texts - self._count, owners < texts, len(found.mask)
        share = np.bincount(rows[before], minlength=size) / np.maximum(np.bincount(rows, minlength=size), 1)
        copies = (share >= self.share) & (share > 0)
        found.mask[copies], found.likeness[copies] = True, share[copies]
        told = before & copies[rows]
        pairs, counts = np.unique((rows[told] << 32) | owners[told], return_counts=True)
        row, owner = pairs >> 32, pairs & 0xFFFFFFFF
        order = np.lexsort((owner, -counts, row))
        row, first = np.unique(row[order], return_index=True)
        found.of[row] = owner[order][first]
