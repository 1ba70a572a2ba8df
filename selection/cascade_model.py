"""Which passages a cascade encodes in full: a model of what the full score is where only a cheap one is known.

A cheap score says of a pair (query, passage) how its full score is distributed: pairs that were encoded in full give,
in bins of the cheap score, mean, spread and the shape of what is left. From it follow for each query the score ``t``
of its k-th best passage, which solves ``encoded passages above t + sum of P(full >= t | cheap) over the others = k``,
and for each passage its gain, the sum over queries of its chance to be above ``t``. Passages are encoded by falling
gain until the gain that is left is as small as the recall asked for allows; scores found meanwhile mend the model.

Pairs are held as a bin number each, 9 bytes, for the cheaply best `PAIRS` of them; what lies below is counted from the
uniform sample.

An audit checks the model: passages are drawn at random from those left out, the likelier ones more often, encoded, and
weighed by one over their chance to be drawn (Horvitz and Thompson 1952). That estimates without bias what was missed,
whatever the model thinks. Chances go by the root of the gain, which makes the estimate's variance least where the model
is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from selection.embedding import Embeddings
from selection.index.ranking import Ids, Ranking

BINS = 96
LEVELS = 512
PAIRS = 16_000_000
BLOCK = 2048
SHRUNK = 20.0  # pairs that the straight line counts as, beside a bin's own
HALVINGS = 25
PRUDENCE = 1.3  # what is missing is a tenth to a third more than the bare model expects (docs/log.md)
LEARNT, MOST_LEARNT = 50_000, 8_000_000  # pairs of a block of passages, of all; 9 bytes each
EVENLY = 0.2  # of an audit, drawn without regard to the model
TIGHTEST = 1e-3

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Blocks = Callable[[], Iterable[npt.NDArray[np.float16]]]


@dataclass
class Pairs:
    """The cheaply best pairs, and those of a uniform sample of passages that are below them.

    Attributes:
        query: int32 [m]; doc: int32 [m]; bin: uint8 [m], of the cheap score.
        below: float64 [queries, BINS], an estimate of how many pairs of each bin are not listed.
        edges: float64 [BINS - 1], between bins.
    """

    query: npt.NDArray[np.int32]
    doc: npt.NDArray[np.int32]
    bin: npt.NDArray[np.uint8]
    below: Reals
    edges: Reals

    def counts(self, left: npt.NDArray[np.bool_]) -> Reals:
        """float64 [queries, BINS]: pairs of passages that are `left` (bool [passages]), and those below."""
        queries = len(self.below)
        keys = self.query[left[self.doc]].astype(np.int64) * BINS + self.bin[left[self.doc]]
        return np.asarray(np.bincount(keys, minlength=queries * BINS).reshape(queries, BINS) + self.below)


def mixed_queries(full_queries: Floats, cheap_queries: Floats, cheap: Floats, scores: Floats) -> Floats:
    """One vector a query whose product with cheap passage vectors predicts the full score best: float32 [q, dim].

    A static encoder is fitted to the full one's vectors, so a query encoded in full foretells more with its vectors
    (half of the passages are needed) than one encoded by it. Where the dimensions differ there is only the latter.

    Args:
        full_queries, cheap_queries: float32 [q, any].
        cheap: float32 [n, dim] of sampled passages.
        scores: float32 [q, n], their full scores.
    """
    if full_queries.shape[1] != cheap.shape[1]:
        return cheap_queries
    parts = [queries @ cheap.T for queries in (full_queries, cheap_queries)]
    both = parts[0] + parts[1]
    high = both >= np.quantile(both, 0.9)
    inputs = np.stack([*(part[high] for part in parts), np.ones(int(high.sum()), np.float32)], axis=1)
    weights = np.linalg.lstsq(inputs.astype(np.float64), scores[high].astype(np.float64), rcond=None)[0]
    if weights[:2].max() <= 0:
        return full_queries
    return np.asarray(weights[0] * full_queries + weights[1] * cheap_queries, dtype=np.float32)


def scan(blocks: Blocks, queries: Floats, sample: Ids, sampled: Floats, k: int) -> Pairs:
    """Scores every passage cheaply and lists the best pairs.

    Args:
        blocks: float16 [rows, dim] each, in doc_id order.
        queries: float32 [q, dim], of `mix`.
        sample: int64 [n], a uniform sample of passages; sampled: float32 [q, n], their cheap scores.
        k: neighbours wanted.
    """
    passages = sum(len(block) for block in blocks())
    share = min(1.0, max(PAIRS // len(queries), 8 * k) / passages)
    floor = np.full(len(queries), -np.inf) if share == 1 else np.quantile(sampled, 1 - share, axis=1)
    low, high = float(np.quantile(sampled, 0.5)), float(sampled.max())
    edges = np.asarray(np.linspace(low, high + 0.1 * (high - low) + TIGHTEST, BINS - 1), dtype=np.float64)
    found: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint8]]] = []
    first = 0
    for block in blocks():
        for start in range(0, len(block), BLOCK):
            scores = queries @ block[start : start + BLOCK].astype(np.float32).T
            query, row = np.nonzero(scores >= np.maximum(floor, low)[:, None])
            bins = np.searchsorted(edges, scores[query, row], "right").astype(np.uint8)
            found.append((query.astype(np.int32), (row + (first + start)).astype(np.int32), bins))
        first += len(block)
    beneath = sampled < floor[:, None]
    keys = np.nonzero(beneath)[0] * BINS + np.searchsorted(edges, sampled[beneath], "right")
    sampled_below = np.bincount(keys, minlength=len(queries) * BINS).reshape(len(queries), BINS)
    below: Reals = sampled_below.astype(np.float64) * (passages / len(sample))
    below[:, 0] = 0  # the lower half of all pairs
    query_of, doc_of, bin_of = zip(*found, strict=True)
    return Pairs(np.concatenate(query_of), np.concatenate(doc_of), np.concatenate(bin_of), below, edges)


class TailModel:
    """P(full score >= t | query, bin of the cheap score), from pairs whose two scores are known.

    Args:
        query, pairs_bins: int [n] of the pairs; full: float [n], their full scores.
        queries: how many there are.
        edges: see `Pairs`.
    """

    def __init__(
        self, query: npt.NDArray[np.int32], pairs_bins: npt.NDArray[np.intp], full: Floats, queries: int, edges: Reals
    ) -> None:
        width = edges[1] - edges[0]
        centres = edges[0] + width * (np.arange(BINS) - 0.5)
        counts = np.bincount(pairs_bins, minlength=BINS)
        used = counts > 0
        means = np.bincount(pairs_bins, full, BINS) / np.maximum(counts, 1)
        trust = np.sqrt(np.minimum(counts, 400))[used]
        straight = np.polynomial.Polynomial.fit(centres[used], means[used], 1, w=trust)(centres)
        self.mean = (counts * means + SHRUNK * straight) / (counts + SHRUNK)
        rest = full - self.mean[pairs_bins]
        # Each bin counts alike, so that the many poor pairs do not decide on the few good ones.
        weight = (1 / np.maximum(counts, 1))[pairs_bins]
        # Some queries' full scores lie higher than their cheap ones say, throughout.
        said, squared = (np.bincount(query, weight**power, queries) for power in (1, 2))
        own = np.bincount(query, weight * rest, queries) / np.maximum(said, 1e-12)
        effective = said**2 / np.maximum(squared, 1e-300)
        self.offset = own * effective / (effective + SHRUNK)
        rest = rest - self.offset[query]
        squares = np.bincount(pairs_bins, rest**2, BINS)
        # The spread beside its neighbours: a bin's own, with a prior from bins near it.
        near = np.exp(-0.5 * ((np.arange(BINS)[:, None] - np.arange(BINS)) / 4) ** 2)
        smooth = (near @ squares + squares.sum() / max(counts.sum(), 1)) / (near @ counts + 1)
        variance = (squares + SHRUNK * smooth) / (counts + SHRUNK)
        self.spread = np.sqrt(np.maximum(variance, TIGHTEST**2))
        z = rest / self.spread[pairs_bins]
        self.levels = np.linspace(-6, 6, LEVELS)
        mass = np.histogram(z, np.append(self.levels, np.inf), weights=weight)[0]
        self.tail = np.cumsum(mass[::-1])[::-1] / weight.sum()
        self.tail[z.max() < self.levels] = 0

    def above(self, t: Reals) -> Reals:
        """float64 [queries, BINS], for thresholds `t` [queries]."""
        z = (t[:, None] - self.offset[:, None] - self.mean) / self.spread
        table: Reals = np.interp(z, self.levels, self.tail, left=1.0, right=0.0)
        table[:, 0] = 0
        return table


def thresholds(model: TailModel, counts: Reals, best: Floats, k: int) -> Reals:
    """float64 [queries]: the score of the k-th best passage of each, encoded or not.

    Args:
        counts: float64 [queries, BINS], see `Pairs.counts`.
        best: float32 [queries, k], the full scores of the best that are encoded; -inf where there are fewer.
    """
    low, high = np.full(len(best), -1.0), np.full(len(best), 1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = (best >= middle[:, None]).sum(axis=1) + (counts * model.above(middle)).sum(axis=1)
        many = above >= k
        low, high = np.where(many, middle, low), np.where(many, high, middle)
    return np.asarray(low)


def gains(pairs: Pairs, chances: Reals, left: npt.NDArray[np.bool_]) -> Reals:
    """float64 [passages]: neighbours that encoding each passage is expected to find; 0 for what is not `left`."""
    found = np.bincount(pairs.doc, chances[pairs.query, pairs.bin], len(left))
    found[~left] = 0
    return np.asarray(found)


class Encoded(Protocol):
    """Full vectors on request.

    Attributes:
        encoded: how many it has encoded so far.
    """

    encoded: int

    def take(self, ids: Ids) -> npt.NDArray[np.float16]:
        """float16 [n, dim] of passages `ids`, ascending, each once; those not there yet are encoded."""
        ...


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        passages: drawn.
        recall: estimated, as it was before the audit; error: its standard error, from what was found or from
            what the model expects, whichever is larger.
    """

    passages: int
    recall: float
    error: float


