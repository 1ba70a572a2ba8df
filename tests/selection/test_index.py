"""Neighbours equal brute force in NumPy; approximate kinds keep the recall they promise; what is there is kept."""

from __future__ import annotations

import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from selection.building import build
from selection.doctor import doctor
from selection.embedding import Embeddings
from selection.errors import MissingPackageError, NearkinError, StoreError
from selection.index import load_faiss, trial
from selection.index.blocks import Blocks, add_to_lists
from selection.index.build import build_index
from selection.index.kinds import BY_NAME, Kind, empty_index
from selection.index.kmeans import nearest_centroids, spherical_kmeans
from selection.index.pilot import Pilot, drawn
from selection.index.plan import IndexWanted, plan_index
from selection.index.ranking import neighbour_table
from selection.index.search import Searcher
from selection.index.trial import unit_vectors
from selection.index.tune import Probes, list_ranks
from selection.indexing import index
from selection.ingest import CorpusSpec
from selection.querying import query
from selection.selectors.pool import Pool
from selection.store import Store
from selection.task import read_task
from selection.task_vectors import encode_task
from selection.verifying import verify


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


@pytest.fixture
def parts_store(passages: pa.Table, tiny_encoder: Path, tmp_path: Path) -> Path:
    """A store of three shards."""
    import pyarrow.parquet as pq

    (tmp_path / "parts").mkdir()
    for number in range(3):
        pq.write_table(passages.slice(200 * number, 200), tmp_path / "parts" / f"{number}.parquet")
    build(tmp_path / "store", [CorpusSpec("parts", str(tmp_path / "parts"))], encoder=str(tiny_encoder))
    return tmp_path / "store"


def test_the_stream_equals_brute_force(built: Path, task_folder: Path) -> None:
    store = Store(built)
    queries = encode_task(store, "tiny-encoder", read_task(task_folder))
    corpus = np.concatenate(list(Embeddings(store, "tiny-encoder"))).astype(np.float32)
    found = Searcher(store, "tiny-encoder").search(queries, 10)
    assert_same_neighbours(found, corpus, queries, 10)
    assert found["query_id"].to_numpy().tolist() == np.repeat(np.arange(len(queries)), 10).tolist()
    assert found["rank"].to_pylist()[:10] == list(range(1, 11))


@pytest.mark.slow
def test_the_stream_equals_brute_force_with_the_default_encoder(
    passages: pa.Table, corpus_file: Path, task_folder: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    pq.write_table(passages.slice(0, 200), tmp_path / "a.parquet")
    build(tmp_path / "store", [CorpusSpec("a", str(tmp_path / "a.parquet"))])
    store = Store(tmp_path / "store")
    queries = encode_task(store, "all-MiniLM-L6-v2", read_task(task_folder))
    corpus = np.concatenate(list(Embeddings(store, "all-MiniLM-L6-v2"))).astype(np.float32)
    assert_same_neighbours(Searcher(store, "all-MiniLM-L6-v2").search(queries, 20), corpus, queries, 20)


APPROXIMATE = ("ivf", "ivf-sq8", "ivf-pq", "ivf-rabitq", "hnsw")


def ids_of_table(found: pa.Table, n: int, k: int) -> npt.NDArray[np.int64]:
    ids = np.full((n, k), -1)
    ids[found["query_id"].to_numpy(), found["rank"].to_numpy() - 1] = found["doc_id"].to_numpy()
    return ids


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_approximate_index_keeps_the_recall_it_promises(store: Path, task_folder: Path, kind: str) -> None:
    index(store, kind, min_recall=0.9, task=task_folder)
    entry = Store(store).manifest.indexes[f"tiny-encoder-{kind}"]
    assert entry.settings["recall"] + 2 * entry.settings["recall_error"] >= 0.9
    opened = Store(store)
    queries = encode_task(opened, "tiny-encoder", read_task(task_folder))
    exact = Searcher(opened, "tiny-encoder", "stream").search(queries, 50)["doc_id"].to_numpy().reshape(-1, 50)
    table = Searcher(opened, "tiny-encoder").search(queries, 50)
    found = ids_of_table(table, len(queries), 50)
    recall = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(exact, found, strict=True)])
    assert recall > 0.85
    vectors = np.concatenate(list(Embeddings(opened, "tiny-encoder"))).astype(np.float32)
    own = np.einsum("nd,nd->n", vectors[table["doc_id"].to_numpy()], queries[table["query_id"].to_numpy()])
    np.testing.assert_allclose(table["score"].to_numpy(), own, atol=2e-6)


