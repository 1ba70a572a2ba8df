"""Neighbour search: a task's examples over a corpus of several sizes, nearkin's kinds of index beside their peers.

A task asks once, so what counts is making the index and searching it, together. Each path has a process of its own,
which tells its peak memory; rows are written as they come, and what is in the file is not measured again. Larger
corpora are the store's own vectors over and over, each copy but the first moved at random (cosine 0.95 to where it
was).
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers import PEERS
from benchmarks.processes import alone, megabytes
from benchmarks.results import Row, machine, read_rows, write_rows
from selection.corpus import SHARD_ROWS, Shard
from selection.embedding import Embeddings
from selection.encoders.recall import MIN_RECALL
from selection.files import atomic_write, fingerprint
from selection.index.exact import stream_search
from selection.index.kinds import KINDS
from selection.index.plan import IndexWanted, plan_index
from selection.index.search import Searcher
from selection.index.tune import recall_of
from selection.indexing import make_index
from selection.manifest import CorpusEntry
from selection.memory import peak_memory, release_memory
from selection.slugs import open_encoder
from selection.store import Store
from selection.task import read_task
from selection.task_vectors import encode_task
from selection.vector_files import write_vectors

MOVED = 0.95
ONCE_FROM = 60.0
NAMES = tuple(peer.name for peer in PEERS)


def search(
    store: Path | str,
    task: Path | str,
    k: int = 50,
    *,
    passages: Sequence[int] = (),
    kinds: Sequence[str] = KINDS[1:],
    peers: Sequence[str] = NAMES,
    min_recall: float = MIN_RECALL,
    rounds: int = 3,
    encoder: str | None = None,
    out: Path | None = None,
    scratch: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Times the neighbours of a task's training texts; encoding them is left out.

    Args:
        passages: sizes of corpora; none is the store as it is.
        kinds: which of nearkin's kinds of index.
        peers: which of `benchmarks.peers.PEERS`.
        min_recall: of the `k` neighbours, for all that are approximate.
        rounds: searches, of which the median counts; what is made is made once, and a peer's search that takes more
            than `ONCE_FROM` seconds is not repeated.
        out: rows are added to this Parquet file as they are measured, and what it has is not measured again.
        scratch: for larger corpora and indexes; default beside `store`. It is left there.

    Returns:
        One row a path and size asked for, whenever it was measured:
        ``task``, ``encoder``, ``path``, ``passages``, ``queries``, ``k``, ``min_recall``, ``build_s``, ``search_s``,
        ``total_s``, ``queries_s``, ``ratio`` (FAISS's flat total over this one's), ``mb`` of the index, ``memory_mb``
        (peak of the process), ``recall_10``, ``recall_k``, ``gflops`` of exact paths, ``predicted_build_s``,
        ``predicted_search_s``, ``predicted_mb``, ``one_query_ms`` (warm).
    """
    opened, examples = Store(store), read_task(task)
    slug = open_encoder(opened, encoder)
    vectors = (scratch or Path(f"{store}.bench")) / f"{slug}-{_mark(opened, slug)}"
    folder = vectors / examples.name
    folder.mkdir(parents=True, exist_ok=True)
    queries = encode_task(opened, slug, examples)
    np.save(folder / "queries.npy", queries)
    rows, asked = read_rows(out), []
    for size in passages or (len(opened.corpus),):
        target = enlarged(opened, slug, size, vectors)
        same = {"task": examples.name, "encoder": slug, "passages": size, "k": k, "min_recall": min_recall}
        same["machine"] = machine()
        done = {row["path"] for row in rows if same.items() <= row.items()}
        names = [f"nearkin, {kind}" for kind in kinds] + list(peers)
        names = ["nearkin, stream", *(n for n in names if n != "nearkin, stream")]
        asked += [{**same, "path": name} for name in names]
        for name in names:
            if name in done:
                continue
            peer = next((peer for peer in PEERS if peer.name == name), None)
            if peer is not None and not peer.installed:
                say(f"left out: {name}: {peer.package} is not installed")
                continue
            arguments = (target.path, slug, name, folder, k, rounds, min_recall)
            try:
                row = alone(_measured, *arguments)
            except Exception as error:
                if peer is None:
                    raise
                say(f"left out: {name} over {size:,}: {error}")
                continue
            say(f"{size:,}: {name} {row['build_s']:.2f} s + {row['search_s']:.2f} s, recall {row['recall_k']:.3f}")
            rows.append({**same, **row})
            write_rows(rows, out)
    _add_ratios(rows)
    write_rows(rows, out)
    return [row for row in rows if any(wanted.items() <= row.items() for wanted in asked)]


