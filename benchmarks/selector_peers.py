"""Published methods by other packages, dressed as selectors, so that they meet the same budget and the same gate."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from selection.index.ranking import neighbour_table
from selection.selectors import Pool, Selector
from selection.selectors.knn import union
from selection.selectors.ranked import candidate_table


@dataclass
class DataSelection:
    """DSIR by its authors: two passes over text in as many processes as there are cores, then resampling."""

    name: ClassVar[str] = "data-selection"
    package: ClassVar[str] = "data_selection"
    _fitted: Any = field(default=None, init=False, repr=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        from data_selection import HashedNgramDSIR

        count = min(pool.count(k, wanted), len(pool.corpus) - 1)
        if self._fitted is None:
            folder = tempfile.TemporaryDirectory(prefix="nearkin-")
            raw, target = Path(folder.name) / "raw.jsonl", Path(folder.name) / "target.jsonl"
            _write_lines(raw, _texts(pool))
            _write_lines(target, pool.task.train_texts.to_pylist())
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            fitted = HashedNgramDSIR([str(raw)], [str(target)], folder.name, num_proc=cores, min_example_length=0)
            fitted.fit_importance_estimator(num_tokens_to_fit="auto")
            fitted.compute_importance_weights()
            self._fitted = fitted, folder
        fitted, folder = self._fitted
        np.random.seed(pool.seed)  # noqa: NPY002 - the package draws from it
        out = Path(folder.name) / f"drawn-{count}"
        fitted.resample(str(out), count, cache_dir=str(out) + "-aside")
        found = [json.loads(line)["doc_id"] for path in sorted(out.glob("*.jsonl")) for line in path.open()]
        return candidate_table(np.random.default_rng(pool.seed).permutation(np.array(found, np.int64)))


@dataclass
class Bm25s:
    """BM25 by bm25s: the whole corpus tokenized and indexed, the k best passages of each task text."""

    name: ClassVar[str] = "bm25s"
    package: ClassVar[str] = "bm25s"
    _index: Any = field(default=None, init=False, repr=False)

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        import bm25s

        if self._index is None:
            tokens = bm25s.tokenize(list(_texts(pool)), show_progress=False)
            index = bm25s.BM25()
            index.index(tokens, show_progress=False)
            queries = bm25s.tokenize(pool.task.train_texts.to_pylist(), show_progress=False, return_ids=False)
            self._index = index, queries
        index, queries = self._index
        size = len(pool.corpus)
        each = k or max(1, -(-wanted // len(queries)))
        while True:
            ids, scores = index.retrieve(queries, k=min(each, size), show_progress=False, n_threads=0)
            found = union([neighbour_table(scores.astype(np.float32), ids.astype(np.int64))])
            if k is not None or found.num_rows >= min(wanted, size) or each >= size:
                return found
            each *= 2


PEERS: dict[str, Callable[[], Selector]] = {"data-selection": DataSelection, "bm25s": Bm25s}


def installed(peer: str) -> bool:
    """Whether the peer's package is there."""
    return find_spec({"data-selection": "data_selection"}.get(peer, peer)) is not None


def _texts(pool: Pool) -> Iterator[str]:
    for shard in range(len(pool.corpus.shards)):
        yield from pool.corpus.texts(shard).to_pylist()


def _write_lines(path: Path, texts: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"doc_id": number, "text": text}) + "\n")
