"""Augmentation set: a selector's candidates, guarded, without duplicates, cut to a budget, with provenance."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from selection.errors import InputError, NearkinError
from selection.files import atomic_folder, write_json
from selection.guard import Duplicates, Guard, normalise
from selection.selectors import CANDIDATES, Pool, Selector
from selection.selectors.registry import find_selector
from selection.store import Store
from selection.task import read_task
from selection.tokens import count_tokens
from selection.versions import versions

log = logging.getLogger(__name__)

BLOCK = 8192
AUGMENTATION = pa.schema(
    [
        ("doc_id", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("text", pa.large_string()),
        ("method", pa.string()),
        ("score", pa.float32()),
        ("rank", pa.int32()),
        ("query_id", pa.int32()),
        ("n_queries", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Budget:
    """How much to select; at least one is given, and the first that is reached ends the set.

    Attributes:
        k: passages a task example, before duplicates are removed.
        docs: passages in all.
        tokens: tokens in all, never exceeded.
    """

    k: int | None = None
    docs: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.k, self.docs, self.tokens) if value is not None]
        if not given:
            raise NearkinError("say how much to select: -k, --docs or --tokens")
        if min(given) < 1:
            raise NearkinError("-k, --docs and --tokens must be at least 1")


@dataclass
class Removed:
    """Candidates that were not let in, by reason."""

    duplicates: int = 0
    leaks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AugmentationSet:
    """A selected set.

    Attributes:
        table: columns of `AUGMENTATION`, best first.
        tokens: by the encoder's tokenizer, special tokens left out.
        removed: what the guard and the de-duplication kept out.
        seconds: of selection, the encoding of the task included.
    """

    table: pa.Table
    tokens: int
    removed: Removed
    seconds: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of the passages by corpus, largest first."""
        counts = pc.value_counts(self.table["source"]).to_pylist()
        total = max(self.table.num_rows, 1)
        return {c["values"]: c["counts"] / total for c in sorted(counts, key=lambda c: (-c["counts"], c["values"]))}


def select(
    store: Path | str,
    task: Path | str,
    out: Path | str,
    method: str = "knn",
    budget: Budget | None = None,
    *,
    exclude: Sequence[Path | str] = (),
    encoder: str | None = None,
    index: str | None = None,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    min_recall: float = 0.95,
    report: Callable[[str], None] = log.info,
) -> AugmentationSet:
    """Selects passages for a task and writes OUT/augmentation.parquet and OUT/manifest.json.

    Args:
        store, task: folders (the task may be one jsonl file).
        method: a selector's name.
        budget: how much; 50 neighbours a task example where None.
        exclude: files of texts that must not be selected.
        encoder: which of the store's encoders, where it has several; or ``cascade[:MODEL]``.
        index: which of its kinds of index; None takes the one made last.
        seed: for methods that draw.
        overwrite: replace an existing OUT.
        min_recall: the share of the full encoder's neighbours that a cascade promises.
        report: told what a cascade plans and finds.

    Raises:
        NearkinError: anything the user can put right, before OUT is touched.
    """
    start = time.perf_counter()
    budget = budget or Budget(k=50)
    selector, opened, examples = find_selector(method), Store(store), read_task(task)
    if examples.path.is_file():
        log.warning("%s is one file: only its own texts are guarded, give the task's folder or --exclude", task)
    for path in examples.unread:
        log.warning("%s is none of train, dev and test.jsonl: its texts are not guarded, name it with --exclude", path)
    pool = Pool(opened, examples, encoder, seed, device, index, min_recall, report)
    opened.check_corpora()
    guard = Guard.of(examples, [Path(p) for p in exclude])
    with atomic_folder(Path(out), overwrite) as folder:
        table, tokens, removed = assemble(selector, pool, guard, budget)
        result = AugmentationSet(table, tokens, removed, time.perf_counter() - start)
        pq.write_table(table, folder / "augmentation.parquet", compression="zstd")
        write_json(folder / "manifest.json", _manifest(result, pool, method, budget, exclude))
    opened.save_checked()
    return result


def assemble(selector: Selector, pool: Pool, guard: Guard, budget: Budget) -> tuple[pa.Table, int, Removed]:
    """Asks `selector` for candidates, more of them while too few survive, until the budget is met.

    Returns:
        (`AUGMENTATION` table, its tokens, what was removed).

    Raises:
        InputError: nothing survives.
    """
    size = len(pool.corpus)
    wanted = min(size, _first_guess(budget, pool))
    while True:
        candidates = selector.candidates(pool, budget.k, wanted)
        table, tokens, removed, full = _fill(candidates, selector.name, pool, guard, budget)
        if full or budget.k is not None or candidates.num_rows >= size or wanted >= size:
            break
        wanted = min(size, wanted * 2)
    if table.num_rows == 0:
        raise InputError("nothing was selected: every candidate is a text of the task, excluded, or over the budget")
    if not full and budget.k is None:
        log.warning("the budget was not reached: the corpus has no more passages that may be selected")
    return table, tokens, removed


