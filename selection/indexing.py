"""Index: plans and makes the index of embeddings that are there; the function behind `index`, a build's last stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from selection.embedding import Embeddings
from selection.encoders.recall import MIN_RECALL
from selection.files import require_space
from selection.index import load_faiss
from selection.index.build import build_index, missing_bytes
from selection.index.kinds import Vectors
from selection.index.plan import QUERIES, IndexPlan, IndexWanted, plan_index
from selection.manifest import IndexEntry
from selection.memory import peak_memory
from selection.slugs import open_encoder
from selection.store import Store
from selection.task import read_task
from selection.task_vectors import encode_task
from selection.wording import human_bytes, human_seconds

log = logging.getLogger(__name__)

_WHAT = ("making", "searching (by a sample)", "bytes")


def index(
    store: Path | str,
    kind: str = "auto",
    *,
    encoder: str | None = None,
    min_recall: float = MIN_RECALL,
    max_memory: int | None = None,
    max_seconds: float | None = None,
    queries: int = QUERIES,
    task: Path | str | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] = log.info,
) -> IndexPlan:
    """(Re)builds the index alone, from the embeddings; it becomes the one that is searched.

    Args:
        kind: one of `selection.index.kinds.KINDS`; ``auto`` is the one predicted to take least time in all.
        min_recall: the least share of exact neighbours that it must find, measured on queries held back.
        max_memory: bytes that this process may take.
        max_seconds: for making it and searching it with `queries`.
        queries: how many task examples it will answer in all.
        task: a task among whose examples the recall is measured too.

    Raises:
        NearkinError: no store, embeddings incomplete or damaged, unknown kind, limits that cannot be kept.
    """
    opened = Store(store)
    if kind not in ("auto", "stream"):
        load_faiss()
    goal = IndexWanted(kind, min_recall, max_memory, max_seconds, queries)
    with opened.lock():
        slug = open_encoder(opened, encoder)
        embeddings = Embeddings(opened, slug)
        examples = encode_task(opened, slug, read_task(task)) if task is not None else None
        plan = plan_index(len(embeddings), embeddings.dim, goal, opened.path, embeddings, examples)
        report(f"index   {plan.line(queries)}")
        if not dry_run:
            require_space(opened.path, missing_bytes(opened, slug, plan, examples is not None))
            make_index(opened, slug, goal, plan, examples, report)
    return plan


def make_index(
    store: Store,
    slug: str,
    goal: IndexWanted,
    plan: IndexPlan,
    examples: Vectors | None = None,
    report: Callable[[str], None] = log.info,
    device: str | None = None,
) -> IndexEntry:
    """Makes what was planned and says how the prediction compares; a plan made before there were embeddings, anew."""
    if plan.guessed:
        embeddings = Embeddings(store, slug)
        plan = plan_index(len(embeddings), embeddings.dim, goal, store.path, embeddings, device=device)
        report(f"index   {plan.line(goal.queries)}")
    before = store.manifest.indexes.get(f"{slug}-{plan.kind.name}")
    begun = time.perf_counter()
    made = build_index(store, slug, plan, examples, report=report, device=device)
    took = time.perf_counter() - begun
    if made.blocks and not plan.kind.exact and made is not before:
        size = sum((store.path / block.file.path).stat().st_size for block in made.blocks)
        search = made.settings["query_seconds"] * goal.queries
        memory = peak_memory()
        planned = (human_seconds(plan.build_seconds), human_seconds(plan.search_seconds), human_bytes(plan.bytes))
        fact = (human_seconds(took), human_seconds(search), human_bytes(size))
        report(
            "        "
            + ", ".join(f"{what} predicted {p}, was {f}" for what, p, f in zip(_WHAT, planned, fact, strict=True))
            + (f"; memory {human_bytes(memory)}" if memory else "")
        )
    return made
