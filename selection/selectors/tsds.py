"""TSDS: every task example's mass is spread over its nearest passages, less on near copies (Liu et al. 2024, "TSDS:
Data Selection for Task-Specific Model Finetuning", KNN-KDE).

Over M task examples i and passages j at distance d, of density rho (about how many passages say nearly the same)::

    min  alpha / C * sum gamma_ij d_ij  +  (1 - alpha) M max rho_j |gamma_ij - u_j|,   u_j ~ 1 / rho_j,
    where the sums of gamma_i and of u are 1 / M each

The first term keeps mass near the task, the second spreads it. The solution fills an example's passages from the
nearest on, 1 / (M s rho_j) each; one s for all says how far. A passage is drawn by the mass that it gets from all.

Cost: exact search for `neighbours` passages an example and one among those that it found; memory is about 100 bytes a
pair of example and neighbour, of which there are at most `MOST_PAIRS`, and `KEY_BYTES` of densities that are found at
once. The passages found stand in a file meanwhile, where the system keeps such (``TMPDIR``), 2 bytes a dimension.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.embedding import Embeddings
from selection.errors import NearkinError, explain_os_error
from selection.index.exact import exact_search
from selection.selectors import CANDIDATES, Pool
from selection.selectors.knn import KnnSelector
from selection.selectors.ranked import candidate_table, gumbel

log = logging.getLogger(__name__)

MOST_PAIRS = 16_000_000
BLOCK = 8192
KEY_BYTES = 100_000_000

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def probabilities(
    distances: npt.NDArray[np.floating], densities: npt.NDArray[np.floating], alpha: float, c: float
) -> Floats:
    """How much mass each example sends to each of its neighbours (Liu et al. 2024, section 4, algorithms 1 and 2).

    Each row fills its passages in order; the cost of going further only grows with s, so the events at which a row
    takes up its next passage are sorted once and added up until the cost outweighs the spread. A row that comes to its
    last neighbour leaves the rest there.

    Args:
        distances: [M, K], ascending in each row.
        densities: [M, K], rho of the same passages, above 0.
        alpha: weight of the distances, in [0, 1]; 1 takes the nearest alone, 0 spreads over all.
        c: the scale of distances, above 0.

    Returns:
        float64 [M, K], each row's sum 1 / M.

    Raises:
        NearkinError: alpha or c out of range.
    """
    if not (0 <= alpha <= 1 and c > 0):
        raise NearkinError(f"tsds: alpha must be from 0 to 1 and c above 0, not {alpha} and {c}")
    rows, width = distances.shape
    if width == 1:
        return np.full((rows, 1), 1 / rows)
    weights = 1 / np.asarray(densities, np.float64)
    filled = np.cumsum(weights, axis=1)
    largest = _spread(np.asarray(distances, np.float64), weights, filled, alpha, c)
    filled[:, -1] = np.inf
    np.minimum(filled, largest, out=filled)
    mass: Floats = np.diff(filled, axis=1, prepend=0) / (rows * largest)
    return mass


def _spread(distances: Floats, weights: Floats, filled: Floats, alpha: float, c: float) -> float:
    """s: the first event at which moving on costs at least what spreading is worth, or the last event there is."""
    # Having filled j passages and moving on to the next costs a row sum_(i <= j) w_i (d_(j+1) - d_i), which grows by
    # filled_j * (d_(j+1) - d_j) with every event.
    steps = (filled[:, :-1] * np.diff(distances, axis=1)).reshape(-1)
    events = filled[:, :-1].reshape(-1)
    order = np.argsort(events, kind="stable")
    steps = steps[order]
    np.cumsum(steps, out=steps)
    # Rows differ in when, not in what: the sum over rows is the sum of their steps so far.
    first = int(np.searchsorted(alpha / c * steps, (1 - alpha) * len(distances)))
    return float(events[order[min(first, len(order) - 1)]])


@dataclass
class TsdsSelector:
    """See `selection.selectors.Selector`. Its score is the probability p of a passage; its query sends the most of it.

    Where more passages are wanted than have any mass, others follow with score 0, as `knn` ranks and counts them.

    Attributes:
        draw: ``gumbel``, without replacement in proportion to p; or ``top``, by p.
        alpha: from 0 (spread as far as neighbours go) to 1 (the nearest passages alone).
        c: the scale of distances, which are Euclidean between unit vectors.
        sigma: passages nearer than this count as near copies of each other, the more the nearer; 0 counts none.
        neighbours: passages a task example at most; fewer where they would be more than `MOST_PAIRS`.
        kde_neighbours: near copies that are counted at most, the passage itself included.
    """

    draw: Literal["gumbel", "top"] = "gumbel"
    alpha: float = 0.6
    c: float = 5.0
    sigma: float = 0.75
    neighbours: int = 500
    kde_neighbours: int = 100
    name: ClassVar[str] = "tsds"
    _massive: pa.Table | None = field(default=None, init=False, repr=False, compare=False)
    _nearest: KnnSelector = field(default_factory=KnnSelector, init=False, repr=False, compare=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        if self._massive is None:
            self._massive = self._solve(pool)
        count = pool.count(k, wanted)
        if count <= len(self._massive):
            return self._massive.slice(0, count)
        nearest = self._nearest.candidates(pool, None, count)
        return _followed(self._massive, nearest).slice(0, count)

    def _solve(self, pool: Pool) -> pa.Table:
        """`CANDIDATES` of all passages with mass, in the order drawn."""
        if self.neighbours < 1 or self.kde_neighbours < 1 or not 0 <= self.sigma < np.inf:
            raise NearkinError("tsds: neighbours and kde_neighbours must be at least 1, and sigma not below 0")
        rows = len(pool.task.train_texts)
        width = max(1, min(self.neighbours, len(pool.corpus), MOST_PAIRS // rows))
        if width < min(self.neighbours, len(pool.corpus)):
            log.warning("tsds takes %d neighbours a task example, since there are %d examples", width, rows)
        scores, ids = _as_arrays(pool, rows, width)
        found, place = np.unique(ids, return_inverse=True)
        place = place.reshape(ids.shape)
        distances = np.sqrt(np.maximum(2 - 2 * scores, 0))
        density = densities(pool, found, self.kde_neighbours, self.sigma)[place]
        mass = probabilities(distances, density, self.alpha, self.c)
        ran_out = float((mass[:, -1] > 0).mean())
        log.info("tsds: near copies %.2f on average, %.0f%% of rows use all neighbours", density.mean(), 100 * ran_out)
        return self._ranked(found, place, mass, pool.seed)

    def _ranked(self, found: Ids, place: npt.NDArray[np.intp], mass: Floats, seed: int) -> pa.Table:
        row, column = np.nonzero(mass)
        passage, sent = place[row, column], mass[row, column]
        total: Floats = np.asarray(np.bincount(passage, sent, minlength=len(found)), np.float64)
        queries = np.bincount(passage, minlength=len(found))
        order = np.lexsort((row, -sent, passage))
        drawn, first = np.unique(passage[order], return_index=True)
        most = row[order][first]
        ranked = np.log(total[drawn])
        if self.draw == "gumbel":
            ranked = ranked + next(gumbel(seed, self.name, [len(drawn)]))
        best = np.lexsort((drawn, -ranked))
        chosen = drawn[best]
        return candidate_table(found[chosen], total[chosen], most[best], queries[chosen])


def densities(pool: Pool, doc_ids: Ids, neighbours: int, sigma: float) -> Floats:
    """Kernel density float64 [n] of passages among themselves: sum of max(0, 1 - d^2 / sigma^2), itself included.

    By the embeddings that are searched; a cascade's cheap ones know near copies too.

    Args:
        doc_ids: ascending.
        neighbours: the nearest so many are summed.
    """
    found = np.ones(len(doc_ids))
    if sigma == 0:
        return found
    k = min(neighbours, len(doc_ids))
    at_once = max(BLOCK, KEY_BYTES // (8 * k))
    with _gathered(pool.embeddings, doc_ids) as vectors:
        sample = vectors[:: -(-len(doc_ids) // BLOCK)]
        for start in range(0, len(doc_ids), at_once):
            part = slice(start, start + at_once)
            blocks = (vectors[at : at + BLOCK] for at in range(0, len(doc_ids), BLOCK))
            scores, _ = exact_search(blocks, vectors[part].astype(np.float32), k, pool.device, sample=sample)
            squares = np.maximum(2 - 2 * scores.astype(np.float64), 0)
            kernel = np.maximum(1 - squares / sigma**2, 0)
            found[part] = np.maximum(kernel.sum(axis=1), 1)
    return found


@contextlib.contextmanager
def _gathered(embeddings: Embeddings, doc_ids: Ids) -> Iterator[npt.NDArray[np.float16]]:
    """Vectors float16 [n, dim] of doc_ids, ascending, in a file that is read where it lies and then gone."""
    with tempfile.TemporaryFile() as file:
        try:
            for _, vectors in embeddings.parts(doc_ids):
                file.write(np.ascontiguousarray(vectors).data)
            file.flush()
        except OSError as error:
            raise explain_os_error(error, f"writing to {tempfile.gettempdir()}, or where TMPDIR says,") from error
        yield np.asarray(np.memmap(file, np.float16, "r", shape=(len(doc_ids), embeddings.dim)))


def _as_arrays(pool: Pool, rows: int, width: int) -> tuple[npt.NDArray[np.float32], Ids]:
    """Scores float32 and doc_ids int64 of all neighbours, [rows, width]; `width` shrinks where some have fewer."""
    scores, ids = np.full((rows, width), -1, np.float32), np.full((rows, width), -1, np.int64)
    for block in pool.neighbours(width):
        row, column = block["query_id"].to_numpy(), block["rank"].to_numpy() - 1
        scores[row, column], ids[row, column] = block["score"].to_numpy(), block["doc_id"].to_numpy()
    least = max(1, int((ids >= 0).sum(axis=1).min()))
    return scores[:, :least], ids[:, :least]


def _followed(first: pa.Table, after: pa.Table) -> pa.Table:
    """`first`, then what `after` has besides, with score 0."""
    rest = after.filter(pa.array(~np.isin(after["doc_id"].to_numpy(), first["doc_id"].to_numpy())))
    doc_ids, query_ids, n_queries = (rest[name].to_numpy() for name in ("doc_id", "query_id", "n_queries"))
    rest = candidate_table(doc_ids, np.zeros(len(rest)), query_ids, n_queries)
    both = pa.concat_tables([first, rest])
    return both.set_column(2, CANDIDATES.field("rank"), pa.array(np.arange(1, len(both) + 1), pa.int32()))