class CascadeSearch:
    """Chooses passages, has them encoded, and learns from what their full scores turn out to be.

    Args:
        blocks: gives cheap vectors float16 [rows, dim] in doc_id order, again on each call.
        full, cheap: float32 [q, any], the queries by either encoder.
        vectors: full vectors of passages.
        k: neighbours a query.
        rng: draws the sample, the audits, and which pairs are learnt from.

    Attributes:
        passages: in the corpus.
        left: bool [passages], those not encoded.
    """

    def __init__(
        self, blocks: Blocks, full: Floats, cheap: Floats, vectors: Encoded, k: int, rng: np.random.Generator
    ) -> None:
        self.blocks, self.full, self.vectors, self.rng = blocks, full, vectors, rng
        self.passages = sum(len(block) for block in blocks())
        self.k = min(k, self.passages)
        self.left = np.ones(self.passages, dtype=np.bool_)
        self._cheap_queries, self._ranking, self._scale = cheap, Ranking(len(full), self.k), PRUDENCE
        self._known: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], Floats]] = []

    def draw(self, size: int) -> Ids:
        """A uniform sample of passages, int64 [size], ascending."""
        return np.sort(self.rng.permutation(self.passages)[:size])

    def calibrate(self, sample: Ids) -> None:
        """Encodes a uniform sample, learns from it, and scores everything cheaply."""
        found = self.vectors.take(sample).astype(np.float32)
        cheap, scores = self._cheap(sample), self.full @ found.T
        self._mixed = mixed_queries(self.full, self._cheap_queries, cheap, scores)
        self._pairs = scan(self.blocks, self._mixed, sample, self._mixed @ cheap.T, self.k)
        self._enter(sample, found)

    def needed(self, min_recall: float) -> tuple[Ids, float]:
        """(the passages to encode so that `min_recall` is expected, by falling gain; what is expected without them)."""
        gain, recall = self._expect()
        if recall >= min_recall:
            return np.empty(0, dtype=np.int64), recall
        left = np.flatnonzero(self.left)
        order = left[np.argsort(-gain[left], kind="stable")]
        reached = recall + np.cumsum(gain[order]) / self._wanted
        return order[: int(np.searchsorted(reached, min_recall)) + 1], recall

    def encode(self, ids: Ids) -> None:
        """Has passages encoded, and learns from them."""
        ids = np.sort(ids)
        for start in range(0, len(ids), BLOCK):
            part = ids[start : start + BLOCK]
            self._enter(part, self.vectors.take(part).astype(np.float32))

    def audit(self, size: int) -> Audit:
        """Draws about `size` of the passages left out and encodes them."""
        gain, expected = self._expect()
        root, even = np.sqrt(gain), self.left / max(self.left.sum(), 1)
        chance = np.minimum(1, size * ((1 - EVENLY) * root / max(root.sum(), 1e-12) + EVENLY * even))
        drawn = self.rng.random(self.passages) < chance
        ids = np.flatnonzero(drawn)
        if len(ids) == 0:
            return Audit(0, expected, 0.0)
        found = self.vectors.take(ids).astype(np.float32)
        self._enter(ids, found)
        hits = (self.full @ found.T >= self._ranking.floor[:, None]).sum(axis=0)
        missed = float((hits / chance[ids]).sum()) / self._wanted
        rare = (1 - chance) / np.maximum(chance, 1e-12)
        variance = max((hits**2 * rare[ids] / chance[ids]).sum(), (gain * rare)[self.left | drawn].sum())
        # Above the k-th best so far are those missed and, for each of them, one of the best so far that it displaces.
        return Audit(len(ids), 1 / (1 + missed), float(np.sqrt(variance)) / self._wanted / (1 + missed) ** 2)

    def mend(self, audit: Audit, expected: float) -> None:
        """Raises expectations of what is missing to what an audit found, less its standard error."""
        self._scale *= max(1.0, (1 - audit.recall - audit.error) / max(1 - expected, 1e-9))

    @property
    def _wanted(self) -> int:
        return len(self.full) * self.k

    def _expect(self) -> tuple[Reals, float]:
        """(gain of each passage, recall as it stands)."""
        query, bins, scores = (np.concatenate(column) for column in zip(*self._known, strict=True))
        model = TailModel(query, bins.astype(np.intp), scores, len(self.full), self._pairs.edges)
        counts = self._pairs.counts(self.left)
        chances = model.above(thresholds(model, counts, self._ranking.best()[0], self.k))
        missing = self._scale * float((counts * chances).sum())
        return gains(self._pairs, chances, self.left) * self._scale, 1 - missing / self._wanted

    def _enter(self, ids: Ids, found: Floats) -> None:
        """Passages were encoded: to the queries' best, and to the pairs that are learnt from."""
        scores = self.full @ found.T
        self._ranking.add_rows(np.asarray(scores, dtype=np.float32), np.broadcast_to(ids, scores.shape))
        self.left[ids] = False
        bins = np.searchsorted(self._pairs.edges, self._mixed @ self._cheap(ids).T, "right")
        query, row = np.nonzero(bins > 0)
        shown = self.rng.permutation(len(query))[:LEARNT]
        query, row = query[shown], row[shown]
        self._known.append((query.astype(np.int32), bins[query, row].astype(np.uint8), scores[query, row]))
        held = sum(len(part[0]) for part in self._known)
        if held > MOST_LEARNT:
            some = self.rng.permutation(held)[: MOST_LEARNT // 2]
            queries, bins_of, full = (np.concatenate(column)[some] for column in zip(*self._known, strict=True))
            self._known = [(queries, bins_of, full)]

    def _cheap(self, ids: Ids) -> Floats:
        """Cheap vectors float32 [n, dim] of ascending `ids`."""
        blocks = self.blocks()
        if isinstance(blocks, Embeddings):
            return blocks.take(ids)
        first, parts = 0, []
        for block in blocks:
            low, high = np.searchsorted(ids, [first, first + len(block)])
            if high > low:
                parts.append(block[ids[low:high] - first].astype(np.float32))
            first += len(block)
        return np.concatenate(parts)
