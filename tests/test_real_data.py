"""On the real corpora and tasks that NEARKIN_DATA names: the right domain is brought, and exact search is exact."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selection.augmentation import Budget, select
from selection.building import build
from selection.embedding import Embeddings
from selection.index.search import Searcher
from selection.ingest import CorpusSpec
from selection.store import Store
from selection.task import Task, read_task
from selection.task_vectors import encode_task
from tests.conftest import write_task
from tests.selection.test_index import assert_same_neighbours

DATA = Path(os.environ.get("NEARKIN_DATA", "/nowhere"))
CORPORA = ("biomed", "cs", "reviews", "news")

NEEDED = [
    *(DATA / "corpora" / f"{name}.parquet" for name in CORPORA),
    *(
        DATA / "tasks" / name / f"{s}.jsonl"
        for name in ("chemprot", "citation_intent")
        for s in ("train", "dev", "test")
    ),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(file.is_file() for file in NEEDED), reason="NEARKIN_DATA names no folder with these corpora and tasks"
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    specs = []
    for name in CORPORA:
        first = next(pq.ParquetFile(DATA / "corpora" / f"{name}.parquet").iter_batches(100))
        pq.write_table(pa.Table.from_batches([first]), folder / f"{name}.parquet")
        specs.append(CorpusSpec(name, str(folder / f"{name}.parquet")))
    build(folder / "store", specs, max_tokens=64)
    return folder / "store"


def small_task(name: str, folder: Path) -> Path:
    task: Task = read_task(DATA / "tasks" / name)
    return write_task(folder / name, {split: table.slice(0, 60) for split, table in task.splits.items()})


@pytest.mark.parametrize(("name", "domain"), [("chemprot", "biomed"), ("citation_intent", "cs")])
def test_a_task_brings_its_own_domain(name: str, domain: str, store: Path, tmp_path: Path) -> None:
    chosen = select(store, small_task(name, tmp_path), tmp_path / "set", "knn", Budget(k=2))
    assert next(iter(chosen.shares)) == domain
    assert chosen.shares[domain] > 0.8


def test_exact_search_is_exact(store: Path, tmp_path: Path) -> None:
    opened = Store(store)
    queries = encode_task(opened, "all-MiniLM-L6-v2-64", read_task(small_task("chemprot", tmp_path)))
    corpus = np.concatenate(list(Embeddings(opened, "all-MiniLM-L6-v2-64"))).astype(np.float32)
    assert_same_neighbours(Searcher(opened, "all-MiniLM-L6-v2-64").search(queries, 20), corpus, queries, 20)
