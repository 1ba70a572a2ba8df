"""The cascade: the recall promised, the full encoder's own scores, and what is kept between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import selection.cascade as module
import selection.cascade_model as model
from selection.building import build
from selection.cascade import CascadeReport, Kept, cascade, cascade_neighbours
from selection.cascade_model import CascadeSearch
from selection.choosing import full_encoder
from selection.embedding import Embeddings
from selection.encoders import Encoder, load_encoder
from selection.errors import NearkinError
from selection.index.exact import exact_search
from selection.index.ranking import Ids, Scores
from selection.ingest import CorpusSpec
from selection.querying import query
from selection.store import Store
from selection.stored import stored_encoder
from selection.task import read_task
from tests.conftest import Cli

TEXTS = pa.chunked_array(
    [["numpy arrays and their shapes", "a graph and its shortest paths", "fits a linear model"]], pa.large_string()
)
Halves = npt.NDArray[np.float16]


class Vectors:
    """Full vectors that count how many were asked for."""

    def __init__(self, vectors: Halves) -> None:
        self.vectors, self.encoded = vectors, 0
        self._there = np.zeros(len(vectors), dtype=np.bool_)

    def take(self, ids: Ids) -> Halves:
        assert (np.diff(ids) > 0).all()
        self.encoded += int((~self._there[ids]).sum())
        self._there[ids] = True
        return self.vectors[ids]


class Corpus:
    """Clustered unit vectors, cheap ones that are those with noise, and queries of some of the clusters."""

    def __init__(self, passages: int, queries: int, noise: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(60, 32))
        exact = _unit(centres[rng.integers(0, 60, passages)] + rng.normal(size=(passages, 32)))
        self.full = exact.astype(np.float16)
        self.cheap = _unit(exact + noise * rng.normal(size=exact.shape) / 32**0.5).astype(np.float16)
        self.queries = _unit(centres[rng.integers(0, 6, queries)] + rng.normal(size=(queries, 32))).astype(np.float32)

    def blocks(self) -> Iterable[Halves]:
        return [self.cheap[start : start + 3000] for start in range(0, len(self.cheap), 3000)]

    def search(self, k: int, **more: Any) -> tuple[Scores, Ids, CascadeReport]:
        return cascade(self.blocks, self.queries, self.queries, Vectors(self.full), k, **more)

    def recall(self, ids: Ids) -> float:
        exact = exact_search([self.full], self.queries, ids.shape[1])[1]
        return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact, ids, strict=True)])) / ids.shape[1]


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("promised", [0.8, 0.95])
def test_the_recall_promised_is_kept_and_foretold(promised: float) -> None:
    recalls, shares = [], []
    for seed in range(2):
        corpus = Corpus(10_000, 30, noise=0.4, seed=seed)
        _, ids, told = corpus.search(10, min_recall=promised, seed=seed)
        recalls.append(corpus.recall(ids))
        shares.append(told.encoded / 10_000)
        assert told.audit is not None
        assert told.predicted >= promised
        assert told.audit.recall + 3 * told.audit.error >= promised
        assert told.plan.encode == pytest.approx(told.encoded, rel=0.6)
    assert np.mean(recalls) >= promised - 0.02
    assert max(shares) < 0.4
    assert promised == 0.95 or np.mean(recalls) < 0.97  # it stops when it has enough


def test_what_is_encoded_is_not_needed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(4_000, 5, noise=0.4)
    search = CascadeSearch(
        corpus.blocks, corpus.queries, corpus.queries, Vectors(corpus.full), 5, np.random.default_rng(0)
    )
    search.calibrate(np.arange(300))
    gain, recall = search._expect()
    few = np.where(np.cumsum(gain > 0) <= 3, gain, 0.0)  # all but three passages are expected to bring nothing
    monkeypatch.setattr(search, "_expect", lambda: (few, recall))
    ids, _ = search.needed(1.0)
    assert search.left[ids].all()
    assert len(ids) == 3_700


def test_an_audit_sees_what_the_model_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "PRUDENCE", 0.25)  # a model that thinks a quarter of what is missing is
    corpus = Corpus(10_000, 30, noise=0.4)
    wrong, errors = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        search = CascadeSearch(corpus.blocks, corpus.queries, corpus.queries, Vectors(corpus.full), 10, rng)
        search.calibrate(search.draw(300))
        search.encode(search.needed(0.95)[0])
        encoded = np.flatnonzero(~search.left)
        truth = corpus.recall(encoded[exact_search([corpus.full[encoded]], corpus.queries, 10)[1]])
        wrong.append(search.needed(0.0)[1] - truth)
        errors.append(search.audit(400).recall - truth)
    assert np.mean(wrong) > 0.06
    assert abs(np.mean(errors)) < 0.03


def test_scores_are_those_of_full_encoding() -> None:
    corpus = Corpus(6_000, 40, noise=0.2)
    scores, ids, _ = corpus.search(5)
    exact, same = exact_search([corpus.full], corpus.queries, 6_000)
    for number in range(40):
        np.testing.assert_array_equal(scores[number], exact[number][np.isin(same[number], ids[number])])
    assert (np.diff(scores, axis=1) <= 0).all()


def test_equal_seeds_give_equal_neighbours() -> None:
    corpus = Corpus(6_000, 40, noise=0.2)
    first, second, other = (corpus.search(5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[1], second[1])
    assert first[2].encoded == second[2].encoded != other[2].encoded


def test_equal_scores_stand_in_doc_id_order() -> None:
    corpus = Corpus(3_000, 10, noise=0.0)
    corpus.full[1500:], corpus.cheap[1500:] = corpus.full[:1500], corpus.cheap[:1500]
    _, ids, _ = corpus.search(4)
    np.testing.assert_array_equal(ids, exact_search([corpus.full], corpus.queries, 4)[1])


def test_all_is_encoded_where_too_little_is_saved() -> None:
    corpus = Corpus(3_000, 40, noise=50.0)
    lines: list[str] = []
    scores, ids, told = corpus.search(5, report=lines.append)
    exact = exact_search([corpus.full], corpus.queries, 5)
    np.testing.assert_array_equal(scores, exact[0])
    np.testing.assert_array_equal(ids, exact[1])
    assert told.plan.everything
    assert told.encoded == 3_000
    assert told.plan.gain < 1.5
    assert "under 1.5, so everything is encoded" in lines[0]


@pytest.mark.parametrize(("passages", "k", "min_recall"), [(40, 3, 0.95), (40, 50, 0.95), (3000, 3, 1.0)])
def test_small_corpora_and_whole_recall_encode_all(passages: int, k: int, min_recall: float) -> None:
    corpus = Corpus(passages, 5, noise=0.2)
    scores, ids, told = corpus.search(k, min_recall=min_recall)
    exact = exact_search([corpus.full], corpus.queries, k)
    np.testing.assert_array_equal(scores, exact[0])
    np.testing.assert_array_equal(ids, exact[1])
    assert told.encoded == passages


def test_cheap_vectors_of_another_length() -> None:
    corpus = Corpus(6_000, 40, noise=0.1)
    wide = np.pad(corpus.cheap, ((0, 0), (0, 8)))
    queries = np.pad(corpus.queries, ((0, 0), (0, 8)))
    _, ids, told = cascade(lambda: [wide], corpus.queries, queries, Vectors(corpus.full), 5)
    assert corpus.recall(ids) >= 0.93
    assert not told.plan.everything


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 5, "min_recall": 0.0}, {"k": 5, "min_recall": 1.1}])
def test_what_cannot_be_had_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(NearkinError):
        Corpus(100, 5, noise=0.1).search(**arguments)


class Stops:
    """An encoder that is killed after some calls, and counts the texts that it was given."""

    def __init__(self, encoder: Encoder, calls: int = 10**9) -> None:
        self._encoder, self._calls, self.texts = encoder, calls, 0
        self.slug, self.fingerprint, self.dim = encoder.slug, encoder.fingerprint, encoder.dim
        self.prepare, self.engine = encoder.prepare, encoder.engine

    def run(self, prepared: Any, tick: Any = None) -> npt.NDArray[np.float32]:
        if self._calls == 0:
            raise KeyboardInterrupt
        self._calls -= 1
        self.texts += len(prepared)
        return self._encoder.run(prepared)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 64)
    monkeypatch.setattr(module, "FEWEST", 64)


def _neighbours(store: Path, encoder: Any, texts: Any = TEXTS) -> tuple[Scores, Ids, CascadeReport]:
    opened = Store(store)
    (slug,) = opened.manifest.encoders
    return cascade_neighbours(opened, slug, encoder, stored_encoder(opened, slug), texts, 3, seed=3)


def _cut(encoder: Path, tokens: int = 32) -> Encoder:
    return load_encoder(str(encoder), device="cpu", max_tokens=tokens)


def test_passages_of_a_store(store: Path, task_folder: Path, tiny_encoder: Path, small_parts: None) -> None:
    full = _cut(tiny_encoder)
    texts = read_task(task_folder).train_texts
    scores, ids, told = _neighbours(store, full, texts)
    everything = full.encode(Store(store).corpus.take(np.arange(len(Store(store).corpus)))["text"])
    exact, best = exact_search([everything.astype(np.float16)], full.encode(texts), 3)
    found = np.mean([len(np.intersect1d(a, b)) / 3 for a, b in zip(ids, best, strict=True)])
    assert found >= (1 if told.plan.everything else 0.85)
    same = ids == best
    np.testing.assert_allclose(scores[same], exact[same], atol=2e-3)  # batches of other sizes round differently


def test_a_killed_run_goes_on(store: Path, tiny_encoder: Path, small_parts: None) -> None:
    full = _cut(tiny_encoder)
    with pytest.raises(KeyboardInterrupt):
        _neighbours(store, Stops(full, 4))
    parts = sorted((store / "cascade" / full.slug).glob("part-*.arrow"))
    assert len(parts) == 3
    kept = sum(pa.ipc.open_file(str(part)).get_batch(0).num_rows for part in parts)
    again, second = Stops(full), Stops(full)
    scores, ids, told = _neighbours(store, again)
    assert told.reused == kept
    assert again.texts == told.encoded - told.reused  # the task's texts were kept
    repeated = _neighbours(store, second)
    assert second.texts == 0
    np.testing.assert_array_equal(repeated[0], scores)
    np.testing.assert_array_equal(repeated[1], ids)
    for part in (store / "cascade").rglob("part-*.arrow"):
        part.unlink()
    undisturbed = _neighbours(store, Stops(full))
    np.testing.assert_array_equal(undisturbed[0], scores)
    np.testing.assert_array_equal(undisturbed[1], ids)
    assert undisturbed[2].encoded == told.encoded


def test_vectors_of_other_texts_or_another_encoder_are_removed(store: Path, tiny_encoder: Path) -> None:
    ids = np.arange(0, 200, 2)
    full = Stops(_cut(tiny_encoder))
    kept = Kept(Store(store), full)  # type: ignore[arg-type]
    vectors = kept.take(ids)
    np.testing.assert_array_equal(Kept(Store(store), full).take(ids[3:9]), vectors[3:9])  # type: ignore[arg-type]
    assert full.texts == len(ids)
    (part,) = kept.folder.glob("part-*.arrow")
    whole = part.read_bytes()
    other = Stops(_cut(tiny_encoder))
    other.fingerprint = "another"
    Kept(Store(store), other)  # type: ignore[arg-type]
    assert not part.exists()
    part.write_bytes(whole[:-100])
    again = Kept(Store(store), full)  # type: ignore[arg-type]
    assert not part.exists()
    np.testing.assert_array_equal(again.take(ids), vectors)
    assert full.texts == 2 * len(ids)


def test_vectors_outlive_a_change_of_other_texts(store: Path, tiny_encoder: Path, corpus_file: Path) -> None:
    ids, full = np.arange(0, 600, 3), Stops(_cut(tiny_encoder))
    opened = Store(store)
    [corpus] = opened.manifest.corpora
    [shard] = corpus.shards
    halves = [replace(shard, stop=300, rows=300, text="a" * 64), replace(shard, start=300, rows=300, text="b" * 64)]
    corpus.shards[:] = halves
    vectors = Kept(opened, full).take(ids)  # type: ignore[arg-type]
    first = replace(halves[0], stop=200, rows=200, text="c" * 64)
    corpus.shards[:] = [first, halves[1], halves[1]]  # the first half is another; the second stands twice, elsewhere
    kept = Kept(opened, full)  # type: ignore[arg-type]
    assert full.texts == 200
    for start in (200, 500):
        np.testing.assert_array_equal(kept.take(ids[100:] - 300 + start), vectors[100:])
    assert full.texts == 200
    corpus.shards[:] = halves  # what was put back is found again
    np.testing.assert_array_equal(Kept(opened, full).take(ids), vectors)  # type: ignore[arg-type]
    assert full.texts == 200
    corpus.shards[:] = [first]
    assert list(Kept(opened, full).folder.glob("part-*.arrow")) == []  # type: ignore[arg-type]


def test_a_store_that_was_built_further_meanwhile_is_refused(
    store: Path, tiny_encoder: Path, passages: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: Any, **__: Any) -> None:
        pq.write_table(passages.slice(0, 20), tmp_path / "more.parquet")
        build(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))])

    monkeypatch.setattr(module, "check_same", meanwhile)
    with pytest.raises(NearkinError, match="built further meanwhile"):
        _neighbours(store, _cut(tiny_encoder))


def test_the_engine_of_a_cascade_is_kept(store: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _neighbours(store, _cut(tiny_encoder))
    opened = Store(store)
    (slug,) = opened.manifest.encoders
    assert opened.manifest.encoders[slug].settings["cascade_engine"] == "torch"
    monkeypatch.setattr("selection.choosing._Chooser._fastest", lambda *_: pytest.fail("tried again"))
    assert full_encoder(opened, slug).engine == "torch"


def test_damaged_vectors_are_removed(store: Path, tiny_encoder: Path) -> None:
    full = Stops(_cut(tiny_encoder))
    kept = Kept(Store(store), full)  # type: ignore[arg-type]
    vectors = kept.take(np.arange(50))
    (part,) = kept.folder.glob("part-*.arrow")
    whole, at = bytearray(part.read_bytes()), part.read_bytes().index(vectors[7].tobytes())
    whole[at] ^= 1
    part.write_bytes(whole)
    again = Kept(Store(store), full)  # type: ignore[arg-type]
    assert not part.exists()
    np.testing.assert_array_equal(again.take(np.arange(50)), vectors)


def test_a_locked_store_is_refused(store: Path, tiny_encoder: Path) -> None:
    opened = Store(store)
    (slug,) = opened.manifest.encoders
    assert len(Embeddings(opened, slug))
    with opened.lock(), pytest.raises(NearkinError, match="another process"):
        _neighbours(store, _cut(tiny_encoder))


def test_query_and_select_take_a_cascade(
    cli: Cli,
    corpus_file: Path,
    tiny_encoder: Path,
    task_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, name = tmp_path / "store", f"cascade:{tiny_encoder}"
    code, _, errors = cli("build", store, "--corpus", f"docs={corpus_file}", "--encoder", name)
    assert code == 0, errors
    code, printed, errors = cli("query", store, task_folder, "-k", 3, "--encoder", name, "--json", "--min-recall", 1)
    assert code == 0, errors
    assert "everything is encoded" in errors
    found = [[n["doc_id"] for n in json.loads(line)["neighbours"]] for line in printed.splitlines()]
    cli("build", tmp_path / "full", "--corpus", f"docs={corpus_file}", "--encoder", tiny_encoder)
    exact = query(tmp_path / "full", task_folder, 3).neighbours["doc_id"].to_numpy().reshape(-1, 3)
    assert np.mean([len(set(a) & set(b)) / 3 for a, b in zip(found, exact, strict=True)]) > 0.99  # but for rounding
    code, _, errors = cli("select", store, task_folder, "-k", 3, "--encoder", name, "--out", tmp_path / "set")
    assert code == 0, errors
    told = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert told["parameters"]["encoder"] == name
    assert cli("select", store, task_folder, "--tokens", 2000, "--out", tmp_path / "cheap")[0] == 0
    assert caplog.text.count("static vectors answer here") == 1
    code, _, errors = cli("query", store, task_folder, "--encoder", name, "--index", "stream")
    assert code == 1
    assert "--index stream cannot serve a cascade" in errors
    assert cli("verify", store)[0] == 0
    code, _, errors = cli("query", tmp_path / "full", task_folder, "--encoder", "cascade")
    assert code == 1
    assert "has no static embeddings for a cascade" in errors
    code, _, errors = cli("build", store, "--encoder", name, "--precision", "int8")
    assert code == 1
    assert "exact or bf16" in errors


def test_vectors_outlive_a_corpus_that_is_added(
    cli: Cli, corpus_file: Path, tiny_encoder: Path, task_folder: Path, tmp_path: Path
) -> None:
    store, name = tmp_path / "store", f"cascade:{tiny_encoder}"
    assert cli("build", store, "--corpus", f"docs={corpus_file}", "--encoder", name)[0] == 0
    asked = ("query", store, task_folder, "--encoder", "cascade", "--min-recall", 1, "--limit", 2)
    assert "600 passages in full, 0 of them kept" in cli(*asked)[2]
    pq.write_table(pq.read_table(corpus_file).slice(5, 90), tmp_path / "more.parquet")
    assert cli("build", store, "--corpus", f"more={tmp_path / 'more.parquet'}")[0] == 0
    assert "690 passages in full, 600 of them kept" in cli(*asked)[2]
    assert cli("build", store, "--encoder", tiny_encoder)[0] == 0
    assert "in full" not in cli(*asked)[2]  # there is nothing left to save