def _first_guess(budget: Budget, pool: Pool) -> int:
    if budget.docs is not None:
        return budget.docs + 1
    sample = pool.corpus.take(np.linspace(0, len(pool.corpus) - 1, 64).astype(np.int64), ["text"])
    mean = max(float(count_tokens(sample["text"], pool.tokenizer).mean()), 1.0)
    return int((budget.tokens or 1) / mean * 1.2) + 16


def _fill(
    candidates: pa.Table, method: str, pool: Pool, guard: Guard, budget: Budget
) -> tuple[pa.Table, int, Removed, bool]:
    removed, seen, parts = Removed(leaks=dict.fromkeys(guard.forbidden, 0)), Duplicates(), []
    docs = tokens = start = 0
    full = False
    with tqdm(
        total=candidates.num_rows, desc=f"selecting {method}", unit=" candidates", disable=None, leave=False
    ) as bar:
        while start < candidates.num_rows and not full:
            block = candidates.slice(start, max(BLOCK, len(seen)))
            start += block.num_rows
            rows = pool.corpus.take(block["doc_id"].to_numpy())
            keep, normalised = _let_in(rows, guard, seen, removed)
            counts = count_tokens(rows["text"].take(keep), pool.tokenizer)
            fits = _fit(counts, budget, docs, tokens)
            full = fits < len(keep) or (budget.docs is not None and docs + fits >= budget.docs)
            keep, counts = keep[:fits], counts[:fits]
            seen.add(normalised.take(pa.array(keep)))
            docs, tokens = docs + len(keep), tokens + int(counts.sum())
            parts.append(_rows(block.take(keep), rows.take(keep), method))
            bar.update(block.num_rows)
    return pa.concat_tables(parts or [AUGMENTATION.empty_table()]), tokens, removed, full


def _let_in(rows: pa.Table, guard: Guard, seen: Duplicates, removed: Removed) -> tuple[np.ndarray[Any, Any], pa.Array]:
    """Positions that may enter, and all texts normalised; counts the others in `removed`."""
    normalised = normalise(rows["text"])
    forbidden = np.zeros(len(normalised), dtype=bool)
    for reason, hit in guard.reasons(normalised).items():
        removed.leaks[reason] += int(hit.sum())
        forbidden |= hit
    repeated = seen.repeated(normalised) & ~forbidden
    removed.duplicates += int(repeated.sum())
    return np.flatnonzero(~forbidden & ~repeated), normalised


def _fit(counts: np.ndarray[Any, Any], budget: Budget, docs: int, tokens: int) -> int:
    """How many of the next passages, of `counts` tokens each, the budget still takes."""
    fits = len(counts)
    if budget.docs is not None:
        fits = min(fits, budget.docs - docs)
    if budget.tokens is not None:
        fits = min(fits, int(np.searchsorted(np.cumsum(counts), budget.tokens - tokens, "right")))
    return fits


def _rows(candidates: pa.Table, rows: pa.Table, method: str) -> pa.Table:
    columns = {name: candidates[name] for name in CANDIDATES.names} | {name: rows[name] for name in rows.schema.names}
    columns["method"] = pa.repeat(pa.scalar(method), candidates.num_rows)
    return pa.table([columns[name] for name in AUGMENTATION.names], schema=AUGMENTATION)


def _how(pool: Pool) -> dict[str, Any]:
    """How neighbours were found."""
    if pool.encoder_name is None:
        return {}
    return {"min_recall": pool.min_recall} if pool.cascade else {"index": pool.index}


def _manifest(
    result: AugmentationSet, pool: Pool, method: str, budget: Budget, exclude: Sequence[Path | str]
) -> dict[str, Any]:
    return {
        "store": str(pool.store.path),
        "task": str(pool.task.path),
        "method": method,
        "parameters": {
            **asdict(budget),
            "encoder": pool.encoder_name,
            **_how(pool),
            "exclude": [str(p) for p in exclude],
        },
        "seed": pool.seed,
        "passages": result.table.num_rows,
        "tokens": result.tokens,
        "tokenizer": pool.tokenizer,
        "queries": len(pool.task.train_texts),
        "shares": result.shares,
        "removed": asdict(result.removed),
        "seconds": round(result.seconds, 3),
        "versions": versions(),
    }
