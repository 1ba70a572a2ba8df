"""Augmentation set: a selector's candidates, guarded, without duplicates, cut to a budget, with provenance."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from selection.corpus import Corpus
from selection.errors import InputError, NearkinError
from selection.files import atomic_folder, write_json
from selection.gate import Gate, Removed
from selection.guard import Guard
from selection.selectors import Pool, Selector, SelectsFrom
from selection.selectors.registry import find_selector
from selection.store import Store
from selection.task import read_task
from selection.tokens import count_tokens
from selection.versions import versions

log = logging.getLogger(__name__)

BLOCK = 8192
ORDERS = ("rank", "random", "curriculum")
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
    """How much to select; the first limit that is reached ends the set.

    Attributes:
        k: passages a task example, before duplicates are removed.
        docs: passages in all.
        tokens: tokens in all, never exceeded.
        everything: no limit, for methods that take all there is.
    """

    k: int | None = None
    docs: int | None = None
    tokens: int | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        given = [value for value in (self.k, self.docs, self.tokens) if value is not None]
        if not given and not self.everything:
            raise NearkinError("say how much to select: -k, --docs or --tokens")
        if given and min(given) < 1:
            raise NearkinError("-k, --docs and --tokens must be at least 1")

    def check(self, size: int) -> None:
        """Raises InputError where a corpus of `size` passages cannot fill it."""
        for value, flag in ((self.docs, "--docs"), (self.k, "-k")):
            if value is not None and value > size:
                raise InputError(f"{flag} {value:,} is more than the {size:,} passages there are: ask for fewer")


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
        method: ``NAME[:PARAMETER=VALUE,...]``, see `selection.selectors.registry`; or a selector.
        budget: how much; where None, everything for methods that take all there is, else 50 passages a task example.
        exclude: files of texts that must not be selected.
        order: of the rows: ``rank`` (nearest first), ``random``, or ``curriculum`` (farthest first, nearest last).
        encoder: which of the store's encoders, where it has several; or ``cascade[:MODEL]``.
        index: which of its kinds of index; None takes the one made last.
        seed: for methods and orders that draw.
        overwrite: replace an existing OUT.
        min_recall: the share of the full encoder's neighbours that a cascade promises.
        report: told what a method plans and finds.

    Raises:
        NearkinError: anything the user can put right, before OUT is touched.
    """
    start = time.perf_counter()
    if order not in ORDERS:
        raise NearkinError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
    selector = find_selector(method) if isinstance(method, str) else method
    opened, examples = Store(store), read_task(task)
    budget = budget or (Budget(everything=True) if getattr(selector, "everything", False) else Budget(k=50))
    if examples.path.is_file():
        log.warning("%s is one file: only its own texts are guarded, give the task's folder or --exclude", task)
    for path in examples.unread:
        log.warning("%s is none of train, dev and test.jsonl: its texts are not guarded, name it with --exclude", path)
    pool = Pool(opened, examples, encoder, seed, device, index, min_recall, report)
    opened.check_corpora()
    guard = Guard.of(examples, [Path(p) for p in exclude])
    with atomic_folder(Path(out), overwrite) as folder:
        scratch = folder / "candidates.arrow"
        filled = assemble(selector, pool, guard, budget, scratch)
        _write_in_order(scratch, folder / "augmentation.parquet", order, seed)
        scratch.unlink()
        seconds = time.perf_counter() - start
        result = AugmentationSet(
            Path(out), filled.passages, filled.tokens, filled.shares, filled.gate.removed, seconds, dict(pool.seconds)
        )
        write_json(
            folder / "manifest.json",
            _manifest(result, pool, method if isinstance(method, str) else selector.name, budget, exclude, order),
        )
    opened.save_checked()
    return result


def assemble(selector: Selector, pool: Pool, guard: Guard, budget: Budget, scratch: Path) -> _Filling:
    """Asks `selector` for candidates, more of them while too few survive, until the budget is met.

    Memory: a block of candidates with their texts, and what the gate remembers of those let in; passages go to
    `scratch` (Arrow IPC, `AUGMENTATION`) as they are let in.

    Raises:
        InputError: nothing survives, or the corpus is smaller than the budget.
    """
    corpus = selector.corpus(pool) if isinstance(selector, SelectsFrom) else pool.corpus
    size = len(corpus)
    budget.check(size)
    wanted = size if budget.everything else min(size, _first_guess(budget, corpus, pool.tokenizer))
    stages = pool.seconds
    stages |= {"rank": 0.0, "fill": 0.0}
    while True:
        start = time.perf_counter()
        candidates = selector.candidates(pool, budget.k, wanted)
        ranked = time.perf_counter()
        filling = _Filling(selector.name, corpus, Gate(guard), budget, pool.tokenizer)
        with pa.ipc.new_file(str(scratch), AUGMENTATION) as writer:
            filling.take(candidates, writer)
        stages["rank"] += ranked - start
        stages["fill"] += time.perf_counter() - ranked
        if filling.full or budget.k is not None or wanted >= size or candidates.num_rows >= size:
            break
        wanted = min(size, wanted * 2)
    stages["rank"] -= stages.get("encode", 0.0)
    if filling.passages == 0:
        raise InputError("nothing was selected: every candidate is a text of the task, excluded, or over the budget")
    if not filling.full and budget.k is None and not budget.everything:
        if budget.tokens is not None and candidates.num_rows >= size:
            raise InputError(
                f"--tokens {budget.tokens:,} is more than the {filling.tokens:,} tokens that may be selected: "
                "ask for fewer"
            )
        log.warning("the budget was not reached: %s has no more passages that may be selected", selector.name)
    return filling


