"""Passages that lie all over a corpus come in the order asked for, each shard read once, a bounded text at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from selection import filling
from selection.corpus import Corpus
from selection.fetching import Shelf, fetched
from selection.filling import AUGMENTATION, Budget, Filling
from selection.gate import Gate
from selection.guard import Guard
from selection.ingest import CorpusSpec, ingest
from selection.store import Store

MODEL = "all-MiniLM-L6-v2"


@pytest.fixture
def corpus(passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """600 passages in shards of 64, every fifth of them long."""
    monkeypatch.setattr("selection.corpus.SHARD_ROWS", 64)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    texts = [text * 9 if number % 5 == 0 else text for number, text in enumerate(passages["text"].to_pylist())]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    store = Store(tmp_path / "store", create=True)
    with store.lock():
        store.manifest.corpora = [ingest(store, CorpusSpec("c", str(tmp_path / "a.parquet")))]
        store.save()
    return store.corpus


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each shard was read."""
    counts: Counter[int] = Counter()
    plain = Corpus._read

    def counting(self: Corpus, shard: int, *given: Any) -> Iterator[pa.RecordBatch]:
        counts[shard] += 1
        return plain(self, shard, *given)

    monkeypatch.setattr(Corpus, "_read", counting)
    return counts


@pytest.mark.parametrize("most", [1, 5_000, 60_000, 1 << 30])
@pytest.mark.parametrize("kind", ["random", "sorted", "few", "repeated"])
def test_passages_come_as_asked_and_bounded(
    kind: str, most: int, corpus: Corpus, read: Counter[int], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    doc_ids = {
        "random": rng.permutation(600),
        "sorted": np.arange(600),
        "few": np.sort(rng.choice(600, 30, replace=False)),
        "repeated": rng.integers(0, 600, 200),
    }[kind]
    tables = list(fetched(corpus, doc_ids, tmp_path / "scratch.arrow", most))
    assert set(read.values()) == {1}
    assert pa.concat_tables(tables).equals(corpus.take(doc_ids))
    shard = max(shard.text_bytes for shard in corpus.shards)  # the least that is read at once
    longest = 600 if kind == "sorted" else 1
    for table in tables:
        assert table.num_rows <= longest or pc.sum(pc.binary_length(table["text"])).as_py() <= max(most, shard)
        if kind != "sorted":
            assert table.num_rows == 1 or pc.sum(pc.binary_length(table["text"])).as_py() <= most
    assert not (tmp_path / "scratch.arrow").exists()


def test_a_file_of_passages_is_removed_wherever_reading_stops(corpus: Corpus, tmp_path: Path) -> None:
    doc_ids = np.random.default_rng(0).permutation(600)
    reading = fetched(corpus, doc_ids, tmp_path / "scratch.arrow", 5_000)
    first = next(reading)
    assert (tmp_path / "scratch.arrow").exists()
    reading.close()
    assert not (tmp_path / "scratch.arrow").exists()
    assert first.equals(corpus.take(doc_ids[: first.num_rows]))
    shelf = Shelf(corpus, doc_ids, tmp_path / "scratch.arrow", 5_000)
    shelf.close()
    assert not (tmp_path / "scratch.arrow").exists()


@pytest.mark.parametrize("budget", [{"docs": 20}, {"docs": 300}, {"tokens": 9_000}, {"everything": True}])
def test_a_set_reads_what_its_budget_needs_and_no_more(
    budget: dict[str, int], corpus: Corpus, read: Counter[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = pa.table({
        "doc_id": np.random.default_rng(0).permutation(600),
        "score": np.zeros(600, np.float32), "rank": np.arange(600, dtype=np.int32),
        "query_id": np.zeros(600, np.int32), "n_queries": np.zeros(600, np.int32),
    })  # fmt: skip
    taken: list[int] = []
    plain = Corpus.take
    monkeypatch.setattr(Corpus, "take", lambda self, ids, *given: taken.append(len(ids)) or plain(self, ids, *given))

    def fill(name: str) -> Filling:
        taken.clear()
        read.clear()
        found = Filling("random", corpus, Gate(Guard({})), Budget(**budget), MODEL)  # type: ignore[arg-type]
        with pa.ipc.new_file(str(tmp_path / name), AUGMENTATION) as writer:
            found.take(candidates, writer, tmp_path / "scratch.arrow")
        return found

    fill("at-once.arrow")
    monkeypatch.setattr(filling, "READ_BYTES", 8_000)
    found = fill("in-parts.arrow")
    assert max(read.values()) <= (1 if "tokens" not in budget else 2)
    assert sum(taken) <= 1.5 * found.passages + 32
    assert not (tmp_path / "scratch.arrow").exists()
    one, other = (pa.ipc.open_file(str(tmp_path / f"{n}.arrow")).read_all() for n in ("at-once", "in-parts"))
    assert one.equals(other)
    assert one.num_rows == found.passages > 0
