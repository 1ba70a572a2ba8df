"""Curated: passages that the user brings (Curated-TAPT, Gururangan et al. 2020, section 5.1), guarded like all."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from selection.corpus import Corpus
from selection.ingest import CorpusSpec, ingest
from selection.selectors import Pool
from selection.selectors.ranked import candidate_table
from selection.store import Store


@dataclass
class CuratedSelector:
    """See `selection.selectors.Selector`. Its passages are a file's, in its order; doc_id numbers those with text.

    Attributes:
        file: whatever ``build --corpus`` takes: a file, folder or glob of text, csv, jsonl, Parquet or Arrow.
        column: where the text is.
    """

    file: str
    column: str = "text"
    name: ClassVar[str] = "curated"
    text_alone: ClassVar[bool] = True
    everything: ClassVar[bool] = True
    _opened: tuple[Corpus, Any] | None = field(default=None, init=False, repr=False)

    def corpus(self, pool: Pool) -> Corpus:
        if self._opened is None:
            folder = tempfile.TemporaryDirectory(prefix="nearkin-")  # what is no Parquet or Arrow is written there
            store = Store(Path(folder.name) / "curated", create=True)
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.file).name.split(".")[0]).strip("-._") or "curated"
            store.manifest.corpora.append(ingest(store, CorpusSpec(name, self.file, self.column)))
            self._opened = store.corpus, folder
        return self._opened[0]

    def candidates(self, pool: Pool, k: int | None, wanted: int) -> pa.Table:
        count = wanted if k is None else k * len(pool.task.train_texts)
        return candidate_table(np.arange(min(count, len(self.corpus(pool)))))
