"""BM25's scores are bm25s' own, whatever the shards and blocks; key phrases are RAKE's."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection.augmentation import Budget, select
from selection.corpus import Corpus, Shard
from selection.errors import NearkinError
from selection.selectors import bm25 as module
from selection.selectors.bm25 import Bm25Selector, LexicalSearch
from selection.selectors.knn import union
from selection.selectors.pool import Pool
from selection.store import Store
from selection.task import Task, read_task
from selection.words import STOP_WORDS, UNKNOWN, Vocabulary, key_phrases

TEXT = st.text(st.sampled_from("ab AB.,-\n\r\t\x0b\x1cΣσ İß'é\u00a0\u2003🎈_1\x00"), max_size=14)
TEXTS = st.lists(TEXT | st.sampled_from(["The cat of It", "aa AA bb", "Not aΣ ΣΣ."]), max_size=6)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.booleans())
def test_words_are_those_of_the_pattern(batches: list[list[str]], lower: bool) -> None:
    vocabulary, seen = Vocabulary(lower=lower), dict[str, int]()
    for texts in batches:
        expected = [re.findall(r"\b\w\w+\b", text.lower() if lower else text) for text in texts]
        expected = [[word for word in words if word not in STOP_WORDS] for words in expected]
        array = pa.array(["before", *texts, "after"], pa.large_string()).slice(1, len(texts))
        known = vocabulary(array, grow=False)
        assert known.values.tolist() == [seen.get(word, UNKNOWN) for words in expected for word in words]
        found = vocabulary(array)
        rows = [[vocabulary.words[i] for i in found.values[a:b]] for a, b in pairwise(found.offsets)]
        assert rows == expected
        seen = {word: number for number, word in enumerate(vocabulary.words)}
        assert len(vocabulary) == len(seen) == len(set(vocabulary.words))


def test_stop_words_are_those_of_bm25s() -> None:
    stopwords = pytest.importorskip("bm25s.stopwords")
    assert set(stopwords.STOPWORDS_EN) == STOP_WORDS


@pytest.fixture
def corpus_in_shards(corpus_file: Path) -> Corpus:
    """The 600 passages in shards of unequal size."""
    cuts = [0, 7, 8, 240, 241, 500, 600]
    shards = [Shard(str(corpus_file), a, b, b - a, None, a, "", 0) for a, b in pairwise(cuts)]
    return Corpus(corpus_file.parent, [("docs", "text", shard) for shard in shards])


def corpus_of(texts: list[str], folder: Path, size: int) -> Corpus:
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    shards = [
        Shard("texts.parquet", a, min(a + size, len(texts)), min(size, len(texts) - a), None, a, "", 0)
        for a in range(0, len(texts), size)
    ]
    return Corpus(folder, [("c", "text", shard) for shard in shards])


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (0.0, 0.0)])
def test_scores_and_ranking_are_those_of_bm25s(
    corpus_in_shards: Corpus, passages: pa.Table, task_folder: Path, k1: float, b: float
) -> None:
    reference = pytest.importorskip("bm25s")
    texts, queries = passages["text"], read_task(task_folder).train_texts
    odd = pa.array(["?!", "zzyzx"], pa.large_string())
    repeated = pa.concat_arrays([*queries.chunks, queries.chunk(0).slice(3, 2), odd])
    theirs = reference.BM25(k1=k1, b=b)
    theirs.index(reference.tokenize(texts.to_pylist(), show_progress=False), show_progress=False)
    cut = reference.tokenize(repeated.to_pylist(), show_progress=False, return_ids=False)
    scores = [theirs.get_scores(words) if theirs.get_tokens_ids(words) else np.zeros(600) for words in cut]
    search = LexicalSearch(corpus_in_shards, repeated, k1, b)
    assert search.reachable == np.count_nonzero(np.sum(scores, axis=0))
    for k in (1, 20, 600):
        table = pa.concat_tables(search.neighbours(k))
        for query, expected in enumerate(scores):
            found = table.filter(pa.compute.equal(table["query_id"], query))
            ids, got = found["doc_id"].to_numpy(), found["score"].to_numpy()
            assert len(set(ids.tolist())) == min(k, np.count_nonzero(expected))
            np.testing.assert_allclose(got, expected[ids], rtol=1e-5)  # each passage has its score
            np.testing.assert_allclose(got, np.sort(expected)[::-1][: len(got)], rtol=1e-5)  # and none better is left
            assert found["rank"].to_pylist() == list(range(1, len(got) + 1))
            assert np.all((got[:-1] > got[1:]) | ((got[:-1] == got[1:]) & (ids[:-1] < ids[1:])))
    if k1 == 1.5:
        docs, best = theirs.retrieve(cut[:40], k=20, show_progress=False)
        ours = pa.concat_tables(search.neighbours(20)).slice(0, 800)
        np.testing.assert_allclose(ours["score"].to_numpy(), best.ravel(), rtol=1e-5)
        clear = np.ones(best.shape, dtype=bool)  # where a score stands alone, it is the same passage's
        clear[:, 1:] &= best[:, :-1] - best[:, 1:] > 1e-4
        clear[:, :-1] &= best[:, :-1] - best[:, 1:] > 1e-4
        clear[:, -1] = False
        assert clear.mean() > 0.5
        assert np.array_equal(ours["doc_id"].to_numpy().reshape(docs.shape)[clear], docs[clear])


def test_equal_passages_stand_in_doc_id_order(tmp_path: Path) -> None:
    texts = ["red apple", "green apple pie", "no fruit", "red apple", "apple", "red apple"] * 4
    search = LexicalSearch(corpus_of(texts, tmp_path, 5), pa.array(["red apple", "pie"]))
    found = pa.concat_tables(search.neighbours(9))
    assert found["doc_id"].to_pylist()[:9] == [0, 3, 5, 6, 9, 11, 12, 15, 17]
    assert found["doc_id"].to_pylist()[9:] == [1, 7, 13, 19]
    assert len(set(found["score"].to_pylist()[:9])) == 1
    assert search.reachable == 20


@pytest.mark.parametrize(
    "changed",
    [
        {"KEPT_BYTES": 0},
        {"KEPT_BYTES": 50_000},
        {"BLOCK_QUERIES": 3},
        {"BLOCK_PAIRS": 100},
        {"CROWDED": 0, "BLOCK_QUERIES": 2, "SHARES": 1},
        {"CROWDED": 10**6},
    ],
)
def test_results_do_not_depend_on_blocks_threads_or_what_is_kept(
    corpus_in_shards: Corpus, task_folder: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, int]
) -> None:
    texts = read_task(task_folder).train_texts
    expected = pa.concat_tables(LexicalSearch(corpus_in_shards, texts).neighbours(13))
    monkeypatch.setattr(pa, "cpu_count", lambda: 3)
    for name, value in changed.items():
        monkeypatch.setattr(module, name, value)
    found = LexicalSearch(corpus_in_shards, texts)
    assert (len(found._kept) < 6) == ("KEPT_BYTES" in changed)
    for _ in range(2):
        assert pa.concat_tables(found.neighbours(13)).combine_chunks().equals(expected.combine_chunks())


@pytest.mark.parametrize(("share", "most"), [(0.0, 10_000), (1.0, 1024), (0.02, 3)])
def test_dense_and_sparse_words_add_up_to_the_same(
    corpus_in_shards: Corpus, task_folder: Path, monkeypatch: pytest.MonkeyPatch, share: float, most: int
) -> None:
    texts = read_task(task_folder).train_texts
    expected = pa.concat_tables(LexicalSearch(corpus_in_shards, texts).neighbours(600))
    monkeypatch.setattr(module, "DENSE_SHARE", share)
    monkeypatch.setattr(module, "MOST_DENSE", most)
    found = pa.concat_tables(LexicalSearch(corpus_in_shards, texts).neighbours(600))
    order = [("query_id", "ascending"), ("doc_id", "ascending")]
    np.testing.assert_allclose(found.sort_by(order)["score"], expected.sort_by(order)["score"], rtol=1e-5)


def test_candidates_are_the_union_and_k_grows_with_what_is_wanted(built: Path, task_folder: Path) -> None:
    pool = Pool(Store(built), read_task(task_folder))
    search = LexicalSearch(pool.corpus, pool.task.train_texts)
    selector = Bm25Selector()
    assert selector.candidates(pool, 3, 10**6).equals(union(search.neighbours(3)))
    unions = (union(search.neighbours(number)) for number in (4, 8, 16, 32, 64))
    assert selector.candidates(pool, None, 200).equals(next(table for table in unions if table.num_rows >= 200))
    assert selector.candidates(pool, None, 600).num_rows == search.reachable


def task_of(*texts: str) -> Task:
    return Task(Path("task"), {"train": pa.table({"text": pa.chunked_array([texts], pa.large_string())})})


def test_passages_without_a_shared_word_are_no_candidates(built: Path) -> None:
    pool = Pool(Store(built), task_of("eigenvalues", "Eigenvalues!"))
    found = Bm25Selector().candidates(pool, None, 600)
    texts = pool.corpus.texts(0).to_pylist()
    holding = [number for number, text in enumerate(texts) if re.search(r"(?i)\beigenvalues\b", text)]
    assert sorted(found["doc_id"].to_pylist()) == holding
    assert 0 < len(holding) < 600
    assert set(found["n_queries"].to_pylist()) == {2}
    assert Bm25Selector().candidates(Pool(Store(built), task_of("zzyzx ?")), None, 5).num_rows == 0


@pytest.mark.parametrize("method", ["bm25", "bm25:queries=phrases", "bm25:k1=0.9,b=0.4"])
def test_a_set_by_name(built: Path, task_folder: Path, tmp_path: Path, method: str) -> None:
    results = [select(built, task_folder, tmp_path / name, method, Budget(docs=50)) for name in ("a", "b")]
    assert results[0].table.equals(results[1].table)
    assert results[0].passages == 50
    assert min(results[0].table["query_id"].to_pylist()) >= 0
    assert min(results[0].table["score"].to_pylist()) > 0


def test_parameters_out_of_range_are_refused() -> None:
    for wrong in ({"k1": -1.0}, {"b": 1.5}, {"k1": float("nan")}, {"b": float("nan")}):
        with pytest.raises(NearkinError, match="method bm25: k1 must be at least 0"):
            Bm25Selector(**wrong)  # type: ignore[arg-type]


def plain_rake(text: str) -> list[str]:
    """The words of a text's key phrases, phrase by phrase as the paper tells it."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    phrases: list[list[str]] = [[]]
    for token in re.findall(r"\w+(?:[-+/]\w+)*|[^\w\s]+", text.lower()):
        if len(token) < 2 or token in ENGLISH_STOP_WORDS or token.isdigit() or not re.match(r"\w", token):
            phrases.append([])
        else:
            phrases[-1].append(token)
    phrases = [phrase for phrase in phrases if phrase]
    frequency = Counter(word for phrase in phrases for word in phrase)
    degree: dict[str, int] = defaultdict(int)
    for phrase in phrases:
        for word in phrase:
            degree[word] += len(phrase)
    score = {tuple(phrase): sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
    best = sorted(score, key=lambda phrase: -round(score[phrase], 9))
    return [word for phrase in best[: max(len(frequency) // 3, 1)] for word in phrase]


def test_key_phrases_are_those_of_plain_rake(passages: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selection.words.SLICE", 37)
    texts = ["", "the of", *passages["text"].to_pylist()[:100], "x", "A cross-entropy loss: the cross-entropy loss"]
    found = key_phrases(pa.chunked_array([pa.array(texts, pa.large_string())]))
    assert [Counter(row.split()) for row in found.to_pylist()] == [Counter(plain_rake(text)) for text in texts]
    assert found[-1].as_py() == "cross-entropy loss"
    assert key_phrases(pa.array([], pa.large_string())).to_pylist() == []


def test_key_phrases_of_the_papers_example() -> None:
    abstract = (
        "Compatibility of systems of linear constraints over the set of natural numbers. Criteria of compatibility of "
        "a system of linear Diophantine equations, strict inequations, and nonstrict inequations are considered. Upper "
        "bounds for components of a minimal set of solutions and algorithms of construction of minimal generating sets "
        "of solutions for all types of systems are given."
    )
    (found,) = key_phrases(pa.array([abstract])).to_pylist()
    assert found.startswith("linear diophantine equations minimal generating sets linear constraints natural numbers")
