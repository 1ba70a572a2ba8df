"""Augmentation set: a selected set as files, with what it was made from; the function behind `select`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selection.errors import NearkinError, StoreError
from selection.fetching import gathered
from selection.files import TextFingerprint, atomic_folder, write_json
from selection.filling import AUGMENTATION, BLOCK, READ_BYTES, Budget, assemble
from selection.gate import EVALUATION, NEAR, Forbidden, Gate, Nearness, Removed
from selection.guard import Guard
from selection.reading import is_blank, read_table, texts_of
from selection.selectors import Pool, Selector, SelectsFrom
from selection.selectors.registry import find_selector, fresh
from selection.store import Store
from selection.task import SPLITS, read_task
from selection.task_vectors import encode_texts
from selection.versions import versions
from selection.wording import join
from selection.writing import check_format, write_table

__all__ = ["AUGMENTATION", "AugmentationSet", "Budget", "select"]

log = logging.getLogger(__name__)

ORDERS = ("rank", "random", "curriculum")


@dataclass(frozen=True)
class AugmentationSet:
    """A selected set.

    Attributes:
        path: its folder.
        passages: how many.
        tokens: by the encoder's tokenizer, special tokens left out.
        shares: share of the passages by corpus, largest first.
        removed: what the gate kept out.
        seconds: of selection in all.
        stages: of these, what encoding the task (``encode``), ranking the passages (``rank``) and reading, guarding and
            writing them (``fill``) took.
    """

    path: Path
    passages: int
    tokens: int
    shares: dict[str, float]
    removed: Removed
    seconds: float
    stages: dict[str, float]

    @cached_property
    def table(self) -> pa.Table:
        """Columns of `AUGMENTATION`, in the order asked for, read into memory."""
        return pq.read_table(self.path / "augmentation.parquet")


def select(
    store: Path | str,
    task: Path | str,
    out: Path | str,
    method: str | Selector = "knn",
    budget: Budget | None = None,
    *,
    exclude: Sequence[Path | str] = (),
    order: str = "rank",
    near: str = "ngrams",
    guarded: bool = True,
    removed: Path | str | None = None,
    encoder: str | None = None,
    index: str | None = None,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    min_recall: float | None = None,
    report: Callable[[str], None] = log.info,
) -> AugmentationSet:
    """Selects passages for a task and writes OUT/augmentation.parquet and OUT/manifest.json.

    Args:
        store, task: folders (the task may be one jsonl file).
        method: ``NAME[:PARAMETER=VALUE,...]``, see `selection.selectors.registry`; or a selector.
        budget: how much; where None, everything for methods that take all there is, else 50 passages a task example.
        exclude: files of texts that must not be selected.
        order: of the rows: ``rank`` (nearest first), ``random``, or ``curriculum`` (farthest first, nearest last).
        near: what else than equal texts is kept out: ``ngrams``, what shares long runs of words with dev, test or
            excluded texts or with better-ranked passages; ``all``, what is near those by cosine too; or ``off``.
        guarded: False lets the task's own texts in, to measure what contamination would have bought.
        removed: write each candidate that was not let in, and why, to this file (.parquet, .csv or .jsonl).
        encoder: which of the store's encoders, where it has several; or ``cascade[:MODEL]``.
        index: which of its kinds of index; None takes the one made last.
        seed: for methods and orders that draw.
        overwrite: replace an existing OUT.
        min_recall: the share of the full encoder's neighbours that a cascade promises; None is 0.95.
        report: told what a method plans and finds.

    Raises:
        NearkinError: anything the user can put right, before OUT is touched.
    """
    start = time.perf_counter()
    if order not in ORDERS:
        raise NearkinError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    if near not in NEAR:
        raise NearkinError(f"unknown nearness {near!r}: choose one of {', '.join(NEAR)}")
    if removed is not None:
        check_format(Path(removed))
    selector = find_selector(method) if isinstance(method, str) else fresh(method)
    opened, examples = Store(store), read_task(task)
    budget = budget or (Budget(everything=True) if getattr(selector, "everything", False) else Budget(k=50))
    if examples.path.is_file():
        log.warning("%s is one file: only its own texts are guarded, give the task's folder or --exclude", task)
    elif guarded and (absent := [split for split in SPLITS if split not in examples.splits]):
        log.warning("%s has no %s: nothing guards its texts", task, join(f"{split}.jsonl" for split in absent))
    for path in examples.unread:
        log.warning("%s is none of train, dev and test.jsonl: its texts are not guarded, name it with --exclude", path)
    pool = Pool(opened, examples, encoder, seed, device, index, min_recall, report)
    opened.check_corpora()
    outside = [Path(path) for path in exclude]
    guard = Guard.of(examples if guarded else None, outside)
    with atomic_folder(Path(out), overwrite, "augmentation.parquet") as folder:
        scratch = folder / "candidates.arrow"
        nearness = _nearness(near, selector, pool, guard, outside)
        forbidden = Forbidden.of(guard, nearness)
        filled = assemble(
            selector, pool, lambda: Gate(guard, nearness, removed is not None, forbidden), budget, scratch
        )
        pool.tell_unused()
        opened.check_corpora()
        if Store(opened.path).manifest.corpora != opened.manifest.corpora:
            raise StoreError(f"{opened.path} was built further while passages were selected from it: select them again")
        _write_in_order(scratch, folder / "augmentation.parquet", order, seed)
        scratch.unlink()
        seconds = time.perf_counter() - start
        result = AugmentationSet(
            Path(out), filled.passages, filled.tokens, filled.shares, filled.gate.removed, seconds, dict(pool.seconds)
        )
        parameters = {
            **asdict(budget), **_how(pool), "exclude": [str(path.resolve()) for path in outside],
            "order": order, "near": near, **({} if guarded else {"guarded": False}),
        }  # fmt: skip
        named = method if isinstance(method, str) else selector.name
        write_json(folder / "manifest.json", _manifest(result, pool, named, parameters))
    if removed is not None:  # behind the folder, in which it may lie
        write_table(filled.gate.report(), Path(removed))
    opened.save_checked()
    return result


def _nearness(near: str, selector: Selector, pool: Pool, guard: Guard, exclude: Sequence[Path]) -> Nearness:
    """What the gate compares beside whole texts."""
    if near != "all":
        return Nearness(near == "ngrams")
    if isinstance(selector, SelectsFrom) or pool.cascade:
        raise NearkinError("--near all compares embeddings, which these passages have not: choose ngrams or off")
    forbidden = [split for split in EVALUATION if split in guard.forbidden]
    texts = {split: pool.task.splits[split]["text"] for split in forbidden if split in pool.task.splits}
    if "excluded" in forbidden:
        outside = [texts_of(read_table(path), path) for path in exclude]
        texts["excluded"] = pa.chunked_array([chunk for column in outside for chunk in _chunks(column)])
    distinct = {reason: column.filter(pc.invert(is_blank(column))).unique() for reason, column in texts.items()}
    encoded = {
        reason: encode_texts(pool.store, pool.slug, pa.chunked_array([column]), pool.device, pool.report)
        for reason, column in distinct.items()
        if len(column)
    }
    return Nearness(True, lambda ids: pool.embeddings.take(ids).astype(np.float16), encoded, pool.device)


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _write_in_order(scratch: Path, path: Path, order: str, seed: int) -> None:
    """The rows of `scratch`, which stand in rank order, as Parquet in the order asked for, a block at a time."""
    with pa.memory_map(str(scratch)) as source, pq.ParquetWriter(path, AUGMENTATION, compression="zstd") as writer:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]  # mapped, not read
        if order == "random":
            sizes = np.array([len(batch) for batch in batches])
            rows = np.random.default_rng(seed).permutation(sizes.sum())
            # Every batch has some of any block's rows, so the rows of many blocks are gathered at once.
            blocks = max(int(READ_BYTES * len(rows) / max(scratch.stat().st_size, 1)) // BLOCK, 1)
            for start in range(0, len(rows), blocks * BLOCK):
                block = gathered(batches, np.cumsum(sizes), rows[start : start + blocks * BLOCK])
                for first in range(0, len(block), BLOCK):
                    writer.write_table(block.slice(first, BLOCK))
            return
        for batch in batches if order == "rank" else batches[::-1]:
            if len(batch) == 0:
                continue
            turned = batch if order == "rank" else batch.take(pa.array(np.arange(len(batch))[::-1]))
            writer.write_batch(turned)


def _how(pool: Pool) -> dict[str, Any]:
    """How neighbours were found, where any were."""
    if pool.encoder_name is None:
        return {"encoder": None}
    how: dict[str, Any] = {"min_recall": pool.promised} if pool.cascade else {"index": pool.index_used}
    if pool.centroids is not None:
        how["centroids"] = pool.centroids
    return {"encoder": pool.encoder_name, **how}


def _manifest(result: AugmentationSet, pool: Pool, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "store": str(pool.store.path.resolve()),
        "task": str(pool.task.path.resolve()),
        "task_texts": TextFingerprint.of(pool.task.train_texts),
        "method": method,
        "parameters": parameters,
        "seed": pool.seed,
        "passages": result.passages,
        "tokens": result.tokens,
        "tokenizer": pool.tokenizer,
        "queries": len(pool.task.train_texts),
        "shares": result.shares,
        "removed": asdict(result.removed),
        "seconds": round(result.seconds, 3),
        "stages": {stage: round(taken, 3) for stage, taken in result.stages.items()},
        "versions": versions(),
    }
