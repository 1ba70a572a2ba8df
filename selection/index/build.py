"""Makes the index that a plan describes: trains it, adds what is missing block by block, measures its recall."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from selection.drawing import distinct
from selection.embedding import Embeddings
from selection.errors import NearkinError
from selection.files import write_json
from selection.index import load_faiss
from selection.index.blocks import UNFINISHED, Blocks, add_blocks, clear_blocks, kept_blocks
from selection.index.kinds import Vectors, empty_index
from selection.index.kmeans import spherical_kmeans
from selection.index.plan import IndexPlan, training_points
from selection.index.tune import draw_probes, effort_for, tune
from selection.manifest import IndexEntry
from selection.memory import release_memory
from selection.store import Store

log = logging.getLogger(__name__)

RENEWED = 4.0


def build_index(
    store: Store,
    slug: str,
    plan: IndexPlan,
    examples: Vectors | None = None,
    report: Callable[[str], None] = log.info,
    device: str | None = None,
) -> IndexEntry:
    """Makes the index, or keeps what there is of these very embeddings; it becomes the one that is searched.

    The store must be locked. Row i of all blocks, one behind the other, is doc_id i.

    Args:
        examples: float32 [n, dim], a task's, among whom the recall is measured too.
        device: where exact neighbours are searched, see `selection.index.exact.stream_search`.

    Raises:
        StoreError: the embeddings are incomplete or damaged.
        NearkinError: no setting reaches the recall that the plan promises; the index that was there stays in use, or
            where this one has taken its place, exact search.
        MissingPackageError: no FAISS.
    """
    embeddings = Embeddings(store, slug)
    name = f"{slug}-{plan.kind.name}"
    if plan.kind.name == "stream":
        known = IndexEntry(slug, "stream", embeddings.fingerprint)
    elif (current := _good_index(store, slug, plan, examples is not None)) is not None:
        known = current
    else:
        known = _begun(store, embeddings, slug, plan)
        if known.blocks:
            report(f"        {sum(block.file.rows for block in known.blocks):,} passages are indexed already")
        try:
            _make(store, known, embeddings, plan, examples, device)
        except NearkinError:
            chosen, whole = store.manifest.encoders[slug].settings, sum(b.shards for b in known.blocks)
            missed = whole == embeddings.shards and current_index(store, slug, plan.kind.name) is None
            if chosen.get("index") == plan.kind.name and missed:
                chosen["index"] = "stream"
                store.save()
            raise
        if not plan.kind.exact:
            report(_told(known))
        store.manifest.indexes[name] = known
    indexes = store.manifest.indexes
    begun = {n: entry for n, entry in indexes.items() if entry.encoder == slug and n.endswith(UNFINISHED)}
    for other, entry in begun.items():  # one that was killed may go on still
        if entry.kind == plan.kind.name or not kept_blocks(store, entry, embeddings):
            del indexes[other]
    store.manifest.encoders[slug].settings["index"] = plan.kind.name  # the one that is searched
    store.save()
    clear_blocks(store, slug)
    if known.blocks:
        write_json(store.path / "index" / name / "manifest.json", known)
    return known


def missing_bytes(store: Store, slug: str, plan: IndexPlan, remeasured: bool = False) -> int:
    """What making the index will write: all of it, but for blocks that are there.

    Args:
        remeasured: whether examples are given, among whom its recall is measured anew.

    Raises:
        StoreError: the embeddings are incomplete.
    """
    if plan.kind.name == "stream" or _good_index(store, slug, plan, remeasured) is not None:
        return 0
    embeddings = Embeddings(store, slug)
    kept = _begun(store, embeddings, slug, plan).blocks
    return plan.bytes * (embeddings.shards - sum(block.shards for block in kept)) // max(embeddings.shards, 1)


def _good_index(store: Store, slug: str, plan: IndexPlan, remeasured: bool) -> IndexEntry | None:
    """The index that is there, where it is what the plan asks for."""
    known = current_index(store, slug, plan.kind.name)
    if known is None or known.settings.get("target", 1.0) < plan.recall or remeasured or _other(known, plan):
        return None
    return known


def _begun(store: Store, embeddings: Embeddings, slug: str, plan: IndexPlan) -> IndexEntry:
    """The index to make, with what there is of it: of a killed call, or of the one whose place it takes."""
    name, indexes = f"{slug}-{plan.kind.name}", store.manifest.indexes
    before = [e for e in map(indexes.get, (f"{name}{UNFINISHED}", name)) if e is not None and not _other(e, plan)]
    found = [(kept_blocks(store, entry, embeddings), entry.lists) for entry in before]
    kept, lists = max(found, key=lambda one: len(one[0]), default=([], plan.lists))
    return IndexEntry(slug, plan.kind.name, embeddings.fingerprint, lists if kept else plan.lists, kept)


def _other(entry: IndexEntry, plan: IndexPlan) -> bool:
    """Whether the corpus has come to need very many more or fewer lists than there are."""
    return plan.kind.has_lists and not 1 / RENEWED <= (entry.lists + 1) / (plan.lists + 1) <= RENEWED


def _told(entry: IndexEntry) -> str:
    """What a measured index is worth, for a person."""
    found = entry.settings
    effort = effort_for(found, found["k"])
    how = f"{effort} of {entry.lists} lists" if entry.lists else f"effort {effort}"
    return (
        f"        recall@{found['k']} {found['recall']:.3f} (standard error {found['recall_error']:.3f}) on queries "
        f"held back; {how}, {found['rerank']} times k scored again"
    )


def current_index(store: Store, slug: str, kind: str) -> IndexEntry | None:
    """The index of that kind, if there is a whole one of the embeddings as they are.

    Raises:
        StoreError: the embeddings are incomplete.
    """
    known = store.manifest.indexes.get(f"{slug}-{kind}")
    if known is None or not known.settings or known.embeddings != Embeddings(store, slug).fingerprint:
        return None
    return known if all(store.is_whole(block.file) for block in known.blocks) else None


def _make(
    store: Store,
    entry: IndexEntry,
    embeddings: Embeddings,
    plan: IndexPlan,
    examples: Vectors | None,
    device: str | None,
) -> None:
    with tqdm(total=2 * len(embeddings), unit=" passages", unit_scale=True, disable=None, leave=False) as bar:
        bar.set_description(f"indexing ({plan.kind.name})")
        bar.update(sum(block.file.rows for block in entry.blocks))
        add_blocks(store, entry, embeddings, lambda: _trained(embeddings, plan), plan.block_bytes, bar.update)
        release_memory()
        if plan.kind.name == "flat":
            entry.settings = {"recall": 1.0, "target": 1.0}
            return
        bar.set_description("measuring recall")
        probes = draw_probes(embeddings, examples, bar.update, device)
        blocks = Blocks(store, entry, embeddings)
        entry.settings = tune(plan.kind, blocks, embeddings, probes, plan.recall, entry.encoder)


def _trained(embeddings: Embeddings, plan: IndexPlan) -> Any:
    """An empty FAISS index, its lists and codes trained on a sample."""
    if not plan.kind.has_lists:
        return empty_index(load_faiss(), plan.kind, embeddings.dim, None)
    rng = np.random.default_rng(0)
    wanted = training_points(len(embeddings), plan.lists)
    sample = embeddings.take(np.sort(distinct(rng, len(embeddings), wanted)))
    rng.shuffle(sample)
    centroids = spherical_kmeans(sample, plan.lists)
    return empty_index(load_faiss(), plan.kind, embeddings.dim, centroids, sample)
