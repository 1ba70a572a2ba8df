"""Builds a FAISS index from embedding shards, one at a time: a flat one straight into its file, IVF in memory once."""

from __future__ import annotations

import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from selection.embedding import Embeddings
from selection.files import atomic_write, write_json
from selection.index import load_faiss
from selection.index.plan import POINTS_PER_LIST, IndexPlan
from selection.store import IndexEntry, Store

PROBE_QUERIES = 256
PROBE_K = 10
TARGET_RECALL = 0.95


def build_index(store: Store, slug: str, plan: IndexPlan, seed: int = 0) -> IndexEntry:
    """Makes the index that `plan` describes, or keeps the one that is there if it is of these very embeddings.

    The store must be locked. Row i of the index is doc_id i.

    Raises:
        StoreError: the embeddings are incomplete or damaged.
        MissingPackageError: no FAISS.
    """
    faiss = load_faiss()
    embeddings = Embeddings(store, slug)
    name = f"{slug}-{plan.kind}"
    if known := current_index(store, slug, plan.kind):
        return known
    settings: dict[str, Any] = {}
    folder = store.path / "index" / name
    with atomic_write(folder / "faiss.index") as aside:
        if plan.kind == "flat":
            write_flat(faiss, embeddings, aside)
        else:
            index, settings = _build_ivf(faiss, embeddings, plan, seed)
            _write_index(faiss, index, str(aside))
    file = store.entry(folder / "faiss.index", len(embeddings))
    entry = IndexEntry(slug, plan.kind, file, embeddings.fingerprint, settings)
    write_json(folder / "manifest.json", asdict(entry))
    store.manifest.indexes[name] = entry
    store.save()
    return entry


def current_index(store: Store, slug: str, kind: str) -> IndexEntry | None:
    """The index of that kind, if there is a whole one of the embeddings as they are.

    Raises:
        StoreError: the embeddings are incomplete.
    """
    known = store.manifest.indexes.get(f"{slug}-{kind}")
    current = known and known.embeddings == Embeddings(store, slug).fingerprint and store.is_whole(known.file)
    return known if current else None


def _write_index(faiss: Any, index: Any, path: str) -> None:
    try:
        faiss.write_index(index, path)
    except RuntimeError as error:  # FAISS reports a failed write as a RuntimeError without errno
        import errno

        raise OSError(errno.ENOSPC, "FAISS could not write the whole file") from error


def _progress(embeddings: Embeddings, what: str) -> tqdm[None]:
    return tqdm(total=len(embeddings), desc=what, unit=" passages", unit_scale=True, disable=None, leave=False)


def write_flat(faiss: Any, embeddings: Embeddings, path: Path) -> None:
    """Writes the file of an IndexFlatIP shard by shard, so that memory is one shard's.

    FAISS itself makes the header, for an index of one vector; its two counts are then set. Where a later FAISS lays it
    out otherwise, the index is built in memory instead.
    """
    dim, rows = embeddings.dim, len(embeddings)
    one = faiss.IndexFlatIP(dim)
    one.add(np.zeros((1, dim), dtype=np.float32))
    header = bytearray(faiss.serialize_index(one).tobytes()[: -4 * dim])
    counts = {8: (1, rows), len(header) - 8: (dim, rows * dim)}
    if len(header) < 24 or any(struct.unpack_from("<q", header, at)[0] != was for at, (was, _) in counts.items()):
        _write_index(faiss, _flat_in_memory(faiss, embeddings), str(path))
        return
    for at, (_, count) in counts.items():
        struct.pack_into("<q", header, at, count)
    with path.open("wb") as file, _progress(embeddings, "indexing") as bar:
        file.write(header)
        for block in embeddings:
            file.write(block.astype("<f4").tobytes())
            bar.update(len(block))


def _flat_in_memory(faiss: Any, embeddings: Embeddings) -> Any:
    index = faiss.IndexFlatIP(embeddings.dim)
    for block in embeddings:
        index.add(block.astype(np.float32))
    return index


def _build_ivf(faiss: Any, embeddings: Embeddings, plan: IndexPlan, seed: int) -> tuple[Any, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    sample = min(len(embeddings), plan.nlist * POINTS_PER_LIST)
    training = gather(embeddings, np.sort(rng.choice(len(embeddings), sample, replace=False)))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(embeddings.dim), embeddings.dim, plan.nlist, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.spherical, index.cp.seed, index.cp.min_points_per_centroid = True, seed + 1, 1
    index.train(training)
    with _progress(embeddings, "indexing") as bar:
        for block in embeddings:
            index.add(block.astype(np.float32))
            bar.update(len(block))
    probes = np.sort(rng.choice(len(embeddings), min(PROBE_QUERIES, len(embeddings)), replace=False))
    curve = recall_curve(faiss, index, embeddings, probes)
    nprobe, recall = next((point for point in curve if point[1] >= TARGET_RECALL), curve[-1])
    return index, {"nlist": plan.nlist, "nprobe": nprobe, "recall_at_10": recall, "recall_curve": curve}


def gather(embeddings: Embeddings, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Vectors float32 [len(rows), dim] of sorted doc_ids `rows`, read shard by shard."""
    vectors = np.empty((len(rows), embeddings.dim), dtype=np.float32)
    first = 0
    for block in embeddings:
        low, high = np.searchsorted(rows, [first, first + len(block)])
        vectors[low:high] = block[rows[low:high] - first]
        first += len(block)
    return vectors


def recall_curve(
    faiss: Any, index: Any, embeddings: Embeddings, probes: npt.NDArray[np.int64]
) -> list[tuple[int, float]]:
    """Recall@10 against exact search for nprobe = 1, 2, 4, ..., up to the target or all lists.

    Args:
        probes: doc_ids of the corpus used as queries; each one's own row is left out of its neighbours.

    Returns:
        (nprobe, recall) pairs, recall in [0, 1].
    """
    from faiss.contrib.exhaustive_search import knn_ground_truth

    queries = gather(embeddings, probes)
    k = min(PROBE_K + 1, len(embeddings))
    blocks = (np.ascontiguousarray(block, dtype=np.float32) for block in embeddings)
    _, exact = knn_ground_truth(queries, blocks, k, metric_type=faiss.METRIC_INNER_PRODUCT, ngpu=0)
    curve = []
    nprobe = 1
    while True:
        _, found = index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=nprobe))
        hits = (exact[:, :, None] == found[:, None, :]).any(axis=2) & (exact != probes[:, None])
        recall = float(hits.sum() / max((exact != probes[:, None]).sum(), 1))
        curve.append((nprobe, round(recall, 4)))
        if recall >= TARGET_RECALL or nprobe >= index.nlist:
            return curve
        nprobe = min(nprobe * 2, index.nlist)
