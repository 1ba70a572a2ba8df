"""The static encoder: a vector a token, pooled, and a small head, fitted to a model's own vectors of a sample.

Nothing of the transformer runs when a text is embedded, so millions of passages take minutes on a CPU. What it gives up
is word order: of a biomedical corpus's 20 nearest by all-MiniLM-L6-v2 it finds over half, after a sample of 16,000
passages (docs/log.md). Token vectors that are only distilled (model2vec's way: each token through the model by itself,
averaged) find 15 %, TF-IDF 27 %.

Both stages of the fit are ridge regressions with a closed form, seconds each and without learning rate or stopping
rule. Adam on the same token vectors, with a cosine or a similarity-preserving loss, was slower and found fewer.

1.  A text is its tokens' ``log(1 + count) * rarity``, of unit norm, and the model's vector is a linear function of that
    plus noise. A token's vector is taken beforehand to be near a linear function of its distilled vector, so that rare
    tokens, and ones that the sample lacks, learn from tokens like them. With more tokens than texts this is solved over
    the texts (kernel ridge; Saunders et al. 1998): one Cholesky factor of [n, n].
2.  A radial basis network (Broomhead and Lowe 1988) on what the first stage says, its centres texts of the sample. A
    first stage flatters the texts it was fitted to, so the second is shown each text as the first would have seen it
    without that text: leave-one-out residuals are the solution over the diagonal of the inverse (Rasmussen and Williams
    2006, equation 5.12), and cost no further fit.

The fit holds an array float32 [n, n] for n sampled texts and takes time of order n^3: 16,000 texts are 1 GB.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from selection.encoders.engine import Tick, no_tick
from selection.errors import ModelError
from selection.tokens import Ragged

FLOATS = npt.NDArray[np.float32]

# Recall is flat around each, at samples of 2,000 to 8,000: a factor of two either way costs 0.006 at most.
RIDGE = 1.0  # noise of a text beside its own similarity of 1, first stage
HEAD_RIDGE = 0.3
CENTRES = 1024

CHUNK = 2048
GRAM_BLOCK = 256
ARRAYS, FACTS = "static.safetensors", "static.json"


@dataclass(frozen=True)
class StaticModel:
    """A fitted static encoder.

    Attributes:
        limit: tokens of a text that are read, special tokens not counted; None for all. Should be the model's own: its
            neighbours do not depend on what it did not read, and two in a hundred are lost where this is not so.
        rarity: float32 [vocabulary], a token's weight.
        table: float32 [vocabulary, dim], the token vectors.
        shift: float32 [dim], added to the pooled vector.
        centres: float32 [m, dim], unit norm.
        head: float32 [m + dim, dim], from nearness to the centres and the pooled vector itself.
        bias: float32 [dim].
    """

    limit: int | None
    rarity: FLOATS
    table: FLOATS
    shift: FLOATS
    centres: FLOATS
    head: FLOATS
    bias: FLOATS

    @property
    def dim(self) -> int:
        return int(self.table.shape[1])

    def vectors(self, tokens: Ragged, tick: Tick = no_tick) -> FLOATS:
        """Unit vectors float32 [n, dim] of texts given as ids int32 without special tokens; an empty text has one too.

        A text's vector does not depend on the others, to float32's rounding. `tick` is told which are done.
        """
        out = np.empty((len(tokens), self.dim), dtype=np.float32)
        for start in range(0, len(tokens), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(tokens)))
            bags = _bags(tokens.take(rows), self.limit).weighted(self.rarity)
            pooled = bags.pool(self.table) + self.shift
            vectors = _nearness(pooled, self.centres) @ self.head[: len(self.centres)]
            vectors += pooled @ self.head[len(self.centres) :] + self.bias
            out[rows] = _unit(vectors)
            tick(rows)
        return out

    def save(self, folder: Path) -> None:
        """Writes two files into a folder that exists."""
        arrays = {name: np.ascontiguousarray(a) for name, a in vars(self).items() if isinstance(a, np.ndarray)}
        save_file(arrays, str(folder / ARRAYS))
        (folder / FACTS).write_text(json.dumps({"limit": self.limit}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> StaticModel:
        """What `save` wrote.

        Raises:
            ModelError: it is not there, or not whole.
        """
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            return cls(limit=facts["limit"], **load_file(folder / ARRAYS))
        except Exception as error:  # safetensors' own exception derives from Exception alone
            raise ModelError(f"{folder} does not hold a whole static encoder: fit it again") from error


def distil(encode: Callable[[Ragged], FLOATS], vocabulary: int) -> FLOATS:
    """Each token through the model by itself: unit vectors float32 [vocabulary, dim], of unknown scale to one another.

    What they are worth at a sample of 8,000: recall 0.50 with them, 0.49 with the model's own input embeddings in their
    place, 0.46 with zeros. What they cost: about the time of 1,000 passages.

    Args:
        encode: the model, ids without special tokens (it puts its own around them) to vectors.
        vocabulary: how many tokens there are.
    """
    one_each = Ragged(np.arange(vocabulary, dtype=np.int32), np.arange(vocabulary + 1, dtype=np.int64))
    return _unit(encode(one_each))


def fit_static(
    tokens: Ragged,
    vectors: FLOATS,
    distilled: FLOATS,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> StaticModel:
    """Fits a static encoder to a model's vectors of a sample. Equal arguments and threads give equal arrays.

    Args:
        tokens: n sampled texts as ids int32 without special tokens.
        vectors: float32 [n, dim], the model's unit vectors of those texts.
        distilled: float32 [vocabulary, dim], see `distil`.
        limit: see `StaticModel`.
        seed: chooses the centres.
        progress: told each stage as it begins.
    """
    progress("comparing texts")
    bags = _bags(tokens, limit)
    rarity = bags.rarity(len(distilled))
    bags = bags.weighted(rarity)
    # The tokens' common direction would make every two texts alike.
    spread = _unit(distilled - distilled[np.unique(bags.tokens)].mean(axis=0))
    meant = bags.pool(spread)
    middle = meant.mean(axis=0)
    meant -= middle
    # Alike in meaning counts as much as alike in tokens.
    scale = 1 / np.sqrt(np.square(meant).sum(axis=1).mean() + 1e-12)
    meant *= scale

    progress("fitting token vectors")
    mean = vectors.mean(axis=0)
    wanted = vectors - mean
    # Distilled vectors lie in the model's own space, so as they are they say something: the fit is of what is left.
    worth = float((meant * wanted).sum() / (np.square(meant).sum() + 1e-12))
    weights, left_out = _kernel_ridge(_gram(bags, meant, len(distilled)), wanted - worth * meant)
    left_out += worth * meant
    from_meaning = scale * (meant.T @ weights + worth * np.eye(len(mean), dtype=np.float32))
    table = bags.pool_back(weights, len(distilled)) + spread @ from_meaning

    progress("fitting the head")
    rows = np.random.default_rng(seed).permutation(len(wanted))[:CENTRES]
    centres = _unit(left_out[rows])
    head, bias = _fit_head(left_out, centres, wanted)
    return StaticModel(limit, rarity, table, -(middle @ from_meaning), centres, head, bias + mean)


@dataclass(frozen=True)
class _Bags:
    """Texts as bags of distinct tokens: text i has entries ``offsets[i]:offsets[i + 1]``.

    Attributes:
        tokens: int64 [entries], ascending within a text.
        offsets: int64 [texts + 1].
        weights: float32 [entries].
    """

    tokens: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    weights: FLOATS

    @property
    def texts(self) -> npt.NDArray[np.int64]:
        """The text of each entry."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def rarity(self, vocabulary: int) -> FLOATS:
        """The root of the inverse document frequency: all of it gives rare tokens too much of a regression's say."""
        texts = np.bincount(self.tokens, minlength=vocabulary)
        return np.asarray(np.sqrt(np.log((len(self.offsets) + 0.5) / (texts + 0.5))), dtype=np.float32)

    def weighted(self, rarity: FLOATS) -> _Bags:
        """Weights times `rarity`, then of unit norm over a text."""
        weights = self.weights * rarity[self.tokens]
        squares = np.bincount(self.texts, np.square(weights), minlength=len(self.offsets) - 1)
        weights /= np.sqrt(squares + 1e-12)[self.texts].astype(np.float32)
        return _Bags(self.tokens, self.offsets, weights)

    def pool(self, table: FLOATS, first: int = 0) -> FLOATS:
        """Weighted sums of rows of `table` [vocabulary, d]: float32 [texts from `first` on, d]."""
        start = int(self.offsets[first])
        return _pool(self.tokens[start:], self.offsets[first:] - start, self.weights[start:], table)

    def pool_back(self, per_text: FLOATS, vocabulary: int) -> FLOATS:
        """The transpose: weighted sums over the texts that hold a token, float32 [vocabulary, d]."""
        order = np.argsort(self.tokens, kind="stable")
        offsets = np.searchsorted(self.tokens[order], np.arange(vocabulary + 1))
        return _pool(self.texts[order], offsets, self.weights[order], per_text)