def _add_ratios(rows: list[Row]) -> None:
    for row in rows:
        names = ("task", "encoder", "passages", "k", "machine")
        same = [r for r in rows if all(r.get(name) == row.get(name) for name in names)]
        flat = [r for r in same if r["path"] == "FAISS IndexFlatIP"]
        row["ratio"] = flat[0]["total_s"] / row["total_s"] if flat else None


def _measured(path: Path, slug: str, name: str, folder: Path, k: int, rounds: int, min_recall: float) -> Row:
    """One path in this process."""
    store = Store(path)
    queries = np.load(folder / "queries.npy")
    asked = hashlib.sha256(queries.tobytes()).hexdigest()[:8]
    exact = folder / f"exact-{len(store.corpus)}-{k}-{asked}.npy"
    if name.startswith("nearkin, "):
        made = _nearkin(store, slug, name.removeprefix("nearkin, "), queries, k, rounds, min_recall)
        truth = _truth(exact, store, slug, queries, k, made["ids"] if name == "nearkin, stream" else None)
    else:
        truth = _truth(exact, store, slug, queries, k)
        made = _peer(store, slug, name, queries, k, rounds, min_recall, truth)
    ids = made.pop("ids")
    total = made["build_s"] + made["search_s"]
    flops = 2.0 * len(store.corpus) * queries.shape[1] * len(queries)
    return {
        "path": name,
        "queries": len(queries),
        "build_s": made["build_s"],
        "search_s": made["search_s"],
        "total_s": total,
        "queries_s": len(queries) / made["search_s"],
        "ratio": None,
        "mb": made["bytes"] / 1e6,
        "memory_mb": made["memory"],
        "recall_10": recall_of(ids[:, :10], truth[:, :10])[0] if made["ordered"] else None,
        "recall_k": recall_of(ids, truth)[0],
        "gflops": flops / made["search_s"] / 1e9 if made["exact"] else None,
        "predicted_build_s": made.get("predicted_build_s"),
        "predicted_search_s": made.get("predicted_search_s"),
        "predicted_mb": made.get("predicted_mb"),
        "one_query_ms": made.get("one_query_ms"),
    }


