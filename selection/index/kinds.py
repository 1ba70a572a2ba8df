"""The kinds of index: what each keeps of a passage, and the empty FAISS index of it.

``stream`` keeps nothing: it is exact search over the embedding shards (`selection.index.exact`). The others are FAISS
files, searched approximately or exactly, whose candidates are scored again from the shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = ("auto", "stream", "flat", "ivf", "ivf-sq8", "ivf-pq", "ivf-rabitq", "hnsw")
HNSW_LINKS = 32
HNSW_BUILD = 80
CODE_POINTS = 16_384

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """What is known of a kind before anything is built.

    Attributes:
        bytes: a passage's, as a function of the dimension.
        rerank: how many times k candidates are scored again, the ladder that is tried.
    """

    name: str
    rerank: tuple[int, ...]

    @property
    def exact(self) -> bool:
        return self.name in ("stream", "flat")

    @property
    def has_lists(self) -> bool:
        return self.name.startswith("ivf")

    def bytes(self, dim: int) -> int:
        """Of one passage in the file, its id among them."""
        return {
            "stream": 0,
            "flat": 4 * dim,
            "ivf": 2 * dim + 8,
            "ivf-sq8": dim + 8,
            "ivf-pq": _pieces(dim) + 8,
            "ivf-rabitq": -(-dim // 8) + 8 + 8,
            "hnsw": 4 * dim + 8 * HNSW_LINKS + 12,
        }[self.name]

    @property
    def least(self) -> int:
        """Passages that its codes are trained on at least."""
        return 256 if self.name == "ivf-pq" else 1

    def training_bytes(self, dim: int) -> int:
        """Of what its codes are made with."""
        return 256 * dim * 4 if self.name == "ivf-pq" else 0


STREAM = Kind("stream", ())
BY_NAME = {
    kind.name: kind
    for kind in (
        STREAM,
        Kind("flat", (1,)),
        Kind("ivf", (1,)),
        Kind("ivf-sq8", (1, 2, 4)),
        Kind("ivf-pq", (2, 4, 8, 16, 32)),
        Kind("ivf-rabitq", (2, 4, 8, 16, 32)),
        Kind("hnsw", (1,)),
    )
}


def _pieces(dim: int) -> int:
    """Subquantizers of PQ: a byte for every 8 dimensions, or the nearest number that divides them."""
    return next(n for n in range(max(dim // 8, 1), 0, -1) if dim % n == 0)


def empty_index(faiss: Any, kind: Kind, dim: int, centroids: Vectors | None, sample: Vectors | None = None) -> Any:
    """A trained FAISS index without passages.

    Args:
        centroids, sample: of the inverted lists and what codes are trained on, for kinds that have them.
    """
    metric = faiss.METRIC_INNER_PRODUCT
    if kind.name == "flat":
        return faiss.IndexFlatIP(dim)
    if kind.name == "hnsw":
        index = faiss.IndexHNSWFlat(dim, HNSW_LINKS, metric)
        index.hnsw.efConstruction = HNSW_BUILD
        return index
    assert centroids is not None
    assert sample is not None
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroids)
    lists = len(centroids)
    scalar = {"ivf": faiss.ScalarQuantizer.QT_fp16, "ivf-sq8": faiss.ScalarQuantizer.QT_8bit}
    if kind.name in scalar:
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, scalar[kind.name], metric, False)
    elif kind.name == "ivf-pq":
        index = faiss.IndexIVFPQ(quantizer, dim, lists, _pieces(dim), 8, metric)
        sample = sample[:CODE_POINTS]
        index.pq.cp.min_points_per_centroid = 1
    else:
        index = faiss.IndexIVFRaBitQ(quantizer, dim, lists, metric)
    index.own_fields = True  # the quantizer goes with it
    quantizer.this.disown()
    index.train(sample)
    return index
