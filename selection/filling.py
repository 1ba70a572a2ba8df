"""Filling: a selector's candidates, let in by the gate in rank order, until the budget is met."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from selection.corpus import Corpus
from selection.errors import InputError, NearkinError
from selection.fetching import fetched
from selection.gate import Gate
from selection.selectors import Pool, Selector, SelectsFrom
from selection.tokens import count_tokens

log = logging.getLogger(__name__)

BLOCK = 8192
READ_BYTES = 256 << 20
AT_ONCE = 1 << 27  # candidates, whatever the budget: 2 GB of numbers
BYTES_A_TOKEN = 4
SPARE, LEAST_LET_IN = 1.1, 0.1  # candidates read beyond what a budget needs; the share that is counted upon
NEARLY_FULL = 0.95  # of a budget in tokens, below which it is told what did not fit
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

    def check(self, corpus: Corpus) -> None:
        """Raises InputError where a corpus cannot fill it; a token has at least one byte."""
        size, most = len(corpus), corpus.text_bytes
        if self.tokens is not None and self.tokens > most:
            raise InputError(f"--tokens {self.tokens:,} is more than the text has: ask for fewer")
        for value, flag in ((self.docs, "--docs"), (self.k, "-k")):
            if value is not None and value > size:
                raise InputError(f"{flag} {value:,} is more than the {size:,} passages there are: ask for fewer")


def assemble(selector: Selector, pool: Pool, make_gate: Callable[[], Gate], budget: Budget, scratch: Path) -> Filling:
    """Asks `selector` for candidates, more of them while too few survive, until the budget is met.

    Memory: candidates with their texts, up to `READ_BYTES` at once, and what the gate remembers of those let in;
    passages go to `scratch` (Arrow IPC, `AUGMENTATION`) as they are let in. What does not fit at once lies in a file
    beside it meanwhile.

    Raises:
        InputError: nothing survives, or the corpus is smaller than the budget.
    """
    corpus = selector.corpus(pool) if isinstance(selector, SelectsFrom) else pool.corpus
    size = len(corpus)
    budget.check(corpus)
    pool.everything = budget.everything
    wanted = size if budget.everything else min(size, _first_guess(budget, corpus, pool.tokenizer))
    if budget.tokens is not None and wanted >= size:
        _check_tokens(budget.tokens, corpus, pool.tokenizer)
    stages = pool.seconds
    stages |= {"rank": 0.0, "fill": 0.0}
    while True:
        start = time.perf_counter()
        candidates = selector.candidates(pool, budget.k, wanted)
        ranked = time.perf_counter()
        filling = Filling(selector.name, corpus, make_gate(), budget, pool.tokenizer)
        with pa.ipc.new_file(str(scratch), AUGMENTATION) as writer:
            filling.take(candidates, writer, scratch.with_name("passages.arrow"))
        stages["rank"] += ranked - start
        stages["fill"] += time.perf_counter() - ranked
        if filling.full or budget.k is not None or wanted >= size or candidates.num_rows < wanted:
            break
        wanted = min(size, wanted * 2)
    stages["rank"] -= stages.get("encode", 0.0)
    if filling.passages == 0:
        raise InputError(f"nothing was selected: {_why_nothing(selector.name, candidates.num_rows, filling)}")
    if not filling.full and budget.k is None and not budget.everything:
        log.warning("the budget was not reached: %s has no more passages that may be selected", selector.name)
    if filling.misfit is not None and filling.tokens < NEARLY_FULL * (budget.tokens or 0):
        log.warning(
            "the set ends at %s of %s tokens, since the next passage has %s (long passages of a corpus are split by "
            "`nearkin build --chunk N`)",
            *(f"{number:,}" for number in (filling.tokens, budget.tokens or 0, filling.misfit)),
        )
    return filling


def _why_nothing(method: str, candidates: int, filling: Filling) -> str:
    if candidates == 0:
        return f"{method} finds no passage for this task"
    if filling.full:
        return "the best passage alone has more tokens than the budget"
    removed = filling.gate.removed
    counts = {"texts of the task or excluded": sum(removed.leaks.values()), "copies": removed.duplicates}
    counts |= {
        "near copies": removed.near_duplicates,
        "too near to dev, test or excluded": sum(removed.near_leaks.values()),
    }
    return "every candidate was kept out (" + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) + ")"


def _check_tokens(wanted: int, corpus: Corpus, tokenizer: str) -> None:
    """Raises InputError where a corpus has fewer tokens, asked before everything is ranked."""
    there = 0
    for shard in range(len(corpus.shards)):
        there += int(count_tokens(corpus.texts(shard), tokenizer).sum())
        if there >= wanted:
            return
    raise InputError(f"--tokens {wanted:,} is more than the {there:,} tokens there are: ask for fewer")


def _first_guess(budget: Budget, corpus: Corpus, tokenizer: str) -> int:
    if budget.docs is not None:
        return budget.docs + budget.docs // 10 + 16
    sample = corpus.take(np.linspace(0, len(corpus) - 1, 64).astype(np.int64), ["text"])
    mean = max(float(count_tokens(sample["text"], tokenizer).mean()), 1.0)
    return int((budget.tokens or 1) / mean * 1.2) + 16


class Filling:
    """A set as it fills: candidates let in by the gate, in rank order, until the budget is met.

    Attributes:
        passages, tokens: let in so far.
        full: whether the budget is met.
        misfit: the tokens of the passage that ended the set because it had more than were left; else None.
    """

    def __init__(self, method: str, corpus: Corpus, gate: Gate, budget: Budget, tokenizer: str) -> None:
        self.method, self.corpus, self.gate, self.budget, self.tokenizer = method, corpus, gate, budget, tokenizer
        self.passages = self.tokens = 0
        self.full = False
        self.misfit: int | None = None
        self._sources: Counter[str] = Counter()

    @property
    def shares(self) -> dict[str, float]:
        """Share of the passages by corpus, largest first."""
        ordered = sorted(self._sources.items(), key=lambda item: (-item[1], item[0]))
        return {name: count / max(self.passages, 1) for name, count in ordered}

    def take(self, candidates: pa.Table, writer: pa.RecordBatchWriter, scratch: Path) -> None:
        """Lets candidates in, in their order, until the budget is met.

        Args:
            candidates: with a column ``doc_id``, and those of `AUGMENTATION` that the method knows.
            writer: gets those let in, as `AUGMENTATION`.
            scratch: a file for passages that do not fit into memory, removed at the end.
        """
        bar = tqdm(
            total=candidates.num_rows, desc=f"selecting {self.method}", unit=" candidates", disable=None, leave=False
        )
        with bar, closing(self._read(candidates, scratch)) as blocks:
            for block, rows in blocks:
                if self.full:
                    return
                keep = self.gate.admit(block["doc_id"].to_numpy(), rows)
                counts = count_tokens(rows["text"].take(keep), self.tokenizer)
                fits = self._fit(counts)
                self.passages, self.tokens = self.passages + fits, self.tokens + int(counts[:fits].sum())
                self.full = fits < len(keep) or self.passages == self.budget.docs or self.tokens == self.budget.tokens
                if fits < len(keep) and self.passages != self.budget.docs:
                    self.misfit = int(counts[fits])
                keep = keep[:fits]
                self.gate.settle(int(keep[-1]) + 1 if self.full and fits else 0 if self.full else block.num_rows)
                kept = _rows(block.take(keep), rows.take(keep), self.method)
                for count in pc.value_counts(kept["source"]).to_pylist():
                    self._sources[count["values"]] += count["counts"]
                writer.write_table(kept)
                bar.update(block.num_rows)

    def _read(self, candidates: pa.Table, scratch: Path) -> Generator[tuple[pa.Table, pa.Table], None, None]:
        """Candidates with their passages, a block at a time, up to `READ_BYTES` of text in memory.

        As many are read at once as the budget can still need: they lie all over the corpus, and a shard takes about as
        long for one as for many.
        """
        doc_ids, start, few = candidates["doc_id"].to_numpy(), 0, 1
        while start < len(doc_ids):
            stop = min(start + max(self._needed(start), few), len(doc_ids))
            few = min(16 * few, BLOCK)  # where a tail lets hardly any in, it is not read a handful at a time
            with closing(fetched(self.corpus, doc_ids[start:stop], scratch, READ_BYTES)) as tables:
                for rows in tables:
                    for begin in range(0, rows.num_rows, BLOCK):
                        part = rows.slice(begin, BLOCK)
                        yield candidates.slice(start + begin, part.num_rows), part
                    start += rows.num_rows

    def _needed(self, seen: int) -> int:
        """How many candidates the budget may take to be met, behind the first `seen`."""
        let_in = max(self.passages / seen, LEAST_LET_IN) if seen else 1.0
        needed = AT_ONCE
        if self.budget.docs is not None:
            needed = min(needed, int(SPARE * (self.budget.docs - self.passages) / let_in) + 16)
        if self.budget.tokens is not None:
            mean = self.corpus.text_bytes / max(len(self.corpus), 1) / BYTES_A_TOKEN
            if self.passages:
                mean = self.tokens / self.passages
            needed = min(needed, int(SPARE * (self.budget.tokens - self.tokens) / (max(mean, 1.0) * let_in)) + 16)
        return needed

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