def _truth(
    path: Path,
    store: Store,
    slug: str,
    queries: npt.NDArray[np.float32],
    k: int,
    found: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Exact neighbours int64 [n, k], kept at `path`; `found` where they are known."""
    if not path.exists() or found is not None:
        ids = stream_search(Embeddings(store, slug), queries, k)[1] if found is None else found
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.save(file, ids)
    return np.asarray(np.load(path))


def _nearkin(
    store: Store, slug: str, kind: str, queries: npt.NDArray[np.float32], k: int, rounds: int, min_recall: float
) -> dict[str, Any]:
    embeddings = Embeddings(store, slug)
    shutil.rmtree(store.path / "index" / f"{slug}-{kind}", ignore_errors=True)
    goal = IndexWanted(kind, min_recall, queries=len(queries))
    plan = plan_index(len(embeddings), embeddings.dim, goal, store.path, embeddings, queries)
    with store.lock():
        begun = time.perf_counter()
        entry = make_index(store, slug, goal, plan, queries)
        build = time.perf_counter() - begun if entry.blocks else 0.0
    release_memory()
    times, ids = [], np.empty(0)
    for _ in range(rounds):
        begun = time.perf_counter()
        searcher = Searcher(Store(store.path), slug, kind)
        table = searcher.search(queries, k)
        times.append(time.perf_counter() - begun)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        ids[table["query_id"].to_numpy(), table["rank"].to_numpy() - 1] = table["doc_id"].to_numpy()
    ones = []
    for i in range(20):
        begun = time.perf_counter()
        searcher.search(queries[i : i + 1], k)
        ones.append(time.perf_counter() - begun)
    return {
        "ids": ids,
        "ordered": True,
        "exact": plan.kind.exact,
        "build_s": build,
        "search_s": statistics.median(times),
        "bytes": sum((store.path / block.file.path).stat().st_size for block in entry.blocks),
        "memory": megabytes(peak_memory()),
        "predicted_build_s": plan.build_seconds,
        "predicted_search_s": plan.search_seconds,
        "predicted_mb": plan.bytes / 1e6,
        "one_query_ms": 1000 * statistics.median(ones),
    }


def _peer(
    store: Store,
    slug: str,
    name: str,
    queries: npt.NDArray[np.float32],
    k: int,
    rounds: int,
    min_recall: float,
    exact: npt.NDArray[np.int64],
) -> dict[str, Any]:
    peer = next(peer for peer in PEERS if peer.name == name)
    vectors = np.concatenate(list(Embeddings(store, slug))).astype(np.float32)
    begun = time.perf_counter()
    index, size = peer.build(vectors)
    build = time.perf_counter() - begun
    for effort in peer.efforts:
        begun = time.perf_counter()
        ids = peer.search(index, queries, k, effort)
        times = [time.perf_counter() - begun]
        if len(peer.efforts) == 1 or recall_of(ids, exact)[0] >= min_recall:
            break
    for _ in range(rounds - 1):
        if times[0] > ONCE_FROM:
            break
        begun = time.perf_counter()
        peer.search(index, queries, k, effort)
        times.append(time.perf_counter() - begun)
    return {
        "ids": ids,
        "ordered": peer.ordered,
        "exact": peer.exact,
        "build_s": build,
        "search_s": statistics.median(times),
        "bytes": size,
        "memory": megabytes(peak_memory()),
    }


def _mark(store: Store, slug: str) -> str:
    """Tells these vectors from others of the same encoder."""
    return fingerprint(store.manifest.encoders[slug].fingerprint, *(s.text for s in store.corpus.shards))[:8]


def enlarged(store: Store, slug: str, passages: int, folder: Path) -> Store:
    """A store of `passages` vectors of this one's, in `folder`; without text, so good for searching alone."""
    source = Embeddings(store, slug)
    path = folder / f"store-{passages}"
    if not (path / "manifest.json").exists():  # killed before it was one
        shutil.rmtree(path, ignore_errors=True)
    target = Store(path, create=True)
    entry = store.manifest.encoders[slug]
    if slug in target.manifest.encoders and len(Embeddings(target, slug)) == passages:
        return target
    shutil.rmtree(path, ignore_errors=True)
    target = Store(path, create=True)
    rng = np.random.default_rng(0)
    # Noise of this size leaves MOVED of the cosine.
    noise = np.sqrt(1 / MOVED**2 - 1) / np.sqrt(source.dim)
    shards, files = [], {}
    with target.lock():
        for number, start in enumerate(range(0, passages, SHARD_ROWS)):
            ids = np.arange(start, min(start + SHARD_ROWS, passages))
            vectors = source.take(ids % len(source))
            moved = vectors + noise * rng.standard_normal(vectors.shape, dtype=np.float32)
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
            vectors = np.where((ids < len(source))[:, None], vectors, moved)
            text = f"vectors {start} of {passages}"
            part = target.path / "embeddings" / slug / f"part-{number:05d}.arrow"
            part.parent.mkdir(parents=True, exist_ok=True)
            write_vectors(part, vectors.astype(np.float16), text, entry.fingerprint)
            files[text] = target.entry(part, len(ids))
            shards.append(Shard("none", 0, len(ids), len(ids), None, start, text, 0))
        corpus = CorpusEntry("vectors", {"column": "text"}, [], [], 0, 0, shards)
        target.manifest.corpora = [corpus]
        target.manifest.encoders = {slug: replace(entry, shards=files, files=[], settings={})}
        target.save()
    return target