def _bags(tokens: Ragged, limit: int | None) -> _Bags:
    """Weights ``log(1 + count)``. Counting is one sort of all tokens of all texts, with the text in the upper bits."""
    if limit is not None:
        tokens = tokens.cut(tokens.offsets[:-1], np.minimum(tokens.lengths, limit))
    keys = np.repeat(np.arange(len(tokens)) << 32, tokens.lengths) | tokens.values
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(first, append=len(keys))
    keys = keys[first]
    offsets = np.searchsorted(keys, np.arange(len(tokens) + 1) << 32)
    return _Bags(keys & 0xFFFFFFFF, offsets, np.log1p(counts).astype(np.float32))


def _pool(rows: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], weights: FLOATS, table: FLOATS) -> FLOATS:
    import torch

    sums = torch.nn.functional.embedding_bag(
        torch.from_numpy(rows),
        torch.from_numpy(table),
        torch.from_numpy(offsets),
        mode="sum",
        per_sample_weights=torch.from_numpy(weights),
        include_last_offset=True,
    )
    return np.asarray(sums.numpy())


def _gram(bags: _Bags, meant: FLOATS, vocabulary: int) -> FLOATS:
    """Similarities float32 [n, n], by tokens and by meaning. Only the lower triangle is filled; no more is read of it.

    Texts are sparse and their similarities are not: a block of texts is written out as a dense table, and all texts
    below it are pooled over that.
    """
    n = len(bags.offsets) - 1
    gram = np.zeros((n, n), dtype=np.float32)
    for start in range(0, n, GRAM_BLOCK):
        stop = min(start + GRAM_BLOCK, n)
        mine = slice(int(bags.offsets[start]), int(bags.offsets[stop]))
        dense = np.zeros((vocabulary, stop - start), dtype=np.float32)
        dense[bags.tokens[mine], bags.texts[mine] - start] = bags.weights[mine]
        gram[start:, start:stop] = bags.pool(dense, first=start) + meant[start:] @ meant[start:stop].T
    return gram


