"""Exact search as a stream: every query against every passage, shard by shard, no index and no corpus in memory.

Scores come from matrix products in the fastest number format that the device has, bfloat16 where it is twice as fast as
float32, and are wrong by at most a bound that is known: for vectors p and q rounded to p' and q',
``|pq - p'q'| <= |p - p'||q| + |p'||q - q'|`` (Cauchy-Schwarz) and what the product itself rounds. A passage is left out
only where its score is below a query's k-th best by more than that. The rest, a few in ten thousand, are scored again
in float32 by one routine for all, so neighbours and scores do not depend on format, threads, batch or block.

A tile's scores are looked at by the maximum of 16 passages, which costs a tenth of the product.
"""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.devices import search_devices
from selection.embedding import Embeddings
from selection.errors import NearkinError
from selection.index.ranking import MOST_PASSAGES, Ids, Ranking, Scores

TILE_PASSAGES = 1024
GPU_TILE_PASSAGES = 32_768  # more than a shard: a tile waits for the CPU several times
TILE_QUERIES = 4096
GROUP = 16
PAIRS = 2048
GPU_PAIRS = 65_536
TRIAL_SIZE = 1024
WORTH = 1.25
SAMPLED = 16
MOST_SAMPLED = 65_536
SAMPLE_FROM = 32_768
FEW = 4
FEW_PASSAGES = 16_777_216
LONGEST = 1.001  # of a unit vector in float16

Vectors = npt.NDArray[np.float32]


