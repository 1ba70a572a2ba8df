"""Neighbours equal brute force in NumPy; inverted lists keep the recall they claim; ties stand in doc_id order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from selection.building import build, index
from selection.embedding import Embeddings
from selection.errors import NearkinError, StoreError
from selection.index.build import _flat_in_memory
from selection.index.plan import FLAT_ROWS, plan_index
from selection.index.search import neighbour_table, search
from selection.ingest import CorpusSpec
from selection.querying import query
from selection.selectors import encode_task
from selection.store import Store
from selection.task import read_task


def brute_force(
    corpus: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    scores = queries @ corpus.T
    order = np.lexsort((np.broadcast_to(np.arange(len(corpus)), scores.shape), -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, -1), order


def assert_same_neighbours(
    found: pa.Table, corpus: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], k: int
) -> None:
    """The same scores; and the same passages, except among scores that float32 arithmetic cannot tell apart."""
    scores, ids = brute_force(corpus, queries, k)
    np.testing.assert_allclose(found["score"].to_numpy().reshape(-1, k), scores, atol=2e-6)
    mine = found["doc_id"].to_numpy().reshape(-1, k)
    own = np.einsum("qkd,qd->qk", corpus[mine], queries)
    np.testing.assert_allclose(own, scores, atol=2e-6)
    tied = np.isclose(np.diff(scores, axis=1, prepend=9), 0, atol=2e-6)
    tied |= np.isclose(np.diff(scores, axis=1, append=-9), 0, atol=2e-6)
    edge = np.arange(k) == k - 1
    assert (mine == ids)[~tied & ~edge].all()
    assert all(len(set(row)) == k for row in mine)


def test_flat_equals_brute_force(built: Path, task_folder: Path) -> None:
    store = Store(built)
    queries = encode_task(store, "tiny-encoder", read_task(task_folder))
    corpus = np.concatenate(list(Embeddings(store, "tiny-encoder"))).astype(np.float32)
    found = search(store, "tiny-encoder", queries, 10)
    assert_same_neighbours(found, corpus, queries, 10)
    assert found["query_id"].to_numpy().tolist() == np.repeat(np.arange(len(queries)), 10).tolist()
    assert found["rank"].to_pylist()[:10] == list(range(1, 11))


@pytest.mark.slow
def test_flat_equals_brute_force_with_the_default_encoder(
    passages: pa.Table, corpus_file: Path, task_folder: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    pq.write_table(passages.slice(0, 200), tmp_path / "a.parquet")
    build(tmp_path / "store", [CorpusSpec("a", str(tmp_path / "a.parquet"))])
    store = Store(tmp_path / "store")
    queries = encode_task(store, "all-MiniLM-L6-v2", read_task(task_folder))
    corpus = np.concatenate(list(Embeddings(store, "all-MiniLM-L6-v2"))).astype(np.float32)
    assert_same_neighbours(search(store, "all-MiniLM-L6-v2", queries, 20), corpus, queries, 20)


def test_ivf_keeps_its_recall(store: Path, task_folder: Path) -> None:
    index(store, "ivf")
    entry = Store(store).manifest.indexes["tiny-encoder-ivf"]
    assert entry.settings["recall_at_10"] >= 0.95
    opened = Store(store)
    queries = encode_task(opened, "tiny-encoder", read_task(task_folder))
    exact = search(opened, "tiny-encoder", queries, 10, "flat")["doc_id"].to_numpy().reshape(-1, 10)
    found = search(opened, "tiny-encoder", queries, 10, "ivf")
    ids = np.full((len(queries), 10), -1)
    ids[found["query_id"].to_numpy(), found["rank"].to_numpy() - 1] = found["doc_id"].to_numpy()
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, ids, strict=True)])
    assert recall > 0.85


def test_ivf_is_the_same_bytes_each_time(store: Path) -> None:
    index(store, "ivf")
    path = store / "index" / "tiny-encoder-ivf" / "faiss.index"
    first = path.read_bytes()
    path.unlink()
    index(store, "ivf")
    assert path.read_bytes() == first


def test_flat_file_is_what_faiss_itself_writes(built: Path, tmp_path: Path) -> None:
    import faiss

    embeddings = Embeddings(Store(built), "tiny-encoder")
    faiss.write_index(_flat_in_memory(faiss, embeddings), str(tmp_path / "own.index"))
    written = built / "index" / "tiny-encoder-flat" / "faiss.index"
    assert written.read_bytes() == (tmp_path / "own.index").read_bytes()


def test_ties_stand_in_doc_id_order_and_empty_places_are_dropped() -> None:
    scores = np.array([[0.5, 0.9, 0.5, -np.inf]], dtype=np.float32)
    table = neighbour_table(scores, np.array([[7, 4, 2, -1]]))
    assert table["doc_id"].to_pylist() == [4, 2, 7]
    assert table["rank"].to_pylist() == [1, 2, 3]


def test_k_is_clipped_with_a_warning(built: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("selection.index.search.log.warning", lambda form, *values: said.append(form % values))
    answer = query(built, task_folder, 1000, limit=2)
    assert answer.neighbours.num_rows == 2 * 600
    assert "600 neighbours each" in said[0]


def test_rows_join_neighbours_with_their_passages(
    built: Path, task_folder: Path, passages: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selection.querying.FETCH_ROWS", 7)
    answer = query(built, task_folder, 3)
    parts = list(answer.rows())
    assert len(parts) > 10
    assert all(p.num_rows % 3 == 0 for p in parts)
    rows = pa.concat_tables(parts)
    assert rows["doc_id"].equals(answer.neighbours["doc_id"])
    assert rows["text"].to_pylist() == passages["text"].take(rows["doc_id"]).to_pylist()
    assert rows["id"].to_pylist() == passages["id"].take(rows["doc_id"]).to_pylist()


def test_damaged_or_old_index_is_not_read(store: Path, task_folder: Path, passages: pa.Table, tmp_path: Path) -> None:
    path = store / "index" / "tiny-encoder-flat" / "faiss.index"
    whole = path.read_bytes()
    path.write_bytes(whole[:-64] + bytes(64))
    with pytest.raises(StoreError, match="nearkin index"):
        query(store, task_folder, 3)
    index(store)
    assert path.read_bytes() == whole
    assert query(store, task_folder, 3).neighbours.num_rows > 0


def test_auto_is_exact_until_it_is_not_affordable() -> None:
    assert plan_index(134_000, 384).kind == "flat"
    large = plan_index(FLAT_ROWS + 1, 4)
    assert (large.kind, large.nlist) == ("ivf", 8944)
    with pytest.raises(NearkinError, match="GB to build"):
        plan_index(10**10, 384, "ivf")
    with pytest.raises(NearkinError, match="unknown index kind"):
        plan_index(10, 384, "tree")


def test_each_query_is_its_own_nearest_when_it_is_in_the_corpus(
    built: Path, passages: pa.Table, tmp_path: Path
) -> None:
    import json

    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in passages["text"].to_pylist()[40:50]) + "\n")
    answer = query(built, path, 1)
    assert answer.neighbours["doc_id"].to_pylist() == list(range(40, 50))
    assert pc.min(answer.neighbours["score"]).as_py() > 0.999
