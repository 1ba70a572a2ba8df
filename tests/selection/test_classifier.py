"""The classifier is scikit-learn's on the features it says, tells two domains apart, and draws by a noisy threshold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from selection.building import collect
from selection.ingest import CorpusSpec
from selection.ngrams import NgramHasher
from selection.selectors.classifier import ClassifierSelector, ngram_rows, sampled
from selection.selectors.pool import Pool
from selection.store import Store
from selection.task import read_task


def test_rows_are_scaled_logs_of_counts() -> None:
    rows = ngram_rows(NgramHasher()(pa.array(["a a b", "c"], pa.large_string()))).toarray()
    ngrams = NgramHasher()(pa.array(["a a b"], pa.large_string())).values
    counts = np.bincount(ngrams, minlength=10_000)
    expected = np.log1p(counts) / np.linalg.norm(np.log1p(counts))
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("features", ["ngrams", "embeddings"])
def test_scores_are_those_of_scikit_learn(built: Path, task_folder: Path, features: str) -> None:
    pool = Pool(Store(built), read_task(task_folder))
    found = ClassifierSelector(features, "top").candidates(pool, None, 600)
    if features == "ngrams":
        hasher = NgramHasher()
        task = ngram_rows(hasher(pool.task.train_texts)).toarray()
        corpus = ngram_rows(hasher(pool.corpus.texts(0))).toarray()
    else:
        task, corpus = pool.queries, np.asarray(pool.embeddings.shard(0), np.float32)
    chosen = corpus[sampled(pool)]
    labels = [1] * len(task) + [0] * len(chosen)
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=200).fit(np.concatenate([task, chosen]), labels)
    expected = model.predict_proba(corpus)[:, 1]
    ids = found["doc_id"].to_numpy()
    np.testing.assert_allclose(found["score"].to_numpy(), expected[ids], atol=2e-3)
    assert (np.diff(found["score"].to_numpy()) <= 0).all()


def test_two_domains_are_told_apart_and_noise_lets_others_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = {name: [f"{name}{i}" for i in range(50)] for name in ("cell", "film")}
    texts = [" ".join(rng.choice(words[name], 12)) for name in ("cell", "film") for _ in range(300)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "corpus.parquet")
    collect(tmp_path / "store", [CorpusSpec("c", str(tmp_path / "corpus.parquet"))])
    lines = [json.dumps({"text": " ".join(rng.choice(words["cell"], 12))}) for _ in range(30)]
    (tmp_path / "task.jsonl").write_text("\n".join(lines))
    pool = Pool(Store(tmp_path / "store"), read_task(tmp_path / "task.jsonl"), seed=1)
    top = ClassifierSelector("ngrams", "top").candidates(pool, None, 300)["doc_id"].to_numpy()
    assert (top < 300).mean() > 0.98
    drawn = ClassifierSelector("ngrams").candidates(pool, None, 200)
    assert 0.5 < (drawn["doc_id"].to_numpy() < 300).mean() < 1
    chances = [
        ClassifierSelector("ngrams").candidates(Pool(pool.store, pool.task, seed=s), None, 1) for s in range(100)
    ]
    every = ClassifierSelector("ngrams", "top").candidates(pool, None, 600)["score"].to_numpy().astype(np.float64)
    weights = (2 - every) ** -9.0
    expected = (weights * every).sum() / weights.sum()  # the mean score of one draw
    spread = np.sqrt((weights * (every - expected) ** 2).sum() / weights.sum())
    found = np.mean([chance["score"][0].as_py() for chance in chances])
    assert abs(found - expected) < 4 * spread / 10 + 0.02  # each seed trains on another sample of the corpus