def test_flat_gives_what_the_stream_gives(store: Path, task_folder: Path) -> None:
    opened = Store(store)
    queries = encode_task(opened, "tiny-encoder", read_task(task_folder))
    streamed = Searcher(opened, "tiny-encoder").search(queries, 10)
    index(store, "flat")
    assert Searcher(Store(store), "tiny-encoder", "flat").search(queries, 10)["score"].equals(streamed["score"])


def blocks_of(store: Path, kind: str) -> list[Path]:
    return [store / block.file.path for block in Store(store).manifest.indexes[f"tiny-encoder-{kind}"].blocks]


def test_a_killed_index_goes_on_and_ends_as_one_that_was_not(
    parts_store: Path, monkeypatch: pytest.MonkeyPatch, task_folder: Path
) -> None:
    monkeypatch.setattr("selection.index.plan.BLOCK_BYTES", 6000)
    kind = "ivf"
    index(parts_store, kind)
    whole = [path.read_bytes() for path in blocks_of(parts_store, kind)]
    assert len(whole) == 3
    index(parts_store, "stream")
    from selection.index import blocks

    shutil.rmtree(parts_store / "index")
    real, count = blocks.write_index, [0]

    def killed(faiss: object, made: object, path: str) -> None:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        real(faiss, made, path)

    monkeypatch.setattr(blocks, "write_index", killed)
    with pytest.raises(KeyboardInterrupt):
        index(parts_store, kind)
    with pytest.raises(StoreError, match=r"faiss-00001.index is missing: run `nearkin index"):
        query(parts_store, task_folder, 3, index="ivf")
    assert query(parts_store, task_folder, 3).neighbours.num_rows > 0  # by the index before it
    monkeypatch.setattr(blocks, "write_index", real)
    before = blocks_of(parts_store, f"{kind}~")[0].stat().st_mtime_ns
    index(parts_store, kind)
    assert f"tiny-encoder-{kind}~" not in Store(parts_store).manifest.indexes
    assert [path.read_bytes() for path in blocks_of(parts_store, kind)] == whole
    assert blocks_of(parts_store, kind)[0].stat().st_mtime_ns == before


def test_an_index_answers_until_the_one_in_its_place_is_whole(
    parts_store: Path, monkeypatch: pytest.MonkeyPatch, task_folder: Path
) -> None:
    """At every block of the remade one, after a kill, and from files that nothing was written over."""
    from selection.index import blocks, build

    index(parts_store, "ivf")
    found = query(parts_store, task_folder, 5, index="ivf").neighbours
    monkeypatch.setattr("selection.index.plan.BLOCK_BYTES", 6000)
    monkeypatch.setattr(build, "_other", lambda entry, plan: not entry.settings.get("new", not entry.settings))
    real, count = blocks.write_index, [0]

    def written(faiss: object, made: object, path: str) -> None:
        assert query(parts_store, task_folder, 5, index="ivf").neighbours.equals(found)
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        real(faiss, made, path)

    monkeypatch.setattr(blocks, "write_index", written)
    with pytest.raises(KeyboardInterrupt):
        index(parts_store, "ivf", task=task_folder)
    assert query(parts_store, task_folder, 5, index="ivf").neighbours.equals(found)
    index(parts_store, "ivf", task=task_folder)
    assert count[0] == 4  # the two before the kill are not made again
    assert len(blocks_of(parts_store, "ivf")) == 3
    assert {path.name for path in (parts_store / "index" / "tiny-encoder-ivf").glob("*.index")} == {
        path.name for path in blocks_of(parts_store, "ivf")
    }
    assert query(parts_store, task_folder, 5, index="ivf").neighbours.num_rows == found.num_rows
    assert [said for _, said in verify(parts_store) if said] == []