def exact_search(
    blocks: Iterable[npt.NDArray[np.float16]],
    queries: Vectors,
    k: int,
    device: str | None = None,
    number: str | None = None,
    sample: npt.NDArray[np.float16] | None = None,
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
        sample: float16 [any, dim], passages from all over `blocks`: their k best are what others must reach from the
            start, so that fewer are scored again. It changes no result.
        tick: told how many passages were searched.

    Returns:
        float32 [n, k] and int64 [n, k], best first, equal scores in doc_id order; -inf and -1 where there are fewer.

    Raises:
        NearkinError: vectors that are not finite, or of another length.
    """
    search = _Search(queries, k, search_devices(device)[0], number)
    with _full_sums():
        if sample is not None:
            search.seed(sample)
        first = 0
        for block in blocks:
            if len(block):
                search.add(block, first)
            first += len(block)
            tick(len(block))
    return search.ranking.best()


@contextlib.contextmanager
def _full_sums() -> Iterator[None]:
    """CUDA may else add up parts of a product in the format of its factors, which the bound does not know of."""
    import torch

    settings = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = {name: getattr(settings, name) for name in names}
    try:
        for name in names:
            setattr(settings, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def stream_search(
    embeddings: Embeddings,
    queries: Vectors,
    k: int,
    device: str | None = None,
    tick: Callable[[int], object] = lambda rows: None,
) -> tuple[Scores, Ids]:
    """`exact_search` over a store's embeddings, read shard by shard from where they lie.

    Args:
        device: one, or several with commas between them, who share the shards; None or ``auto`` is every CUDA GPU, else
            the CPU.
    """
    devices = search_devices(device)
    if len(queries) <= FEW and len(embeddings) <= FEW_PASSAGES and devices == ["cpu"] and _half_is_exact():
        return _few_search(embeddings, queries, k)
    many = len(embeddings) >= SAMPLE_FROM
    sample = embeddings.sample(min(len(embeddings) // SAMPLED, MOST_SAMPLED)) if many else None

    def search(number: int) -> tuple[Scores, Ids]:
        found = _Search(queries, k, devices[number], None)
        if sample is not None:
            found.seed(sample)
        for shard in range(number, embeddings.shards, len(devices)):
            block = embeddings.shard(shard)
            found.add(block, int(embeddings.offsets[shard]))
            tick(len(block))
        return found.ranking.best()

    with _full_sums():
        if len(devices) == 1:
            return search(0)
        ranking = Ranking(len(queries), k)
        with ThreadPoolExecutor(len(devices)) as pool:
            for scores, ids in pool.map(search, range(len(devices))):
                ranking.add_rows(scores, ids)
        return ranking.best()


def _few_search(embeddings: Embeddings, queries: Vectors, k: int) -> tuple[Scores, Ids]:
    """For a handful of queries: products straight with the float16 that is stored, as fast as memory is read.

    All scores of a query are held at once, 4 bytes a passage; those within the bound of its k-th best are scored again.
    """
    import torch

    ranking = Ranking(len(queries), k)
    with torch.inference_mode():
        for number, query in enumerate(torch.from_numpy(np.ascontiguousarray(queries))):
            half = query.half()
            scores = torch.cat([torch.mv(as_tensor(block), half) for block in embeddings])
            size = float(query.norm()) * LONGEST
            sums = len(query) * torch.finfo(torch.float32).eps
            margin = LONGEST * float((query - half.float()).norm()) + (sums + torch.finfo(torch.half).eps) * size
            least = float(scores.topk(min(k, len(scores))).values[-1]) - 2 * margin
            ids = (scores >= least).nonzero()[:, 0].numpy()
            for positions, vectors in embeddings.parts(ids):
                every = torch.arange(len(positions))
                found = pair_scores(as_tensor(vectors), query[None], every, torch.zeros_like(every)).numpy()
                ranking.add(np.full(len(positions), number), found, ids[positions])
    return ranking.best()


@functools.cache
def _half_is_exact() -> bool:
    """Whether float16 matrix-vector products are summed in float32 here and only then rounded."""
    import torch

    left = torch.randn(512, 384, generator=torch.Generator().manual_seed(0)).half() / 20
    right = left[0]
    error = (torch.mv(left, right).double() - left.double() @ right.double()).abs().max()
    return bool(error <= torch.finfo(torch.half).eps)


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
        self._tile_passages = GPU_TILE_PASSAGES if self.device.type == "cuda" else TILE_PASSAGES
        size = self._tile_passages * min(TILE_QUERIES, len(queries))
        self._tile_memory = torch.empty(size, dtype=self.kind, device=self.device)

    def seed(self, sample: npt.NDArray[np.float16]) -> None:
        """Raises the floors to what `k` passages of the sample reach at least."""
        import torch

        for at in range(0, len(self.queries), TILE_QUERIES):
            part, best, margins = slice(at, at + TILE_QUERIES), [], []
            for start in range(0, len(sample), self._tile_passages):
                with torch.inference_mode():
                    _, rounded, margin = self._rounded(sample[start : start + self._tile_passages])
                    best.append(_group_best(self._products(rounded, part)))
                    margins.append(margin)
            if best:
                self._raise_floor(torch.cat(best), part, torch.stack(margins).amax(dim=0))

    def add(self, block: npt.NDArray[np.float16], first: int) -> None:
        """Searches passages whose doc_ids begin at `first`."""
        import torch

        if block.shape[1] != self.queries.shape[1]:
            raise NearkinError(f"passages have {block.shape[1]} dimensions and queries {self.queries.shape[1]}")
        if first + len(block) > MOST_PASSAGES:
            raise NearkinError(f"exact search takes at most {MOST_PASSAGES:,} passages")
        with torch.inference_mode():
            stored, rounded, margin = self._rounded(block)
            if not torch.isfinite(margin).all():
                raise NearkinError(f"passages {first} to {first + len(block) - 1} have vectors that are not finite")
            for start in range(0, len(block), self._tile_passages):
                tile = slice(start, start + self._tile_passages)
                for at in range(0, len(self.queries), TILE_QUERIES):
                    self._tile(stored[tile], rounded[tile], first + start, slice(at, at + TILE_QUERIES), margin)

    def _rounded(self, block: npt.NDArray[np.float16]) -> tuple[Any, Any, Any]:
        """The block on the device, the same in the fast format, and by how much a query's product may be wrong."""
        import torch

        stored = as_tensor(block).to(self.device)
        vectors, rounded = stored.float(), stored.to(self.kind)
        error = (vectors - rounded.float()).norm(dim=1).amax()
        length = vectors.norm(dim=1).amax()
        # The last term is of float32 sums. Rounding a sum to the format keeps order, so it costs nothing.
        sums = self.queries.shape[1] * torch.finfo(torch.float32).eps
        return stored, rounded, error * self.norms + (length + error) * self.errors + sums * length * self.norms

    def _products(self, rounded: Any, part: slice) -> Any:
        """Inner products [passages, queries], in memory that the next call takes again."""
        import torch

        queries = self.rounded[part]
        out = self._tile_memory[: len(rounded) * len(queries)].view(len(rounded), len(queries))
        return torch.mm(rounded, queries.T, out=out)

    def _raise_floor(self, best: Any, part: slice, margin: Any) -> None:
        """From scores [any, queries] of as many different passages, with what rounding may have added taken off."""
        import torch

        if len(best) >= self.ranking.k:
            least = best.float().topk(self.ranking.k, dim=0).values[-1]
            least = least - least.abs() * torch.finfo(self.kind).eps - margin[part]
            self.ranking.floor[part] = np.maximum(self.ranking.floor[part], least.cpu().numpy())

    def _tile(self, stored: Any, rounded: Any, first: int, part: slice, margin: Any) -> None:
        import torch

        scores = self._products(rounded, part)
        if not np.isfinite(self.ranking.floor[part]).all():
            self._raise_floor(scores, part, margin)
        floor = torch.from_numpy(self.ranking.floor[part]).to(self.device)
        least = (floor - margin[part]).to(self.kind)
        rows, whole = len(scores), len(scores) // GROUP * GROUP
        groups = scores[:whole].view(whole // GROUP, GROUP, scores.shape[1])
        group, query = (groups.amax(dim=1) >= least).nonzero(as_tuple=True)
        pair, member = (groups[group, :, query] >= least[query, None]).nonzero(as_tuple=True)
        passage, query = group[pair] * GROUP + member, query[pair]
        if whole < rows:
            rest, other = (scores[whole:] >= least).nonzero(as_tuple=True)
            passage, query = torch.cat([passage, rest + whole]), torch.cat([query, other])
        self._offer(stored, first, passage, query + part.start)

    def _offer(self, stored: Any, first: int, passage: Any, query: Any) -> None:
        """Scores pairs in float32 and hands over those that are good enough."""
        scores = pair_scores(stored, self.queries, passage, query).cpu().numpy()
        rows = query.cpu().numpy()
        good = scores >= self.ranking.floor[rows]
        self.ranking.add(rows[good], scores[good], first + passage.cpu().numpy()[good])


def _group_best(scores: Any) -> Any:
    """The best of each `GROUP` passages, [whole groups, queries]."""
    groups = len(scores) // GROUP
    return scores[: groups * GROUP].view(groups, GROUP, scores.shape[1]).amax(dim=1)


def as_tensor(block: npt.NDArray[Any]) -> Any:
    """The array as a tensor without a copy; torch warns of memory-mapped ones, which are only read here."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(block)


def pair_scores(passages: Any, queries: Any, passage: Any, query: Any) -> Any:
    """Inner products of pairs of rows, each in the same order of addition; a few at a time, so that they stay in cache.

    Args:
        passages: float16 or float32 tensor [any, dim].
        queries: float32 tensor [any, dim].
        passage, query: int64 tensors [n], rows of the one and of the other.

    Returns:
        float32 tensor [n].
    """
    import torch

    count, size = len(passage), GPU_PAIRS if passages.device.type == "cuda" else PAIRS
    if passages.device.type != "cpu":  # whose order of addition may depend on how many there are
        passage, query = (torch.nn.functional.pad(rows, (0, -count % size)) for rows in (passage, query))
    scores = torch.empty(len(passage), dtype=torch.float32, device=passages.device)
    for start in range(0, len(passage), size):
        part = slice(start, start + size)
        torch.sum(passages[passage[part]].float().mul_(queries[query[part]]), dim=1, out=scores[part])
    return scores[:count]


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