def _first_guess(budget: Budget, corpus: Corpus, tokenizer: str) -> int:
    if budget.docs is not None:
        return budget.docs + 1
    sample = corpus.take(np.linspace(0, len(corpus) - 1, 64).astype(np.int64), ["text"])
    mean = max(float(count_tokens(sample["text"], tokenizer).mean()), 1.0)
    return int((budget.tokens or 1) / mean * 1.2) + 16


class _Filling:
    """A set as it fills: candidates let in by the gate, in rank order, until the budget is met."""

    def __init__(self, method: str, corpus: Corpus, gate: Gate, budget: Budget, tokenizer: str) -> None:
        self.method, self.corpus, self.gate, self.budget, self.tokenizer = method, corpus, gate, budget, tokenizer
        self.passages = self.tokens = 0
        self.full = False
        self._sources: Counter[str] = Counter()

    @property
    def shares(self) -> dict[str, float]:
        """Share of the passages by corpus, largest first."""
        ordered = sorted(self._sources.items(), key=lambda item: (-item[1], item[0]))
        return {name: count / max(self.passages, 1) for name, count in ordered}

    def take(self, candidates: pa.Table, writer: pa.RecordBatchWriter) -> None:
        start = 0
        with tqdm(
            total=candidates.num_rows, desc=f"selecting {self.method}", unit=" candidates", disable=None, leave=False
        ) as bar:
            while start < candidates.num_rows and not self.full:
                block = candidates.slice(start, BLOCK)
                start += block.num_rows
                rows = self.corpus.take(block["doc_id"].to_numpy())
                keep = self.gate.admit(rows)
                counts = count_tokens(rows["text"].take(keep), self.tokenizer)
                fits = self._fit(counts)
                self.full = fits < len(keep) or self.passages + fits == self.budget.docs
                keep = keep[:fits]
                self.passages, self.tokens = self.passages + fits, self.tokens + int(counts[:fits].sum())
                kept = _rows(block.take(keep), rows.take(keep), self.method)
                for count in pc.value_counts(kept["source"]).to_pylist():
                    self._sources[count["values"]] += count["counts"]
                writer.write_table(kept)
                bar.update(block.num_rows)

    def _fit(self, counts: npt.NDArray[np.int64]) -> int:
        """How many of the next passages, of `counts` tokens each, the budget still takes."""
        fits = len(counts)
        if self.budget.docs is not None:
            fits = min(fits, self.budget.docs - self.passages)
        if self.budget.tokens is not None:
            left = self.budget.tokens - self.tokens
            fits = min(fits, int(np.searchsorted(np.cumsum(counts), left, "right")))
        return fits


def _rows(candidates: pa.Table, rows: pa.Table, method: str) -> pa.Table:
    columns = {name: candidates[name] for name in candidates.schema.names}
    columns |= {name: rows[name] for name in rows.schema.names}
    columns.setdefault("method", pa.repeat(pa.scalar(method), candidates.num_rows))
    return pa.table([columns[name] for name in AUGMENTATION.names], schema=AUGMENTATION)


def _write_in_order(scratch: Path, path: Path, order: str, seed: int) -> None:
    """The rows of `scratch`, which stand in rank order, as Parquet in the order asked for, a block at a time."""
    with pa.memory_map(str(scratch)) as source:
        table = pa.ipc.open_file(source).read_all()
        rows = np.arange(table.num_rows)
        if order == "random":
            np.random.default_rng(seed).shuffle(rows)
        elif order == "curriculum":
            rows = rows[::-1]
        with pq.ParquetWriter(path, AUGMENTATION, compression="zstd") as writer:
            for start in range(0, len(rows), BLOCK):
                writer.write_table(table.take(pa.array(rows[start : start + BLOCK])))


def _how(pool: Pool) -> dict[str, Any]:
    """How neighbours were found, where any were."""
    if pool.encoder_name is None:
        return {}
    return {"min_recall": pool.min_recall} if pool.cascade else {"index": pool.index}


def _manifest(
    result: AugmentationSet, pool: Pool, method: str, budget: Budget, exclude: Sequence[Path | str], order: str
) -> dict[str, Any]:
    how = {"encoder": pool.encoder_name, **_how(pool), "exclude": [str(p) for p in exclude], "order": order}
    return {
        "store": str(pool.store.path),
        "task": str(pool.task.path),
        "method": method,
        "parameters": {**asdict(budget), **how},
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