def test_a_full_disk_does_not_give_an_index_up(
    parts_store: Path, monkeypatch: pytest.MonkeyPatch, task_folder: Path, passages: pa.Table, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    from selection.index import blocks

    index(parts_store, "ivf")
    pq.write_table(passages.slice(100, 300), tmp_path / "parts" / "3.parquet")
    real = blocks.write_index
    monkeypatch.setattr(blocks, "write_index", lambda faiss, made, path: real(faiss, made, "/dev/full"))
    with pytest.raises(NearkinError, match="no space left"):
        build(parts_store)
    monkeypatch.setattr(blocks, "write_index", real)
    build(parts_store)
    assert Store(parts_store).manifest.encoders["tiny-encoder"].settings["index"] == "ivf"
    assert query(parts_store, task_folder, 5).neighbours.num_rows == 40 * 5
    assert [said for _, said in verify(parts_store) if said] == []


def test_many_blocks_are_opened_many_times(
    passages: pa.Table, tiny_encoder: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr("selection.corpus.SHARD_ROWS", 32)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    monkeypatch.setattr("selection.index.plan.BLOCK_BYTES", 100)
    pq.write_table(passages, tmp_path / "a.parquet")
    build(tmp_path / "store", [CorpusSpec("a", str(tmp_path / "a.parquet"))], encoder=str(tiny_encoder), index="ivf")
    assert len(blocks_of(tmp_path / "store", "ivf")) > 12
    first = query(tmp_path / "store", task_folder, 5).neighbours
    for _ in range(4):
        assert query(tmp_path / "store", task_folder, 5).neighbours.equals(first)


def test_a_batch_that_visits_fewer_lists_than_there_are_is_searched(store: Path) -> None:
    index(store, "ivf", min_recall=0.5)
    opened = Store(store)
    embeddings = Embeddings(opened, "tiny-encoder")
    blocks = Blocks(opened, opened.manifest.indexes["tiny-encoder-ivf"], embeddings)
    blocks.centroids = unit_vectors(700, 32)  # more lists than a batch of 512 visits
    faiss, vectors = load_faiss(), embeddings.take(np.arange(600))
    filled = empty_index(faiss, BY_NAME["ivf"], 32, blocks.centroids, vectors)
    add_to_lists(faiss, filled, vectors, np.ascontiguousarray(nearest_centroids(vectors, blocks.centroids)[:, 0]))
    blocks._open = [(0, filled)]
    assert blocks.search(vectors[:512], 1, 1, 1)[1][:, 0].tolist() == list(range(512))


@pytest.mark.parametrize("kind", ["ivf", "ivf-pq", "ivf-rabitq"])
def test_blocks_share_the_centroids_that_the_first_holds(
    parts_store: Path, monkeypatch: pytest.MonkeyPatch, task_folder: Path, kind: str
) -> None:
    monkeypatch.setattr("selection.index.plan.BLOCK_BYTES", 3000)
    plan = index(parts_store, kind, min_recall=0.8)
    opened = Store(parts_store)
    entry = opened.manifest.indexes[f"tiny-encoder-{kind}"]
    blocks = Blocks(opened, entry, Embeddings(opened, "tiny-encoder"))
    assert len(blocks._open) == 3
    assert len({int(each.quantizer.this) for _, each in blocks._open}) == 1
    sizes = [path.stat().st_size for path in blocks_of(parts_store, kind)]
    assert sum(sizes) == pytest.approx(plan.bytes, rel=0.25)
    found = query(parts_store, task_folder, 10).neighbours
    # As earlier versions wrote them, a copy of the centroids in each.
    monkeypatch.setattr("selection.index.blocks._without_centroids", lambda faiss, index: nullcontext())
    shutil.rmtree(parts_store / "index")
    index(parts_store, kind, min_recall=0.8)
    before = [path.stat().st_size for path in blocks_of(parts_store, kind)]
    assert [b - a for a, b in zip(sizes, before, strict=True)] == [0, *[entry.lists * 32 * 4] * 2]
    assert query(parts_store, task_folder, 10).neighbours.equals(found)


def test_a_corpus_added_later_leaves_the_blocks_before_it(
    store: Path, task_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    index(store, "ivf")
    first = blocks_of(store, "ivf")[0].stat().st_mtime_ns
    pq.write_table(pq.read_table(corpus_file).slice(5, 90), tmp_path / "more.parquet")
    build(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))], index="ivf")
    paths = blocks_of(store, "ivf")
    assert len(paths) == 2
    assert paths[0].stat().st_mtime_ns == first
    answer = query(store, task_folder, 20)
    exact = query(store, task_folder, 20, index="stream")
    shared = np.mean(
        [
            len(np.intersect1d(a, b)) / 20
            for a, b in zip(
                ids_of_table(answer.neighbours, len(answer.task.train_texts), 20),
                ids_of_table(exact.neighbours, len(answer.task.train_texts), 20),
                strict=True,
            )
        ]
    )
    assert shared > 0.85
    assert answer.neighbours["doc_id"].to_numpy().max() >= 600


