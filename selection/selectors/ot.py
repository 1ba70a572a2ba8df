"""OT: the passages that bring the corpus nearest to the task in optimal transport (GOT-D, Kang et al. 2024, "Get more
for less: Principled data selection for warming up fine-tuning in LLMs").

How much a little more mass on passage i changes the distance is its dual potential f_i, less the mean of the others'
(the calibrated gradient of LAVA, Just et al. 2023, section 3.2). The most negative come first.

The transport is entropic, at cost 1 - cosine. It is solved between the task and random batches of the corpus; the
task's potentials g, averaged over batches, give those of all passages in one pass::

    f_i = -blur * log mean_j exp((g_j - cost_ij) / blur)

Cost: a product of all passages with the task and as many exponentials. Memory: five times `batch_size` x examples
float32, 1.3 GB at most with the defaults, whatever the corpus.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.devices import search_devices, suit_cuda
from selection.drawing import draw
from selection.embedding import Embeddings
from selection.errors import MissingPackageError, NearkinError
from selection.selectors import Pool
from selection.selectors.ranked import Ranked, Scored

log = logging.getLogger(__name__)

ITERATIONS = 500
TOLERANCE = 1e-5  # of the marginals
FAR = 100  # times the tolerance, past which it is told
TILE = 1024
EVEN = 64

Vectors = npt.NDArray[np.float32]


@dataclass
class OtSelector:
    """See `selection.selectors.Selector`. Its score is the calibrated gradient with its sign turned; it has no query.

    Attributes:
        blur: entropic regularisation, in units of 1 - cosine; less follows single examples more closely.
        batches, batch_size: the transport is solved with so many random batches of so many passages.
        examples: task examples at most, a random part of more.
    """

    blur: float = 0.02
    batches: int = 4
    batch_size: int = 8192
    examples: int = 8192
    name: ClassVar[str] = "ot"
    _ranked: Ranked = field(default_factory=Ranked, init=False, repr=False, compare=False)
    _mean: float = field(default=0.0, init=False, repr=False, compare=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        if not 0 < self.blur < np.inf or min(self.batches, self.batch_size, self.examples) < 1:
            raise NearkinError("ot: blur must be above 0, and batches, batch_size and examples at least 1")
        embeddings = pool.all_embeddings(self.name)
        suit_cuda()  # what products lose there to other formats is divided by blur
        found = self._ranked.best(pool.count(k, wanted), lambda: self._scan(pool, embeddings))
        others = len(embeddings) / max(len(embeddings) - 1, 1)
        scores = (found["score"].to_numpy().astype(np.float64) + self._mean) * others
        return found.set_column(1, found.schema.field("score"), pa.array(scores.astype(np.float32)))

    def _scan(self, pool: Pool, embeddings: Embeddings) -> Iterator[Scored]:
        queries, device = pool.queries, search_devices(pool.device)[0]
        if len(queries) > self.examples:
            queries = queries[np.sort(draw(len(queries), self.examples, pool.seed))]
        potentials = self._task_potentials(embeddings, queries, pool.seed, device)
        total = 0.0
        for shard, block in enumerate(embeddings):
            found = passage_potentials(block, queries, potentials, self.blur, device)
            total += float(found.sum(dtype=np.float64))
            first = int(embeddings.offsets[shard])
            yield -found, np.arange(first, first + len(found)), None
        self._mean = total / len(embeddings)

    def _task_potentials(self, embeddings: Embeddings, queries: Vectors, seed: int, device: str) -> Vectors:
        """g float32 [examples]: the mean over batches that have no passage in common."""
        size = min(self.batch_size, len(embeddings))
        batches = min(self.batches, len(embeddings) // size)
        drawn = draw(len(embeddings), batches * size, seed).reshape(batches, size)
        found = [task_potentials(embeddings.take(np.sort(rows)), queries, self.blur, device) for rows in drawn]
        return np.asarray(np.mean(found, axis=0, dtype=np.float64), np.float32)


def task_potentials(passages: Vectors, queries: Vectors, blur: float, device: str = "cpu") -> Vectors:
    """The task's dual potentials g of entropic transport between two uniform sets of unit vectors.

    Args:
        passages: float32 [n, dim].
        queries: float32 [m, dim].
        blur: the regularisation.

    Returns:
        float32 [m], of mean 0.

    Raises:
        MissingPackageError: POT is not installed.
    """
    import torch

    with torch.inference_mode():
        left, right = (torch.from_numpy(np.ascontiguousarray(v)).to(device) for v in (passages, queries))
        cost = _products(left, right).neg()
        # What is taken off rows and columns goes into the potentials. With a zero in each, no sum of kernels vanishes.
        cost -= cost.amin(dim=1, keepdim=True)
        least = cost.amin(dim=0)
        cost -= least
        found = least + blur * _log_scaling(cost, blur)
        return np.asarray((found - found.mean()).cpu(), np.float32)


def _log_scaling(cost: Any, blur: float) -> Any:
    """log v of Sinkhorn's u K v by POT, in logarithms where the plain form leaves float32's range."""
    import torch

    try:
        import ot
    except ImportError as error:
        raise MissingPackageError("method ot needs the package POT: pip install POT") from error
    mass = [torch.full((side,), 1 / side, device=cost.device) for side in cost.shape]
    settings = {"numItermax": ITERATIONS, "stopThr": TOLERANCE / len(mass[1]) ** 0.5, "log": True, "warn": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers out of range, after which logarithms are taken
        _, found = ot.bregman.sinkhorn_knopp(*mass, cost, blur, **settings)
    scaling = found["v"].log()
    finite = bool(torch.isfinite(scaling).all() and torch.isfinite(found["u"]).all() and (found["u"] > 0).all())
    # Out of range, POT stops and gives its last numbers within it, far from a solution though they may be.
    ended = _error(found) <= settings["stopThr"] or found["niter"] == ITERATIONS - 1
    if not (finite and ended):
        _, found = ot.bregman.sinkhorn_log(*mass, cost, blur, **settings)
        scaling = found["log_v"]
    left = _error(found) * len(mass[1]) ** 0.5
    if not left <= FAR * TOLERANCE:
        log.warning(
            "ot: the transport is solved to %.1e of the task's mass after %d steps, %.0e was aimed at: a larger "
            "blur than %g is solved sooner",
            left,
            ITERATIONS,
            TOLERANCE,
            blur,
        )
    return scaling


def _error(found: Any) -> float:
    """The last error of the marginals that POT tells; NaN where it stopped before it had any."""
    return float(found["err"][-1]) if found["err"] else float("nan")


def passage_potentials(
    passages: npt.NDArray[np.floating], queries: Vectors, potentials: Vectors, blur: float, device: str = "cpu"
) -> Vectors:
    """f of passages, given the task's g: the c-transform, `TILE` passages at a time.

    Args:
        passages: float16 or float32 [n, dim], of unit norm.
        queries: float32 [m, dim], of unit norm.
        potentials: g, float32 [m].

    Returns:
        float32 [n].
    """
    import torch

    found = np.empty(len(passages), dtype=np.float32)
    with torch.inference_mode():
        right = torch.from_numpy(queries / np.float32(blur)).to(device)
        shift = (torch.from_numpy(potentials).to(device) - 1) / blur
        for start in range(0, len(passages), TILE):
            part = slice(start, start + TILE)
            left = torch.from_numpy(np.array(passages[part], dtype=np.float32)).to(device)
            found[part] = torch.logsumexp(_products(left, right).add_(shift), dim=1).cpu().numpy()
    return np.asarray(blur * (np.log(len(queries)) - found.astype(np.float64)), np.float32)


def _products(left: Any, right: Any) -> Any:
    """Inner products [n, m] of rows, in shapes whose sums do not depend on the number of threads."""
    import torch

    left_even, right_even = (torch.nn.functional.pad(v, (0, 0, 0, -len(v) % EVEN)) for v in (left, right))
    return (left_even @ right_even.T)[: len(left), : len(right)]
