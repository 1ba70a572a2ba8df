"""Exact search as a stream: every query against every passage, shard by shard, no index and no corpus in memory.

Scores come from matrix products in the fastest number format that the device has, bfloat16 where it is twice as fast as
float32, and are wrong by at most a bound that is known: for vectors p and q rounded to p' and q',
``|pq - p'q'| <= |p - p'||q| + |p'||q - q'|`` (Cauchy-Schwarz) and what the product itself rounds. A passage is left out
only where its score is below a query's k-th best by more than that. The rest, a few in ten thousand, are scored again
in float32 by one routine for all, so neighbours and scores do not depend on format, threads, batch or block.

A tile's scores are looked at by the maximum of 16 passages, which costs a tenth of the product.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.errors import NearkinError
from selection.index.ranking import MOST_PASSAGES, Ids, Ranking, Scores

TILE_PASSAGES = 2048
TILE_QUERIES = 2048
GROUP = 16
PAIRS = 65_536
TRIAL_SIZE = 1024
WORTH = 1.25

Vectors = npt.NDArray[np.float32]


def exact_search(
    blocks: Iterable[npt.NDArray[np.float16]],
    queries: Vectors,
    k: int,
    device: str | None = None,
    number: str | None = None,
    tick: Callable[[int], object] = lambda rows: None,
) -> tuple[Scores, Ids]:
    """The `k` passages of each query with the largest inner products.

    Memory is a block's, two tiles', and 8 bytes a neighbour.

    Args:
        blocks: float16 [rows, dim] each, in doc_id order.
        queries: float32 [n, dim].
        k: neighbours a query, at least 1.
        device: where products are formed; None or ``auto`` is the first CUDA GPU, else the CPU.
        number: ``float32``, ``bfloat16`` or ``float16``; None is the fastest on the device.
        tick: told how many passages were searched.

    Returns:
        float32 [n, k] and int64 [n, k], best first, equal scores in doc_id order; -inf and -1 where there are fewer.

    Raises:
        NearkinError: vectors that are not finite, or of another length.
    """
    search = _Search(queries, k, search_device(device), number)
    first = 0
    for block in blocks:
        search.add(block, first)
        first += len(block)
        tick(len(block))
    return search.ranking.best()


def search_device(device: str | None) -> str:
    """The one device that exact search runs on, of those named with commas between them."""
    import torch

    if device in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(device).split(",")[0]


class _Search:
    def __init__(self, queries: Vectors, k: int, device: str, number: str | None) -> None:
        import torch

        if not np.isfinite(queries).all():
            raise NearkinError("a query vector holds numbers that are not finite")
        self.device = torch.device(device)
        self.kind = getattr(torch, number or fastest_number(device))
        self.queries = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self.device)
        self.rounded = self.queries.to(self.kind)
        self.norms = self.queries.norm(dim=1)
        self.errors = (self.queries - self.rounded.float()).norm(dim=1)
        self.ranking = Ranking(len(queries), k)

    def add(self, block: npt.NDArray[np.float16], first: int) -> None:
        import torch

        if block.shape[1] != self.queries.shape[1]:
            raise NearkinError(f"passages have {block.shape[1]} dimensions and queries {self.queries.shape[1]}")
        if first + len(block) > MOST_PASSAGES:
            raise NearkinError(f"exact search takes at most {MOST_PASSAGES:,} passages")
        with torch.inference_mode():
            vectors = as_tensor(block).to(self.device).float()
            rounded = vectors.to(self.kind)
            error = (vectors - rounded.float()).norm(dim=1).amax()
            length = vectors.norm(dim=1).amax()
            if not torch.isfinite(length):
                raise NearkinError(f"passages {first} to {first + len(block) - 1} have vectors that are not finite")
            # The last term is of float32 sums. Rounding a sum to the format keeps order, so it costs nothing.
            sums = self.queries.shape[1] * torch.finfo(torch.float32).eps
            margin = error * self.norms + (length + error) * self.errors + sums * length * self.norms
            for start in range(0, len(block), TILE_PASSAGES):
                tile = slice(start, start + TILE_PASSAGES)
                for at in range(0, len(self.queries), TILE_QUERIES):
                    self._tile(vectors[tile], rounded[tile], first + start, slice(at, at + TILE_QUERIES), margin)

    def _tile(self, vectors: Any, rounded: Any, first: int, part: slice, margin: Any) -> None:
        import torch

        scores = rounded @ self.rounded[part].T
        floor = torch.from_numpy(self.ranking.floor[part]).to(self.device)
        if not torch.isfinite(floor).all() and len(vectors) >= self.ranking.k:
            seed = scores.float().topk(self.ranking.k, dim=0).values[-1]
            floor = torch.maximum(floor, seed - seed.abs() * torch.finfo(self.kind).eps - margin[part])
        least = (floor - margin[part]).to(self.kind)
        rows, whole = len(scores), len(scores) // GROUP * GROUP
        groups = scores[:whole].view(whole // GROUP, GROUP, scores.shape[1])
        group, query = (groups.amax(dim=1) >= least).nonzero(as_tuple=True)
        pair, member = (groups[group, :, query] >= least[query, None]).nonzero(as_tuple=True)
        passage, query = group[pair] * GROUP + member, query[pair]
        if whole < rows:
            rest, other = (scores[whole:] >= least).nonzero(as_tuple=True)
            passage, query = torch.cat([passage, rest + whole]), torch.cat([query, other])
        self._offer(vectors, first, passage, query + part.start)

    def _offer(self, vectors: Any, first: int, passage: Any, query: Any) -> None:
        """Scores pairs in float32, one by one, and hands over those that are good enough."""
        for start in range(0, len(passage), PAIRS):
            passages, queries = passage[start : start + PAIRS], query[start : start + PAIRS]
            scores = pair_scores(vectors[passages], self.queries[queries]).cpu().numpy()
            rows = queries.cpu().numpy()
            good = scores >= self.ranking.floor[rows]
            self.ranking.add(rows[good], scores[good], first + passages.cpu().numpy()[good])


def as_tensor(block: npt.NDArray[Any]) -> Any:
    """The array as a tensor without a copy; torch warns of memory-mapped ones, which are only read here."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(block)


def pair_scores(passages: Any, queries: Any) -> Any:
    """Inner products float32 [n] of two float32 tensors [n, dim], each row's in the same order of addition."""
    return (passages * queries).sum(dim=1)


@functools.cache
def fastest_number(device: str) -> str:
    """The format whose products are fastest on the device, by a trial of a few milliseconds; float16 on CUDA."""
    import torch

    if torch.device(device).type != "cpu":
        return "float16" if torch.device(device).type == "cuda" else "float32"
    taken = {}
    for number in ("float32", "bfloat16"):
        left = torch.ones(TRIAL_SIZE, 384, dtype=getattr(torch, number))
        out = torch.empty(TRIAL_SIZE, TRIAL_SIZE, dtype=left.dtype)
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            torch.mm(left, left.T, out=out)
            times.append(time.perf_counter() - begun)
        taken[number] = min(times)
    return "bfloat16" if WORTH * taken["bfloat16"] < taken["float32"] else "float32"