def test_a_recall_that_is_not_reached_leaves_the_index_before_it_in_use(
    store: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BY_NAME, "ivf-pq", Kind("ivf-pq", (1,)))  # tiny: more candidates would be all passages
    with pytest.raises(NearkinError, match=r"finds .* of the exact neighbours again and 100% are asked for"):
        index(store, "ivf-pq", min_recall=1.0)
    assert query(store, task_folder, 3).neighbours.num_rows > 0
    assert Store(store).manifest.encoders["tiny-encoder"].settings["index"] == "stream"


def test_an_index_that_failed_to_take_the_place_of_its_kind_is_not_searched(
    store: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(store, "ivf")
    opened = Store(store)
    with opened.lock():
        opened.manifest.indexes["tiny-encoder-ivf"].embeddings = "of other texts"
        opened.manifest.indexes["tiny-encoder-ivf"].blocks[0].embeddings = "of other texts"
        opened.save()

    def unreached(*arguments: object) -> None:
        raise NearkinError("not reached")

    monkeypatch.setattr("selection.index.build.tune", unreached)
    with pytest.raises(NearkinError, match="not reached"):
        index(store, "ivf")
    assert query(store, task_folder, 3).neighbours.num_rows > 0


def test_too_little_memory_is_said_with_what_would_do(store: Path) -> None:
    import re

    with pytest.raises(NearkinError, match="--max-memory") as raised:
        index(store, "ivf", max_memory=1_000_000)
    least = re.search(r"at least ([\d.]+) (MB|GB)", str(raised.value))
    assert least
    enough = float(least[1]) * (1e6 if least[2] == "MB" else 1e9) + 2e8
    assert index(store, "ivf", max_memory=int(enough)).kind.name == "ivf"


def test_a_dry_run_writes_nothing(store: Path) -> None:
    before = sorted(p for p in store.rglob("*") if p.is_file() and p.name != ".checked.json")
    plan = index(store, "ivf-sq8", dry_run=True)
    assert plan.bytes > 0
    assert plan.build_seconds > 0
    assert sorted(p for p in store.rglob("*") if p.is_file() and p.name != ".checked.json") == before


def test_ivf_is_the_same_bytes_each_time(store: Path) -> None:
    index(store, "ivf")
    path = store / "index" / "tiny-encoder-ivf" / "faiss.index"
    first = path.read_bytes()
    path.unlink()
    index(store, "ivf")
    assert path.read_bytes() == first


def test_empty_places_are_dropped() -> None:
    table = neighbour_table(np.array([[0.9, 0.5, -np.inf]], dtype=np.float32), np.array([[4, 2, -1]]))
    assert table["doc_id"].to_pylist() == [4, 2]
    assert table["rank"].to_pylist() == [1, 2]


def test_a_method_that_wants_more_neighbours_than_there_are_gets_all(
    built: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("selection.index.search.log.warning", lambda form, *values: said.append(form % values))
    pool = Pool(Store(built), read_task(task_folder))
    assert sum(len(part) for part in pool.neighbours(1000)) == 600 * len(pool.queries)
    assert "600 neighbours each" in said[0]


@pytest.mark.parametrize(("kind", "searches"), [("stream", 3), ("ivf", 8)])
def test_exact_search_takes_more_pairs_at_once_and_gives_them_in_as_many_tables(
    store: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, searches: int
) -> None:
    index(store, kind)
    whole = pa.concat_tables(Pool(Store(store), read_task(task_folder)).neighbours(7)).combine_chunks()
    assert whole.num_rows == 40 * 7
    asked, search = [], Searcher.search
    monkeypatch.setattr(
        Searcher,
        "search",
        lambda self, queries, k, first: asked.append(len(queries)) or search(self, queries, k, first),
    )
    monkeypatch.setattr("selection.selectors.pool.BLOCK_PAIRS", 35)
    monkeypatch.setattr("selection.selectors.pool.STREAM_PAIRS", 100)
    parts = list(Pool(Store(store), read_task(task_folder)).neighbours(7))
    assert len(asked) == searches
    assert max(len(part) for part in parts) == 35
    assert pa.concat_tables(parts).combine_chunks().equals(whole)


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


def test_long_neighbours_are_joined_few_at_a_time(
    built: Path, task_folder: Path, passages: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the last ones had, where all of them are far longer than the corpus's mean."""
    lengths = pc.binary_length(passages["text"]).to_numpy()
    longest = np.tile(np.argsort(lengths)[::-1][:5], 40)
    answer = query(built, task_folder, 5)
    table = answer.neighbours.slice(0, 200).set_column(
        answer.neighbours.schema.get_field_index("doc_id"), "doc_id", pa.array(longest)
    )
    most = int(lengths.mean() * 25)
    monkeypatch.setattr("selection.querying.FETCH_BYTES", most)
    sizes = [sum(map(len, part["text"].to_pylist())) for part in replace(answer, neighbours=table).rows()]
    assert len(sizes) > 3
    assert max(sizes[1:]) <= max(most, lengths[longest[:5]].sum())
    assert max(sizes[1:]) < sizes[0]


def test_damaged_index_is_not_read(store: Path, task_folder: Path) -> None:
    index(store, "ivf")
    path = store / "index" / "tiny-encoder-ivf" / "faiss.index"
    whole = path.read_bytes()
    path.write_bytes(whole[:-64] + bytes(64))
    with pytest.raises(StoreError, match=r"nearkin index .* --kind ivf"):
        query(store, task_folder, 3)
    index(store, "ivf")
    assert path.read_bytes() == whole
    assert query(store, task_folder, 3).neighbours.num_rows > 0


def test_auto_is_exact_until_lists_pay_for_themselves() -> None:
    assert plan_index(134_000, 384, IndexWanted()).kind.name == "stream"
    many = plan_index(50_000_000, 384, IndexWanted(queries=10_000_000))
    assert many.kind.has_lists
    assert many.lists > 100  # how many goes by what this machine does just now
    late = plan_index(50_000_000, 384, IndexWanted(queries=10_000_000, max_seconds=1))
    assert "nothing fits into" in late.why
    with pytest.raises(NearkinError, match="unknown index kind"):
        plan_index(10, 384, IndexWanted("tree"))


def test_a_plan_says_the_bytes_of_its_files(store: Path) -> None:
    for kind in APPROXIMATE:
        plan = index(store, kind, min_recall=0.5)
        size = sum(path.stat().st_size for path in blocks_of(store, kind))
        assert size == pytest.approx(plan.bytes, rel=0.25), kind


def test_centroids_are_those_of_lloyds_algorithm() -> None:
    rng = np.random.default_rng(0)
    truth = np.eye(8, dtype=np.float32)
    points = np.repeat(truth, 50, axis=0) + 0.05 * rng.standard_normal((400, 8)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    found = spherical_kmeans(points, 8, seed=1)
    best = (found @ truth.T).max(axis=0)
    assert (best > 0.7).all()
    which = nearest_centroids(points, found)[:, 0]
    for number in range(8):
        mine = points[which == number].sum(axis=0)
        np.testing.assert_allclose(found[number], mine / np.linalg.norm(mine), atol=0.02)
    np.testing.assert_array_equal(nearest_centroids(points, found, 3)[:, 0], which)


class Watched:
    """Vectors that remember how many were asked for at once."""

    def __init__(self, vectors: npt.NDArray[np.float32]) -> None:
        self.vectors, self.most = vectors, 0

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        self.most = max(self.most, len(self.vectors[rows]))
        return self.vectors[rows]


@pytest.mark.parametrize("count", [1, 5])
def test_scores_of_very_many_lists_are_held_for_few_vectors_at_once(count: int) -> None:
    lists = 40_000
    centroids, queries = unit_vectors(lists, 4), unit_vectors(700, 4, 1)
    watched = Watched(queries)
    found = nearest_centroids(watched, centroids, count)  # type: ignore[arg-type]
    assert 64 <= watched.most <= (64 << 20) // (4 * lists) < len(queries)
    parts = [nearest_centroids(queries[start : start + 100], centroids, count) for start in range(0, 700, 100)]
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_less_memory_for_scores_changes_no_centroid_and_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.repeat(unit_vectors(30, 16), 40, axis=0)  # fewer places than lists: some are empty
    neighbours, probes = points[:600].reshape(60, 10, 16), Probes(unit_vectors(60, 16, 2), np.arange(60), np.empty(0))
    first = spherical_kmeans(points, 50)
    ranks = list_ranks(probes, neighbours, first)
    for name, value in {"SCORE_BYTES": 1, "LEAST_ROWS": 64, "ROWS": 64}.items():
        monkeypatch.setattr(f"selection.index.kmeans.{name}", value)
    np.testing.assert_array_equal(spherical_kmeans(points, 50), first)
    np.testing.assert_array_equal(list_ranks(probes, neighbours, first), ranks)
    order = np.argsort(-(probes.queries @ first.T), axis=1)
    home = nearest_centroids(points[:600], first)[:, 0].reshape(60, 10)
    np.testing.assert_array_equal(ranks, (order[:, None] == home[:, :, None]).argmax(axis=2) + 1)


def test_each_query_is_its_own_nearest_when_it_is_in_the_corpus(
    built: Path, passages: pa.Table, tmp_path: Path
) -> None:
    import json

    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in passages["text"].to_pylist()[40:50]) + "\n")
    answer = query(built, path, 1)
    assert answer.neighbours["doc_id"].to_pylist() == list(range(40, 50))
    assert pc.min(answer.neighbours["score"]).as_py() > 0.999


@pytest.mark.parametrize("kind", ["ivf", "ivf-rabitq", "hnsw"])
@pytest.mark.parametrize("rows", [1, 2, 10, 300])
def test_tiny_corpora_have_their_index(
    kind: str, rows: int, passages: pa.Table, tiny_encoder: Path, tmp_path: Path
) -> None:
    import json

    import pyarrow.parquet as pq

    pq.write_table(passages.slice(0, rows), tmp_path / "a.parquet")
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": passages["text"][0].as_py()}) + "\n")
    build(tmp_path / "store", [CorpusSpec("a", str(tmp_path / "a.parquet"))], encoder=str(tiny_encoder), index=kind)
    index(tmp_path / "store", kind, task=tmp_path / "one.jsonl")
    assert query(tmp_path / "store", tmp_path / "one.jsonl", 1).neighbours["doc_id"].to_pylist() == [0]


def test_codes_that_need_more_passages_are_refused(passages: pa.Table, tiny_encoder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(passages.slice(0, 40), tmp_path / "a.parquet")
    build(tmp_path / "store", [CorpusSpec("a", str(tmp_path / "a.parquet"))], encoder=str(tiny_encoder))
    with pytest.raises(NearkinError, match="256 passages at least and there are 40"):
        index(tmp_path / "store", "ivf-pq")


@pytest.mark.parametrize("k", [5, 300])
def test_an_index_finds_as_many_as_were_asked_for(store: Path, task_folder: Path, k: int) -> None:
    index(store, "ivf-pq", min_recall=0.6)
    answer, exact = query(store, task_folder, k), query(store, task_folder, k, index="stream")
    assert answer.neighbours.num_rows == exact.neighbours.num_rows
    n = len(answer.task.train_texts)
    pairs = zip(ids_of_table(answer.neighbours, n, k), ids_of_table(exact.neighbours, n, k), strict=True)
    assert np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs]) > 0.6


def test_a_corpus_that_has_grown_many_times_gets_its_lists_anew(
    passages: pa.Table, tiny_encoder: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    for name, part in (("few", passages.slice(0, 40)), ("many", passages.slice(40))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
        corpus = CorpusSpec(name, str(tmp_path / f"{name}.parquet"))
        build(tmp_path / "store", [corpus], encoder=str(tiny_encoder) if name == "few" else None, index="ivf")
    entry = Store(tmp_path / "store").manifest.indexes["tiny-encoder-ivf"]
    assert len(entry.blocks) == 1
    assert entry.lists > 10


def test_a_build_keeps_the_kind_that_was_chosen_and_verify_finds_all_well(
    store: Path, corpus_file: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    index(store, "ivf-sq8")
    pq.write_table(pq.read_table(corpus_file).slice(5, 90), tmp_path / "more.parquet")
    build(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))])
    assert Store(store).manifest.encoders["tiny-encoder"].settings["index"] == "ivf-sq8"
    assert all(problem is None for _, problem in verify(store))
    told = (store / "index" / "tiny-encoder-ivf-sq8" / "manifest.json").read_text()
    assert '"recall"' in told


def test_auto_falls_back_to_exact_search_where_no_index_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selection.index.plan.current_memory", lambda: 0)
    wanted = IndexWanted(queries=50_000_000, max_memory=80_000_000)
    assert plan_index(5_000_000, 32, wanted).kind.name == "stream"
    with pytest.raises(NearkinError, match=r"at least .* 80.0 MB are allowed"):
        plan_index(5_000_000, 32, replace(wanted, kind="ivf"))


def test_many_small_shards_are_planned_for(passages: pa.Table, tiny_encoder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "parts").mkdir()
    for number in range(90):
        pq.write_table(passages.slice(number, 2), tmp_path / "parts" / f"{number}.parquet")
    build(tmp_path / "store", [CorpusSpec("p", str(tmp_path / "parts"))], encoder=str(tiny_encoder))
    embeddings = Embeddings(Store(tmp_path / "store"), "tiny-encoder")
    assert len(embeddings) == 180
    assert Pilot(drawn(embeddings)).reaches(0.95) == []


def test_a_large_batch_is_told_where_the_promise_is_not_kept(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index(store, "ivf")
    opened = Store(store)
    monkeypatch.setattr("selection.index.search.CHECKED_FROM", 100)
    queries = Embeddings(opened, "tiny-encoder").take(np.arange(200))
    searcher = Searcher(opened, "tiny-encoder")
    searcher.search(queries, 10)
    assert not caplog.records
    searcher = Searcher(opened, "tiny-encoder")
    searcher.entry.settings["effort"] = {"10": 1}
    searcher.search(queries, 10)
    assert "% were promised" in caplog.text


@pytest.mark.parametrize("kind", ["ivf", "ivf-sq8"])
def test_a_batch_by_lists_finds_what_one_by_one_does(
    parts_store: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("selection.index.plan.BLOCK_BYTES", 6000)
    index(parts_store, kind)
    assert len(blocks_of(parts_store, kind)) > 1
    opened = Store(parts_store)
    queries = Embeddings(opened, "tiny-encoder").take(np.arange(300))
    alone = Searcher(opened, "tiny-encoder").search(queries, 7)
    monkeypatch.setattr("selection.index.blocks.BATCH", 100)
    capsys.readouterr()
    assert Searcher(opened, "tiny-encoder").search(queries, 7).equals(alone)
    assert capsys.readouterr().out == ""


def test_a_plan_and_an_index_search_on_the_device_that_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store(store)
    embeddings, asked = Embeddings(opened, "tiny-encoder"), list[str | None]()

    def devices(device: str | None) -> list[str]:
        asked.append(device)
        return ["cpu"]

    monkeypatch.setattr("selection.index.exact.search_devices", devices)
    monkeypatch.setattr("selection.index.pilot.LENGTHS", (16,))
    monkeypatch.setattr("selection.index.plan.LENGTHS", (1,))
    trial.pair_seconds.cache_clear()
    plan = plan_index(600, 32, IndexWanted("ivf", 0.5), store, embeddings, device="cpu")
    with opened.lock():
        build_index(opened, "tiny-encoder", plan, device="cpu")
    assert len(asked) > 3
    assert set(asked) == {"cpu"}


def test_an_index_is_read_into_memory_where_it_cannot_be_mapped(
    store: Path, task_folder: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss
    import pyarrow.parquet as pq

    index(store, "ivf")
    mapped = query(store, task_folder, 5).neighbours
    real, flags = faiss.read_index, list[int]()

    def read(path: str, flag: int = 0) -> object:
        flags.append(flag)
        return real(path, flag)

    monkeypatch.setattr("selection.index.blocks.MAPPED", False)
    monkeypatch.setattr(faiss, "read_index", read)
    assert query(store, task_folder, 5).neighbours.equals(mapped)
    pq.write_table(pq.read_table(corpus_file).slice(5, 90), tmp_path / "more.parquet")
    build(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))], index="ivf")  # a block beside the first
    assert len(blocks_of(store, "ivf")) == 2
    assert query(store, task_folder, 5).neighbours.num_rows == mapped.num_rows
    assert set(flags) == {0}


@pytest.mark.parametrize(
    "fault", ["ImportError('numpy.core.multiarray\\nfailed to import')", "AttributeError('_ARRAY_API')"]
)
def test_a_faiss_that_cannot_be_imported_is_told_in_one_line(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faiss").mkdir()
    (tmp_path / "faiss" / "__init__.py").write_text(f"raise {fault}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    with pytest.raises(MissingPackageError, match=r"installed and cannot be imported \((numpy\.core|_ARRAY_API)"):
        load_faiss()
    [(finding, good)] = [(finding, good) for what, finding, good in doctor() if what == "faiss"]
    assert not good
    assert "cannot be imported" in finding
    assert "\n" not in finding
