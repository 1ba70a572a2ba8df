"""The benchmarks measure what they say, on a small scale; the demo runs end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import demo as demo_module
from benchmarks import search as module
from benchmarks import throughput
from benchmarks.memory import memory
from benchmarks.plots import plot_search
from benchmarks.results import read_rows
from benchmarks.search import search
from selection.embedding import Embeddings
from selection.encoders.transformer import TransformerEncoder
from selection.store import Store
from tests.conftest import Cli


@pytest.mark.slow
def test_throughput_has_the_peer_in_the_same_run(
    cli: Cli, corpus_file: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    out, plot = tmp_path / "rows.parquet", tmp_path / "plot.svg"
    arguments = ["--passages", 100, "--rounds", 1, "--encoder", tiny_encoder, "--out", out, "--plot", plot]
    code, printed, errors = cli("bench", "throughput", corpus_file, *arguments, "--paths", "exact", "static")
    assert code == 0, errors
    table = pq.read_table(out)
    assert {"path", "ratio", "machine", "versions", "time"} <= set(table.column_names)
    rows = {row["path"]: row for row in table.to_pylist()}
    plain, exact = rows["sentence-transformers encode"], rows["nearkin, exact"]
    assert plain["ratio"] == 1
    assert exact["cosine"] == pytest.approx(1, abs=1e-5)
    assert exact["recall_50"] == pytest.approx(1, abs=0.01)
    assert 0 < rows["nearkin, static"]["recall_50"] < 1
    assert all(row["passages_s"] > 0 and row["memory_mb"] > 100 for row in rows.values())
    assert 0 < exact["of_ceiling"] < 1
    assert "left out" in printed
    assert "<svg" in plot.read_text()


def test_every_round_of_throughput_encodes(
    corpus_file: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encoder = throughput._store(tmp_path / "store", corpus_file), TransformerEncoder(str(tiny_encoder))
    encoded, run = [], encoder.run

    def counted(prepared: Any, *others: Any) -> Any:
        found = run(prepared, *others)
        encoded.append(len(found))
        return found

    monkeypatch.setattr(encoder, "run", counted)
    for _ in range(2):
        throughput._embed_anew(store, encoder)
        assert sum(encoded) == 600
        encoded.clear()


def test_chunking_measures_what_it_cut(cli: Cli, corpus_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    options = ["--passages", 40, "--together", 4, "--tokens", 32, "--rounds", 1, "--out", out]
    code, _, errors = cli("bench", "chunking", corpus_file, *options)
    assert code == 0, errors
    rows = pq.read_table(out).to_pylist()
    assert [row["way"] for row in rows] == ["nearkin", "semantic-text-splitter"]
    assert rows[0]["ratio"] == pytest.approx(rows[1]["seconds"] / rows[0]["seconds"])
    for row in rows:
        assert row["pieces"] > 10
        assert 16 < row["tokens"] <= row["longest"] <= 32
        assert 0.2 < row["at_sentence"] <= 1
    code, _, errors = cli("bench", "chunking", corpus_file, "--together", 10**9)
    assert (code, errors.count("\n")) == (1, 1)


@pytest.mark.slow
def test_search_measures_each_path_once_and_goes_on(store: Path, task_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out, plot = tmp_path / "rows.parquet", tmp_path / "search.svg"
    settings: dict[str, Any] = {"rounds": 1, "out": out, "scratch": tmp_path / "scratch", "say": said.append}
    search(store, task_folder, 10, kinds=["stream"], peers=["NumPy product, argpartition"], **settings)
    assert len(said) == 2
    both = {"kinds": ["stream", "ivf"], "peers": ["NumPy product, argpartition", "FAISS IndexFlatIP"]}
    rows = {row["path"]: row for row in search(store, task_folder, 10, **both, **settings)}
    assert len(said) == 4
    assert {row["queries"] for row in rows.values()} == {40}
    assert rows["NumPy product, argpartition"]["recall_k"] == pytest.approx(1, abs=0.01)
    assert 0.8 < rows["nearkin, ivf"]["recall_k"] <= 1
    assert rows["FAISS IndexFlatIP"]["ratio"] == 1
    larger = search(store, task_folder, 10, passages=[2000], kinds=["stream"], peers=["FAISS IndexFlatIP"], **settings)
    [faiss] = [row for row in larger if row["passages"] == 2000 and row["path"].startswith("FAISS")]
    assert faiss["recall_k"] == pytest.approx(1, abs=0.01)
    assert [(row["path"], row["passages"]) for row in larger] == [(n, 2000) for n in ("nearkin, stream", faiss["path"])]
    assert len(read_rows(out)) == 6  # those of the other calls stay there
    plot_search(larger, plot)
    assert "<svg" in plot.read_text()


def test_an_enlarged_store_that_was_killed_is_made_anew(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = module.write_vectors, [0]

    def killed(*arguments: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(module, "write_vectors", killed)
    with pytest.raises(KeyboardInterrupt):
        module.enlarged(Store(built), "tiny-encoder", 10_000, tmp_path)
    larger = module.enlarged(Store(built), "tiny-encoder", 10_000, tmp_path)
    assert len(Embeddings(larger, "tiny-encoder")) == 10_000
    made = count[0]
    assert len(module.enlarged(Store(built), "tiny-encoder", 10_000, tmp_path).corpus) == 10_000
    assert count[0] == made


def test_recall_is_against_exact_neighbours_of_these_very_queries(store: Path, tmp_path: Path) -> None:
    vectors = Embeddings(Store(store), "tiny-encoder").take(np.arange(60))
    for queries in (vectors[:30], vectors[30:]):
        np.save(tmp_path / "queries.npy", queries)
        row = module._measured(store, "tiny-encoder", "nearkin, flat", tmp_path, 5, 1, 0.95)  # with no stream before it
        assert row["recall_k"] > 0.99
    row = module._measured(store, "tiny-encoder", "FAISS IndexFlatIP", tmp_path, 5, 1, 0.95)
    assert row["recall_k"] > 0.99


@pytest.mark.slow
def test_memory_counts_every_process(corpus_file: Path, tiny_encoder: Path) -> None:
    rows = memory(corpus_file, repeat=2, encoder=str(tiny_encoder), max_tokens=16)
    assert [row["passages"] for row in rows] == [600, 600, 1200]
    assert all(row["peak_mb"] > 100 for row in rows)


@pytest.mark.slow
def test_demo_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole tour at a small size; then, of one arm, once more: the same but for the seconds."""
    small = {"PASSAGES": 300, "TOKENS": 1500, "STEPS": 2, "BATCH": 4, "EPOCHS": 1, "TRAIN": 24, "DEV": 12, "TEST": 12}
    for name, value in small.items():
        monkeypatch.setattr(demo_module, name, value)
    lines: list[str] = []
    arms = demo_module.demo(tmp_path / "demo", say=lines.append)
    assert [arm.arm for arm in arms] == ["none", "TAPT", "RAND-TAPT", "kNN-TAPT"]
    assert all(arm.masked_lm_loss and arm.pretraining_tokens for arm in arms[1:])
    assert len(demo_module.table(arms)) == 5
    assert json.loads((tmp_path / "demo" / "results.json").read_text())[0]["arm"] == "none"
    monkeypatch.setattr(demo_module, "ARMS", {"none": None})
    again = demo_module.demo(tmp_path / "demo", overwrite=True)
    for first, second in zip(arms[:1], again, strict=True):
        assert (first.f1, first.masked_lm_loss, first.passages) == (second.f1, second.masked_lm_loss, second.passages)


@pytest.mark.slow
def test_cascade_is_charted_beside_encoding_everything(
    cli: Cli, corpus_file: Path, tiny_encoder: Path, task_folder: Path, tmp_path: Path
) -> None:
    store, out, plot = tmp_path / "store", tmp_path / "rows.parquet", tmp_path / "cascade.svg"
    for encoder in (tiny_encoder, f"static:{tiny_encoder}"):
        assert cli("build", store, "--corpus", f"docs={corpus_file}", "--encoder", encoder)[0] == 0
    names = ["--cheap", f"static:{tiny_encoder}", "--full", tiny_encoder, "--queries", 10, 5000, "-k", 3]
    sizes = ["--passages", 600, 3000]
    code, _, errors = cli("bench", "cascade", store, task_folder, *names, *sizes, "--out", out, "--plot", plot)
    assert code == 0, errors
    rows = pq.read_table(out).to_pylist()
    assert [(row["passages"], row["queries"], row["k"]) for row in rows] == [(600, 10, 3), (3000, 10, 3)]
    assert all(row["recall"] > 0.8 and row["gain"] <= 100 for row in rows)
    assert "<svg" in plot.read_text()
    assert cli("bench", "cascade", store, task_folder, *names[:4], "--queries", 5000)[0] == 1
