"""Hashed n-grams are those of the definition, and DSIR's weights those of its authors' package."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selection import ngrams as module
from selection.building import collect
from selection.errors import NearkinError, StoreError
from selection.ingest import CorpusSpec
from selection.kept import write_kept
from selection.ngrams import NgramFeatures, NgramHasher, corpus_counts, log_ratio, sums, text_counts
from selection.selectors.dsir import DsirSelector
from selection.selectors.pool import Pool
from selection.store import Store
from selection.task import read_task
from selection.tokens import Ragged


def plain_buckets(text: str, buckets: int = 10_000) -> list[int]:
    """The definition, n-gram by n-gram."""
    tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
    grams = [*tokens, *(f"{a} {b}" for a, b in pairwise(tokens))]
    return sorted(int(hashlib.sha256(gram.encode()).hexdigest(), 16) % buckets for gram in grams)


TEXT = st.text(st.sampled_from("ab AB.,\n\tΣσ İß'é\u00a0\u2003🎈_1"), max_size=12)


@given(st.lists(st.lists(TEXT, max_size=5), min_size=1, max_size=3), st.sampled_from([7, 10_000, 100_000]))
def test_buckets_are_those_of_the_definition(batches: list[list[str]], buckets: int) -> None:
    hasher = NgramHasher(buckets)
    for texts in batches:
        found = hasher(pa.array(texts, pa.large_string()))
        rows = [sorted(found.values[a:b].tolist()) for a, b in pairwise(found.offsets)]
        assert rows == [plain_buckets(text, buckets) for text in texts]


@pytest.mark.parametrize("limit", ["MOST_BIGRAMS", "MOST_WORDS"])
def test_what_is_forgotten_is_hashed_again(passages: pa.Table, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NgramHasher()(passages["text"])
    monkeypatch.setattr(module, limit, 100)
    hasher = NgramHasher()
    parts = [hasher(passages["text"].slice(start, 100)) for start in range(0, 600, 100)]
    assert np.array_equal(parts[0].then(parts[1:]).values, whole.values)


def test_features_are_kept_and_checked(store: Path) -> None:
    opened = Store(store)
    first = NgramFeatures(opened).shard(0)
    expected = NgramHasher()(opened.corpus.texts(0))
    assert np.array_equal(first.values, expected.values)
    assert np.array_equal(first.offsets, expected.offsets)
    (kept,) = (store / "ngrams" / "10000").glob("*.arrow")
    before = kept.stat().st_mtime_ns
    assert np.array_equal(NgramFeatures(opened).counts(), np.bincount(expected.values, minlength=10_000))
    assert kept.stat().st_mtime_ns == before
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    kept.write_bytes(bytes(damaged))
    (kept.parent / "of-an-older-corpus.arrow").write_bytes(b"")
    assert np.array_equal(NgramFeatures(opened).shard(0).values, expected.values)
    assert list(kept.parent.iterdir()) == [kept]


def test_counts_of_a_corpus_are_kept_and_checked(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store(store)
    expected = np.bincount(NgramHasher()(opened.corpus.texts(0)).values, minlength=10_000)
    made, plain = [], NgramFeatures.counts
    monkeypatch.setattr(NgramFeatures, "counts", lambda self: made.append(1) or plain(self))
    for _ in range(2):
        assert np.array_equal(corpus_counts(opened), expected)
    assert len(made) == 1
    (kept,) = (store / "ngrams").glob("*.arrow")
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(expected[:50].tobytes(), (expected[:50] + 1).tobytes()))
    assert kept.read_bytes() != whole
    assert np.array_equal(corpus_counts(opened), expected)
    assert kept.read_bytes() == whole
    write_kept(kept, pa.RecordBatch.from_arrays([pa.array(expected * 2)], ["count"]), {"texts": "of an older corpus"})
    assert np.array_equal(corpus_counts(opened), expected)
    assert len(made) == 3


def test_of_many_shards_some_are_counted_and_no_ngrams_kept(
    store: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNTED", 1)
    half = pq.read_table(corpus_file).slice(0, 300)
    pq.write_table(half, tmp_path / "half.parquet")
    collect(store, [CorpusSpec("half", str(tmp_path / "half.parquet"))])
    opened = Store(store)
    each = [np.bincount(NgramHasher()(opened.corpus.texts(n)).values, minlength=10_000) for n in range(2)]
    counts = corpus_counts(opened)
    assert any(np.array_equal(counts, one) for one in each)
    (kept,) = (store / "ngrams").iterdir()
    assert kept.is_file()
    assert np.array_equal(corpus_counts(opened, features=NgramFeatures(opened)), each[0] + each[1])
    assert np.array_equal(corpus_counts(opened), each[0] + each[1])  # what is known of the whole is taken


def test_a_store_that_cannot_be_written_to_still_works(store: Path) -> None:
    (store / "ngrams").write_text("in the way")
    assert corpus_counts(Store(store)).sum() > 600
    assert len(NgramFeatures(Store(store)).shard(0)) == 600


def test_a_text_that_changed_is_noticed(store: Path) -> None:
    opened = Store(store)
    shards = opened.manifest.corpora[0].shards
    shards[0] = replace(shards[0], text="0" * 64)
    with pytest.raises(StoreError, match="has changed since it was read"):
        NgramFeatures(opened)


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=6))
def test_sums_by_text(rows: list[list[int]]) -> None:
    weights = np.array([1.0, -2.0, 0.5, 4.0, 8.0])
    ragged = Ragged(np.array([i for row in rows for i in row], np.int64), np.cumsum([0, *map(len, rows)]))
    assert sums(ragged, weights).tolist() == [sum(weights[i] for i in row) for row in rows]


def test_weights_are_those_of_the_package(built: Path, task_folder: Path, tmp_path: Path) -> None:
    reference = pytest.importorskip("data_selection")
    store, task = Store(built), read_task(task_folder)
    texts = store.corpus.texts(0).to_pylist()
    raw, target = tmp_path / "raw.jsonl", tmp_path / "target.jsonl"
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    target.write_text("".join(json.dumps({"text": text}) + "\n" for text in task.train_texts.to_pylist()))
    theirs = reference.HashedNgramDSIR([str(raw)], [str(target)], str(tmp_path / "cache"), num_proc=1)
    theirs.fit_importance_estimator(num_tokens_to_fit="all")
    theirs.compute_importance_weights()
    expected = np.load(tmp_path / "cache" / "log_importance_weights" / "0.npy")
    features = NgramFeatures(store)
    found = sums(features.shard(0), log_ratio(text_counts(task.train_texts), features.counts()))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    lengths = np.load(tmp_path / "cache" / "perexample_metadata" / "0.npy")
    assert ((features.shard(0).lengths + 1) // 2).tolist() == lengths.tolist()
    top = DsirSelector(draw="top", min_words=100).candidates(Pool(store, task), None, 600)
    order = np.argsort(-np.where(lengths >= 100, expected, -np.inf), kind="stable")[: (lengths >= 100).sum()]
    assert top["doc_id"].to_pylist() == order.tolist()


def test_gumbel_draws_in_proportion_to_the_weights(
    built: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.linspace(-3, 0, 600)
    monkeypatch.setattr("selection.selectors.dsir.sums", lambda shard, ratio: weights)
    store, task = Store(built), read_task(task_folder)

    def first(seed: int) -> int:
        drawn = DsirSelector().candidates(Pool(store, task, seed=seed), None, 1)
        return int(drawn["doc_id"][0].as_py())

    drawn = [first(seed) for seed in range(300)]
    share = np.exp(weights) / np.exp(weights).sum()
    mean = (share * np.arange(600)).sum()
    spread = np.sqrt((share * (np.arange(600) - mean) ** 2).sum())
    assert abs(np.mean(drawn) - mean) < 4 * spread / np.sqrt(len(drawn))
    assert first(3) == drawn[3]


def test_features_deleted_or_made_by_another_meanwhile(store: Path) -> None:
    features = NgramFeatures(Store(store))
    first = features.shard(0).values
    for kept in (store / "ngrams" / "10000").glob("*.arrow"):
        kept.unlink()
    assert np.array_equal(features.shard(0).values, first)
    with ThreadPoolExecutor(4) as pool:
        shutil.rmtree(store / "ngrams")
        found = list(pool.map(lambda _: NgramFeatures(Store(store)).shard(0).values, range(4)))
    assert all(np.array_equal(values, first) for values in found)
    with pytest.raises(NearkinError, match="buckets"):
        NgramFeatures(Store(store), 0)
