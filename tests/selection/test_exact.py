"""Exact search held against products in float64, and the order of neighbours against the order of their doc_ids."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.building import build
from selection.embedding import Embeddings
from selection.errors import NearkinError
from selection.index.exact import exact_search, stream_search
from selection.index.ranking import NOTHING, Ranking, ids_of, scores_of, to_keys
from selection.ingest import CorpusSpec
from selection.store import Store

NUMBERS = ("float32", "bfloat16", "float16")


def unit(rows: int, dim: int, seed: int) -> npt.NDArray[np.float16]:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def blocks(vectors: npt.NDArray[np.float16], size: int) -> list[npt.NDArray[np.float16]]:
    return [vectors[i : i + size] for i in range(0, len(vectors), size)]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("size", [17, 1000, 5000])
def test_neighbours_are_those_of_float64_products(number: str, size: int) -> None:
    corpus, queries = unit(5000, 96, 0), unit(300, 96, 1).astype(np.float32)
    scores, ids = exact_search(blocks(corpus, size), queries, 20, number=number)
    truth = queries.astype(np.float64) @ corpus.astype(np.float64).T
    best = np.sort(truth, axis=1)[:, ::-1][:, :20]
    assert np.abs(scores - best).max() < 1e-6
    assert np.abs(np.take_along_axis(truth, ids, 1) - best).max() < 1e-6
    assert all(len(set(row)) == 20 for row in ids.tolist())


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 200),
    size=st.integers(1, 64),
    k=st.integers(1, 30),
    distinct=st.integers(1, 12),
    seed=st.integers(0, 10),
)
def test_results_do_not_depend_on_blocks_number_format_or_threads_and_ties_stand_in_doc_id_order(
    rows: int, size: int, k: int, distinct: int, seed: int
) -> None:
    corpus = unit(distinct, 24, seed)[np.random.default_rng(seed).integers(0, distinct, rows)]  # many equal passages
    queries = unit(9, 24, seed + 1).astype(np.float32)
    scores, ids = exact_search([corpus], queries, k, number="float32")
    for number, threads in product(NUMBERS, (1, 4)):
        with torch_threads(threads):
            other = exact_search(blocks(corpus, size), queries[:5], k, number=number)
        np.testing.assert_array_equal(other[0], scores[:5])
        np.testing.assert_array_equal(other[1], ids[:5])
    found = min(rows, k)
    assert (ids[:, found:] == -1).all()
    for row, row_ids in zip(scores[:, :found], ids[:, :found], strict=True):
        assert (np.diff(row) <= 0).all()
        assert (np.diff(row_ids)[np.diff(row) == 0] > 0).all()
        missing = np.setdiff1d(np.arange(rows), row_ids)
        last_score, last_id = row[-1], row_ids[-1]
        same = missing[(corpus[missing] == corpus[last_id]).all(axis=1)] if len(missing) else missing
        assert (same > last_id).all(), last_score


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(0, 2**32 - 1)), min_size=1, max_size=50))
@settings(deadline=None)
def test_keys_order_by_score_then_doc_id_and_give_both_back(pairs: list[tuple[float, int]]) -> None:
    scores = np.array([p[0] for p in pairs], dtype=np.float32) + np.float32(0)
    ids = np.array([p[1] for p in pairs], dtype=np.int64)
    keys = to_keys(scores, ids)
    np.testing.assert_array_equal(scores_of(keys), scores)
    np.testing.assert_array_equal(ids_of(keys), ids)
    np.testing.assert_array_equal(np.argsort(-keys, kind="stable"), np.lexsort((ids, -scores)))


def test_a_ranking_keeps_the_best_whatever_way_they_come() -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 5, (4, 100)).astype(np.float32)
    ids = np.tile(np.arange(100), (4, 1))
    whole, parts = Ranking(4, 7), Ranking(4, 7)
    whole.add_rows(scores, ids)
    for at in np.array_split(rng.permutation(400), 9):
        parts.add(at // 100, scores.reshape(-1)[at], at % 100)
    for got, wanted in zip(parts.best(), whole.best(), strict=True):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(whole.floor, whole.best()[0][:, -1])
    assert (to_keys(np.array([np.nan, 1.0], dtype=np.float32), np.array([0, -1])) == NOTHING).all()


def test_a_tile_costs_as_much_as_its_own_queries_and_not_as_all() -> None:
    rng = np.random.default_rng(0)
    first, ranking = 2_000_000, Ranking(4_000_000, 1)
    rows = first + rng.integers(4096, size=9000)
    scores, ids = rng.random(9000, dtype=np.float32), np.arange(9000)
    tracemalloc.start()
    ranking.add(rows, scores, ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # and a count of all queries takes 32 MB
    best = np.full(4096, -np.inf, np.float32)
    np.maximum.at(best, rows - first, scores)
    np.testing.assert_array_equal(ranking.floor[first : first + 4096], best)
    assert np.isinf(ranking.floor[:first]).all()
    assert np.isinf(ranking.floor[first + 4096 :]).all()


def test_a_few_queries_are_searched_as_many_are(built: Path) -> None:
    embeddings = Embeddings(Store(built), "tiny-encoder")
    queries = embeddings.take(np.arange(9)) + np.float32(0.01)
    many = exact_search(embeddings, queries, 30)
    for start in (0, 5):
        few = stream_search(embeddings, queries[start : start + 3], 30)
        np.testing.assert_array_equal(few[0], many[0][start : start + 3])
        np.testing.assert_array_equal(few[1], many[1][start : start + 3])


def test_a_sample_that_raises_the_floor_changes_nothing() -> None:
    corpus, queries = unit(3000, 48, 0), unit(70, 48, 1).astype(np.float32)
    plain = exact_search(blocks(corpus, 500), queries, 10)
    for number in NUMBERS:
        seeded = exact_search(blocks(corpus, 500), queries, 10, number=number, sample=corpus[::3])
        np.testing.assert_array_equal(seeded[0], plain[0])
        np.testing.assert_array_equal(seeded[1], plain[1])


def test_devices_that_share_the_shards_find_what_one_finds(
    passages: pa.Table, tiny_encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "parts").mkdir()
    for number in range(5):
        pq.write_table(passages.slice(100 * number, 100), tmp_path / "parts" / f"{number}.parquet")
    build(tmp_path / "store", [CorpusSpec("parts", str(tmp_path / "parts"))], encoder=str(tiny_encoder))
    embeddings = Embeddings(Store(tmp_path / "store"), "tiny-encoder")
    assert embeddings.shards == 5
    queries = embeddings.take(np.arange(40)) + np.float32(0.01)
    alone = stream_search(embeddings, queries, 20, "cpu")
    shared = stream_search(embeddings, queries, 20, "cpu,cpu,cpu")
    np.testing.assert_array_equal(shared[0], alone[0])
    np.testing.assert_array_equal(shared[1], alone[1])


def test_vectors_that_are_not_finite_or_not_of_the_corpus_are_refused() -> None:
    corpus, queries = unit(50, 16, 0), unit(3, 16, 1).astype(np.float32)
    with pytest.raises(NearkinError, match="finite"):
        exact_search([corpus], np.full((1, 16), np.nan, dtype=np.float32), 2)
    corpus[7, 3] = np.inf
    with pytest.raises(NearkinError, match="passages 0 to 49"):
        exact_search([corpus], queries, 2)
    with pytest.raises(NearkinError, match="16 dimensions"):
        exact_search([unit(50, 16, 0)], unit(3, 8, 1).astype(np.float32), 2)


def test_empty_blocks_and_no_queries_are_nothing_special() -> None:
    corpus, queries = unit(50, 16, 0), unit(3, 16, 1).astype(np.float32)
    whole = exact_search([corpus], queries, 5)
    parts = exact_search([corpus[:0], corpus[:20], corpus[20:20], corpus[20:]], queries, 5, sample=corpus[:0])
    np.testing.assert_array_equal(parts[1], whole[1])
    assert exact_search([corpus], queries[:0], 5)[1].shape == (0, 5)