def _kernel_ridge(gram: FLOATS, wanted: FLOATS) -> tuple[FLOATS, FLOATS]:
    """(the texts' weights [n, dim], what each text is predicted to be from all others [n, dim]).

    Args:
        gram: of which the lower triangle is read; the factor and its inverse take its memory.
    """
    from scipy.linalg import cho_solve, cholesky
    from scipy.linalg.lapack import strtri

    gram[np.diag_indices_from(gram)] += RIDGE
    factor = cholesky(gram.T, overwrite_a=True, check_finite=False)  # LAPACK stores columns: its upper triangle
    weights = cho_solve((factor, False), wanted, check_finite=False)
    inverse, _ = strtri(factor, overwrite_c=True)
    diagonal = np.zeros(len(gram), dtype=np.float32)
    for start in range(0, len(gram), GRAM_BLOCK):
        diagonal += np.square(inverse.T[start : start + GRAM_BLOCK]).sum(axis=0)
    return weights, wanted - weights / diagonal[:, None]


def _fit_head(pooled: FLOATS, centres: FLOATS, wanted: FLOATS) -> tuple[FLOATS, FLOATS]:
    """(head, bias) of `StaticModel`: ridge in the centres' own similarity, in float64 since centres are much alike."""
    inputs = np.concatenate([_nearness(pooled, centres), pooled], axis=1).astype(np.float64)
    middle, m = inputs.mean(axis=0), len(centres)
    inputs -= middle
    penalty = np.eye(inputs.shape[1]) * 1e-3
    penalty[:m, :m] += _nearness(centres, centres)
    penalty[m:, m:] += np.eye(inputs.shape[1] - m)
    head = np.linalg.solve(inputs.T @ inputs + HEAD_RIDGE * penalty, inputs.T @ wanted)
    return head.astype(np.float32), -(middle @ head).astype(np.float32)


def _nearness(pooled: FLOATS, centres: FLOATS) -> FLOATS:
    """1 at a centre and ``exp(-2)`` opposite: ``exp(-|a - b|^2 / 2)`` of unit vectors, float32 [n, m]."""
    return np.asarray(np.exp(_unit(pooled) @ centres.T - 1))


def _unit(vectors: FLOATS) -> FLOATS:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
