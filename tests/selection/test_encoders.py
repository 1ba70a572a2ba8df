"""Every path is held to sentence-transformers' own output; batches; int8; several processes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from selection import choosing, embedding, workers
from selection.building import build
from selection.choosing import Choice, Wanted, choose_encoder, draw
from selection.devices import gpu_count
from selection.embedding import Embeddings
from selection.encoders import EncoderSpec, load_encoder, openvino_engine, transformer
from selection.encoders.batches import batches, plan_batches
from selection.encoders.recall import neighbour_recall
from selection.encoders.torch_engine import TorchEngine
from selection.encoders.transformer import TransformerEncoder
from selection.errors import ModelError, NearkinError, StoreError
from selection.ingest import CorpusSpec
from selection.manifest import EncoderEntry
from selection.querying import query
from selection.store import Store
from selection.stored import stored_encoder
from selection.task import read_task
from selection.tokens import Ragged
from tests.conftest import Cli


@pytest.fixture(scope="module")
def texts(passages: pa.Table) -> pa.Array:
    """Real passages, an empty text, one that is cut, and some twice."""
    some = passages["text"].slice(0, 60).to_pylist()
    return pa.array([*some, "", "word " * 300, *some[:5]])


@pytest.fixture(scope="module")
def expected(texts: pa.Array, tiny_encoder: Path) -> npt.NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    return np.asarray(model.encode(texts.to_pylist(), normalize_embeddings=True), dtype=np.float32)


ON_CUDA = pytest.param("torch", "cuda", marks=pytest.mark.skipif(not gpu_count(), reason="no GPU"))


@pytest.mark.parametrize(("engine", "device"), [("torch", "cpu"), ("openvino", "cpu"), ON_CUDA])
def test_engines_give_the_models_own_vectors(
    engine: str, device: str, texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path
) -> None:
    encoder = load_encoder(str(tiny_encoder), "exact", device, engine=engine)
    assert encoder.engine == engine
    done: list[int] = []
    vectors = encoder.run(encoder.prepare(texts), lambda rows: done.append(len(rows)))
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert sum(done) == len(texts)
    assert encoder.encode(texts.slice(0, 0)).shape == (0, 32)


def test_batches_are_halved_until_they_fit_the_memory(
    texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path
) -> None:
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    engine, sizes = encoder._engine, []
    assert isinstance(engine, TorchEngine)
    model = engine._model

    def small(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        sizes.append(features["input_ids"].numel())
        if len(sizes) == 2 or sizes[-1] == 2000:  # CUDA says it by an exception of its own, Apple's GPUs by any
            raise torch.OutOfMemoryError if len(sizes) == 2 else RuntimeError("MPS backend out of memory (MPS ...)")
        return model(features)

    engine._model = small  # type: ignore[assignment]
    told: list[npt.NDArray[np.int64]] = []
    engine._budget = 3000
    vectors = encoder.run(encoder.prepare(texts), told.append)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    done = np.concatenate(told)
    assert len(done) == len(texts)
    assert engine._budget == 1500
    assert np.array_equal(np.unique(done), np.arange(62))  # distinct ones
    engine._model = lambda features: small(features | {"input_ids": torch.zeros(2000)})  # type: ignore[assignment]
    with pytest.raises(NearkinError, match="cpu has too little memory"):
        encoder.encode(texts)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_it_gives_the_same_vectors(
    backend: str, texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path
) -> None:
    graphs: list[int] = []

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(len(inputs))
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()  # or what other tests compiled counts towards torch's limit
    if backend == "inductor":  # which needs a compiler of the system's; "eager" always runs
        try:
            torch.compile(torch.sin)(torch.ones(2))
        except Exception as error:
            pytest.skip(f"torch compiles nothing here: {error}")
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    plain = encoder.encode(texts)
    assert encoder.compile(counted)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)
    np.testing.assert_allclose(encoder.encode(texts.slice(3, 1)), expected[3:4], atol=2e-6)
    assert 1 <= len(graphs) <= 2  # for all shapes, a single row among them
    encoder.undo_compile()
    assert not encoder.compiled
    np.testing.assert_array_equal(encoder.encode(texts), plain)


def test_an_encoder_that_cannot_be_compiled_stays_as_it_was(texts: pa.Array, tiny_encoder: Path) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        raise RuntimeError("no compiler")

    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    plain = encoder.encode(texts)
    assert not encoder.compile(broken)
    assert not encoder.compiled
    np.testing.assert_array_equal(encoder.encode(texts), plain)


def test_where_a_compiled_batch_fails_the_model_goes_on_as_it_was(
    texts: pa.Array, tiny_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def fragile(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        def run(*arguments: torch.Tensor) -> Any:
            calls.append(1)
            if len(calls) > 4:
                raise RuntimeError("a kernel that fails")
            return graph(*arguments)

        return run

    torch._dynamo.reset()
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    plain = encoder.encode(texts)
    assert encoder.compile(fragile)
    assert isinstance(encoder._engine, TorchEngine)
    encoder._engine._budget //= 8
    np.testing.assert_allclose(encoder.encode(texts), plain, atol=1e-6)
    assert len(calls) == 5
    assert not encoder.compiled
    assert encoder._engine._budget == 4096
    assert "the model goes on as it was" in caplog.text


def test_on_a_gpu_the_faster_of_plain_and_compiled_is_taken_for_long_work(
    store: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([90.0, 70.0, 60.0, 90.0, 70.0, 120.0, 20.0])
    monkeypatch.setattr(choosing, "best_device", lambda: "cuda")
    monkeypatch.setattr(choosing._Chooser, "_tried", lambda self, encoder: Choice(encoder, 100.0, next(seconds)))
    monkeypatch.setattr(choosing, "COMPILE_FROM", 30.0)
    monkeypatch.setattr(TransformerEncoder, "compile", partialmethod(TransformerEncoder.compile, "eager"))
    torch._dynamo.reset()
    chosen = [choose_encoder(Store(store), Wanted(str(tiny_encoder))) for _ in range(3)]
    assert [choice.seconds for choice in chosen] == [60.0, 90.0, 20.0]
    encoders = [choice.encoder for choice in chosen]
    assert [isinstance(one, TransformerEncoder) and one.compiled for one in encoders] == [True, False, False]


def test_masks_made_here_give_the_same_vectors(
    texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    engine, seen = encoder._engine, set()
    assert isinstance(engine, TorchEngine)
    plain: Any = encoder.pipeline[0].auto_model.forward

    def watched(**features: Any) -> Any:
        mask = features["attention_mask"]
        seen.add(None if mask is None else mask.dim())
        return plain(**features)

    monkeypatch.setattr(type(encoder.pipeline[0].auto_model), "forward", lambda _, **features: watched(**features))
    assert encoder.spare_masks()
    own = encoder._plain(texts)  # padded, and after a batch without padding
    np.testing.assert_allclose(own, expected, atol=2e-6)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)
    assert seen >= {None, 4}  # batches without padding, batches with it
    assert encoder.compile("eager")
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)
    encoder.undo_compile()
    assert engine.masked
    engine.undo_mask()
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)
    assert 2 in seen


def test_a_model_that_such_masks_change_makes_its_own(
    texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    model = type(encoder.pipeline[0].auto_model)
    plain = model.forward

    def local(self: Any, **features: Any) -> Any:
        mask = features["attention_mask"]
        if mask is not None and mask.dim() == 4:
            features["attention_mask"] = torch.ones_like(mask)
        return plain(self, **features)

    monkeypatch.setattr(model, "forward", local)
    assert not encoder.spare_masks()
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)

    monkeypatch.setattr(model, "forward", plain)
    encoder.pipeline[0].auto_model.config.sliding_window = 128
    assert not encoder.spare_masks()
    encoder.pipeline[0].auto_model.config.sliding_window = None

    def broken(self: Any, **features: Any) -> Any:
        if features["attention_mask"] is None:
            raise ValueError("no mask")
        return plain(self, **features)

    monkeypatch.setattr(model, "forward", broken)
    assert not encoder.spare_masks()
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)


def test_fingerprint_is_the_same_whatever_the_engine(tiny_encoder: Path) -> None:
    ours = [load_encoder(str(tiny_encoder), "exact", "cpu", engine=e).fingerprint for e in ("torch", "openvino")]
    assert ours[0] == ours[1] != load_encoder(str(tiny_encoder), "bf16", "cpu").fingerprint


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_bf16_is_near(engine: str, texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path) -> None:
    vectors = load_encoder(str(tiny_encoder), "bf16", "cpu", engine=engine).encode(texts)
    assert (vectors * expected).sum(axis=1).min() > 0.995
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_max_tokens_cuts_as_the_model_would(texts: pa.Array, tiny_encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    model.max_seq_length = 16
    own = model.encode(texts.to_pylist(), normalize_embeddings=True)
    np.testing.assert_allclose(load_encoder(str(tiny_encoder), max_tokens=16).encode(texts), own, atol=2e-6)


def test_identical_inputs_are_encoded_once(
    texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    engine = encoder._engine
    assert engine is not None
    seen: list[int] = []
    real = engine.run
    monkeypatch.setattr(engine, "run", lambda inputs, tick: seen.append(len(inputs)) or real(inputs, tick))
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)
    assert seen == [62]


def test_pipelines_of_another_kind_go_through_their_own_encode(
    texts: pa.Array, expected: npt.NDArray[np.float32], tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformerEncoder, "_agrees", lambda self: False)
    encoder = load_encoder(str(tiny_encoder), device="cpu")
    assert encoder.engine == "sentence-transformers"
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-6)
    monkeypatch.setattr(transformer, "_array_tokenizer", lambda pipeline, model: None)
    np.testing.assert_allclose(load_encoder(str(tiny_encoder), device="cpu").encode(texts), expected, atol=2e-6)
    with pytest.raises(ModelError, match="a pipeline of its own kind"):
        load_encoder(str(tiny_encoder), device="cpu", engine="openvino")


def test_a_prompt_that_was_asked_for_stays_with_the_store(
    cli: Cli, texts: pa.Array, corpus_file: Path, task_folder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder, store = Path(shutil.copytree(tiny_encoder, tmp_path / "two-prompts")), tmp_path / "store"
    path = folder / "config_sentence_transformers.json"
    prompts = {"query": "query: ", "passage": "passage: "}
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": prompts}))
    named = ("build", store, "--encoder", folder)
    assert cli("build", store, "--prompt", "query: ")[0] == 1  # of which encoder?
    out = cli(*named, "--corpus", f"docs={corpus_file}", "--dry-run")[1]
    assert "none; " in out
    assert "--prompt NAME" in out
    assert cli(*named, "--prompt", "query")[0] == 0
    out = cli(*named)[1]
    assert "0 of 600 passages to embed" in out
    assert "--prompt NAME" not in out
    assert "600 of 600 passages to embed" in cli(*named, "--precision", "bf16")[1]
    code, _, errors = cli("build", store)
    assert (code, "choose one with --encoder" in errors) == (1, True)
    assert "0 of 600 passages to embed" in cli("build", store, "--encoder", "two-prompts-bf16")[1]  # as it is called
    assert {entry.prompt for entry in Store(store).manifest.encoders.values()} == {"query"}

    own = SentenceTransformer(str(folder), device="cpu")
    kept = np.concatenate(list(Embeddings(Store(store), "two-prompts")))
    strings = Store(store).corpus.texts(0).to_pylist()
    expected = own.encode(strings, prompt_name="query", normalize_embeddings=True)
    np.testing.assert_allclose(kept, expected, atol=1e-3)
    example = read_task(task_folder).train_texts.slice(0, 1)
    vector = own.encode(example.to_pylist(), prompt="query: ", normalize_embeddings=True)
    nearest = query(store, task_folder, 1, encoder="two-prompts", limit=1).neighbours["score"][0].as_py()
    assert nearest == pytest.approx(float((vector @ expected.T).max()), abs=1e-3)
    with Store(store).lock():
        opened = Store(store)
        opened.manifest.encoders["two-prompts"].prompt = None  # of two entries of a model, each has its own
        opened.save()
    assert "0 of 600 passages to embed" in cli(*named, "--precision", "bf16")[1]
    assert "0 of 600 passages to embed" in cli("build", store, "--encoder", "two-prompts-bf16")[1]
    assert "600 of 600 passages to embed" in cli(*named, "--prompt", "passage: ", "--dry-run")[1]
    assert "600 of 600 passages to embed" in cli(*named, "--prompt", "", "--dry-run")[1]


def test_prompts_are_put_before_texts(texts: pa.Array, tiny_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "prompted"))
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "prompts": {"passage": "passage: "}, "default_prompt_name": "passage"}))
    own = SentenceTransformer(str(folder), device="cpu").encode(texts.to_pylist(), normalize_embeddings=True)
    encoder = load_encoder(str(folder), device="cpu")
    assert encoder.engine == "torch"
    np.testing.assert_allclose(encoder.encode(texts), own, atol=2e-6)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.integers(1, 2000))
def test_batches_hold_each_row_once_and_little_padding(lengths: list[int], budget: int) -> None:
    counts = np.array(lengths, dtype=np.int64)
    planned = plan_batches(counts, budget)
    assert sorted(np.concatenate([rows for rows, _ in planned]).tolist()) == list(range(len(counts)))
    for rows, width in planned:
        assert counts[rows].max() <= width
        assert len(rows) * width <= budget or len(rows) == 1
        if counts[rows].min() >= 64:
            assert counts[rows].sum() >= (1 - 0.12) * width * len(rows)
    inputs = Ragged(np.arange(counts.sum(), dtype=np.int32), np.concatenate([[0], np.cumsum(counts)]))
    for batch in batches(inputs, budget, pad=-1):
        for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
            np.testing.assert_array_equal(ids[mask == 1], inputs.take(np.array([row])).values)
            assert (ids[mask == 0] == -1).all()


def test_padding_of_real_lengths_is_a_few_per_cent(passages: pa.Table, tiny_encoder: Path) -> None:
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    lengths = encoder.prepare(passages["text"]).lengths
    for budget in (2048, 16_384):
        assert sum(len(rows) * width for rows, width in plan_batches(lengths, budget)) < 1.04 * lengths.sum()


@pytest.mark.slow
def test_int8_is_fitted_once_and_kept_with_its_recall(
    cli: Cli, corpus_file: Path, task_folder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    store, corpus = tmp_path / "store", f"docs={corpus_file}"
    arguments = ["build", store, "--corpus", corpus, "--encoder", tiny_encoder, "--precision", "int8"]
    code, out, _ = cli(*arguments, "--min-recall", "0.5")
    assert code == 0
    entry = Store(store).manifest.encoders["tiny-encoder-int8"]
    assert entry.settings["recall"] >= 0.5
    assert entry.settings["engine"] == "openvino"
    assert f"recall {entry.settings['recall']:.3f}" in out
    assert {handler.level for handler in logging.root.handlers} == {0}  # libraries left the program's log alone
    exact = load_encoder(str(tiny_encoder), device="cpu").encode(Store(store).corpus.texts(0))
    kept = np.concatenate(list(Embeddings(Store(store), "tiny-encoder-int8"))).astype(np.float32)
    assert (kept * exact).sum(axis=1).mean() > 0.98
    assert neighbour_recall(kept, exact, 20) > 0.5
    assert len(query(store, task_folder, 3).neighbours) == 120
    _, again, _ = cli("build", store)
    assert "calibrating" not in again
    assert "0 passages embedded" in again
    model = store / "encoders" / "tiny-encoder-int8" / "model.bin"
    model.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="fit this encoder again"):
        stored_encoder(Store(store), "tiny-encoder-int8")
    assert "model.bin: damaged" in cli("verify", store)[1]
    code, _, errors = cli(*arguments, "--min-recall", "1")
    assert code == 1
    assert errors.startswith("nearkin: int8 finds ")
    assert cli("build", store, "--min-recall", "0.5")[0] == 0
    assert cli("verify", store)[0] == 0


@pytest.mark.slow
def test_auto_takes_the_most_exact_path_that_fits(
    cli: Cli, corpus_file: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "TRIAL_FROM", 1)
    monkeypatch.setattr(choosing, "TRIAL_SECONDS", 0.05)
    store = tmp_path / "store"
    arguments = ["build", store, "--corpus", f"docs={corpus_file}", "--encoder", tiny_encoder, "--precision", "auto"]
    code, out, _ = cli(*arguments, "--max-seconds", 3600, "--dry-run")
    assert code == 0
    assert "auto    tiny-encoder in" in out
    assert "the exact vectors" in out
    slow = lambda encoder, texts: (100.0, {"exact": 1.0, "bf16": 2.0, "int8": 3.0}[encoder.precision], 0.0)  # noqa: E731
    monkeypatch.setattr(choosing, "measure", slow)
    code, out, _ = cli(*arguments, "--max-seconds", 1, "--min-recall", "0.5")
    assert code == 0
    assert "auto    static-tiny-encoder in numpy: keeps" in out
    assert "no path fits" in out
    assert len(Embeddings(Store(store), "static-tiny-encoder")) == 600
    _, again, _ = cli("build", store, "--encoder", f"static:{tiny_encoder}")
    assert "0 passages embedded" in again


def test_static_encoder_end_to_end(
    cli: Cli, corpus_file: Path, task_folder: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    store, corpus = tmp_path / "store", f"docs={corpus_file}"
    code, out, errors = cli("build", store, "--corpus", corpus, "--encoder", f"static:{tiny_encoder}")
    assert code == 0, errors
    entry = Store(store).manifest.encoders["static-tiny-encoder"]
    assert 0 < entry.settings["recall"] <= 1
    assert entry.settings["passages"] == 75
    assert f"recall {entry.settings['recall']:.3f}" in out
    encoder = stored_encoder(Store(store), "static-tiny-encoder")
    kept = np.concatenate(list(Embeddings(Store(store), "static-tiny-encoder")))
    np.testing.assert_allclose(kept, encoder.encode(Store(store).corpus.texts(0)), atol=2e-3)
    assert len(query(store, task_folder, 3).neighbours) == 120
    assert cli("verify", store)[0] == 0
    code, _, errors = cli("build", store, "--encoder", f"static:{tiny_encoder}", "--precision", "int8")
    assert code == 1
    assert "has one precision" in errors


def test_a_dry_run_decides_no_later_build(
    cli: Cli, corpus_file: Path, task_folder: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    code, _, errors = cli(
        "build", store, "--corpus", f"docs={corpus_file}", "--encoder", f"static:{tiny_encoder}", "--dry-run"
    )
    assert code == 0, errors
    assert (store / "encoders" / "static-tiny-encoder").is_dir()
    with pytest.raises(StoreError, match="no embeddings yet"):
        query(store, task_folder, 3)
    monkeypatch.setattr("selection.stored.DEFAULT_ENCODER", str(tiny_encoder))
    assert build(store, dry_run=True).plan.choice.encoder.slug == "tiny-encoder"
    build(store)
    assert list(Store(store).manifest.encoders) == ["tiny-encoder"]
    assert not list((store / "encoders").iterdir())
    assert build(store, encoder=f"static:{tiny_encoder}", dry_run=True).plan.settings["tried"]
    assert cli("verify", store)[0] == 0
    assert len(query(store, task_folder, 3).neighbours) == 120
    fitted = Store(store).manifest.encoders["static-tiny-encoder"].fingerprint
    build(store, encoder=f"static:{tiny_encoder}")
    entry = Store(store).manifest.encoders["static-tiny-encoder"]
    assert (entry.fingerprint, "tried" in entry.settings) == (fitted, False)


def test_a_repaired_encoder_keeps_what_was_said_of_it(corpus_file: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    specs = [CorpusSpec("docs", str(corpus_file))]
    build(store, specs, encoder=f"cascade:{tiny_encoder}", precision="bf16", index="flat")
    entry = Store(store).manifest.encoders["static-tiny-encoder"]
    assert (entry.settings["cascade"], entry.settings["index"]) == ("bf16", "flat")
    (store / entry.files[0].path).write_bytes(b"damaged")
    build(store)
    assert Store(store).manifest.encoders["static-tiny-encoder"].settings == entry.settings


def test_models_of_one_last_name_are_told_apart(
    store: Path, task_folder: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(tiny_encoder, tmp_path / "a" / "tiny-encoder"))
    other = Path(shutil.copytree(tiny_encoder, tmp_path / "b" / "tiny-encoder"))
    settings = json.loads((other / "sentence_bert_config.json").read_text())
    (other / "sentence_bert_config.json").write_text(json.dumps({**settings, "max_seq_length": 16}))
    for name in (str(other), f"cascade:{other}"):
        with pytest.raises(StoreError):
            query(store, task_folder, 1, encoder=name)
    before = Store(store).manifest
    with pytest.raises(StoreError, match=r"embeddings tiny-encoder by .* would take their place"):
        build(store, encoder=str(other))
    assert Store(store).manifest == before
    build(store, encoder=f"cascade:{tiny_encoder}")
    static = Store(store).manifest
    with pytest.raises(StoreError, match="would take their place"):
        build(store, encoder=f"static:{other}")
    with pytest.raises(StoreError, match="no static embeddings"):
        query(store, task_folder, 1, encoder=f"cascade:{other}")
    assert Store(store).manifest == static
    monkeypatch.chdir(tmp_path)
    assert build(store, encoder="a/tiny-encoder").plan.embedding.passages == 0  # the same, elsewhere
    assert build(store, encoder=f"static:{moved}").plan.embedding.passages == 0
    for name in ("tiny-encoder", "a/tiny-encoder", "b/../a/tiny-encoder", "static:a/tiny-encoder"):
        assert len(query(store, task_folder, 1, encoder=name).neighbours) == 40


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a trial finds: tokens/s by precision; changed by a test."""
    speeds = {"exact": 1.0, "bf16": 1.0, "int8": 1.0}
    monkeypatch.setattr(choosing, "TRIAL_FROM", 1)
    monkeypatch.setattr(choosing, "measure", lambda encoder, texts: (100.0, speeds[encoder.precision], 0.0))
    monkeypatch.setattr(openvino_engine, "available", lambda: False)
    return speeds


def test_what_auto_does_not_take_is_not_left_behind(
    cli: Cli,
    corpus_file: Path,
    task_folder: Path,
    tiny_encoder: Path,
    tmp_path: Path,
    tried: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fitted(self: choosing._Chooser, spec: EncoderSpec) -> choosing.Choice:
        with self._kept(spec) as folder:
            (folder / "model.xml").write_text("as slow as the exact one")
        files = [self.store.entry(self.store.path / "encoders" / spec.slug / "model.xml", 0)]
        worth = {"recall": 1.0, "passages": 9, "tried": True}
        entry = EncoderEntry(str(tiny_encoder), "int8", None, "0", 32, files=files, settings=worth)
        self.store.manifest.encoders[spec.slug] = entry
        self.store.save()
        return choosing.Choice(load_encoder(spec.model, device="cpu"), 100.0, 1e9)

    monkeypatch.setattr(choosing._Chooser, "_fitted", fitted)
    monkeypatch.setattr(choosing.int8, "available", lambda: True)
    store = tmp_path / "store"
    result = build(store, [CorpusSpec("docs", str(corpus_file))], encoder=str(tiny_encoder), precision="auto")
    assert result.plan.choice.encoder.slug == "tiny-encoder"
    assert list(Store(store).manifest.encoders) == ["tiny-encoder"]
    assert not (store / "encoders" / "tiny-encoder-int8").exists()
    assert len(query(store, task_folder, 3).neighbours) == 120
    assert cli("verify", store)[0] == 0


def test_a_killed_build_within_a_limit_goes_on_with_what_it_chose(
    corpus_file: Path, tiny_encoder: Path, tmp_path: Path, tried: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*args: object) -> object:
        raise KeyboardInterrupt

    store, specs = tmp_path / "store", [CorpusSpec("docs", str(corpus_file))]
    monkeypatch.setattr(choosing._Chooser, "_worthwhile", lambda self, spec, exact: None)
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_encode_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(store, specs, encoder=str(tiny_encoder), precision="auto", max_seconds=1)
    tried["exact"] = 1e9
    again = build(store, specs, encoder=str(tiny_encoder), precision="auto", max_seconds=1)
    assert again.plan.choice.encoder.slug == "static-tiny-encoder"
    other = build(store, specs, encoder=str(tiny_encoder), precision="auto", max_seconds=1)
    assert other.plan.choice.encoder.slug == "tiny-encoder"


def test_a_corpus_too_small_to_fit_to_is_said_so(cli: Cli, tiny_encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one passage\nand another\n")
    arguments = ["build", tmp_path / "s", "--corpus", f"d={tmp_path / 'few.txt'}", "--encoder"]
    for rest in ([tiny_encoder, "--precision", "int8"], [f"static:{tiny_encoder}"]):
        code, _, errors = cli(*arguments, *rest)
        assert code == 1
        assert "2 passages are too few (256 at least)" in errors


def test_max_seconds_needs_auto(cli: Cli, tmp_path: Path, corpus_file: Path) -> None:
    code, _, errors = cli("build", tmp_path / "s", "--corpus", f"d={corpus_file}", "--max-seconds", 5)
    assert code == 1
    assert "--precision auto" in errors
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_processes_write_what_one_would(
    corpus_file: Path, built: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selection.corpus.SHARD_ROWS", 32)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    spec = CorpusSpec("docs", str(corpus_file))
    one, two = tmp_path / "one", tmp_path / "two"
    build(one, [spec], encoder=str(tiny_encoder))
    result = build(two, [spec], encoder=str(tiny_encoder), device="cpu,cpu")
    assert result.plan.embedding.passages == 600
    vectors = [np.concatenate(list(Embeddings(Store(path), "tiny-encoder"))) for path in (one, two)]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-3)
    pq.write_table(pa.table({"text": [f"number {n} more" for n in range(70)]}), tmp_path / "more.parquet")
    build(two, [CorpusSpec("more", str(tmp_path / "more.parquet"))], device="cpu,cpu")
    assert len(Embeddings(Store(two), "tiny-encoder")) == 670
    assert len(Store(two).corpus.shards) == 22  # so that processes had something to share
    store = Store(two)
    with store.lock():
        entry = store.manifest.encoders["tiny-encoder"]
        entry.model, entry.shards = str(tmp_path / "gone"), {}
        store.save()
        encoder = load_encoder(str(tiny_encoder), device="cpu")
        jobs = [(number, two / f"part-{number:05d}.arrow") for number in range(2)]
        with pytest.raises(NearkinError, match=r"a process cannot begin: cpu: .*gone"):
            workers.embed_elsewhere(store, encoder, jobs, tqdm(disable=True), print, ["cpu"])


@pytest.mark.slow
def test_a_script_need_not_guard_its_main(
    corpus_file: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from selection import columnar, corpus\nfrom selection.building import build\n"
        "from selection.ingest import CorpusSpec\n"
        "corpus.SHARD_ROWS = columnar.BATCH_ROWS = 32\n"
        f"build({str(tmp_path / 'store')!r}, [CorpusSpec('docs', {str(corpus_file)!r})], "
        f"encoder={str(tiny_encoder)!r}, device='cpu,cpu')\nprint('once')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr


def test_parts_hold_every_job_once_and_shrink() -> None:
    jobs = [(number, Path(f"part-{number:05d}.arrow")) for number in range(1000)]
    parts = list(workers._parts(jobs, 4))
    assert [job for part in parts for job in part] == jobs
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert (max(sizes), min(sizes)) == (workers.MOST_JOBS, 1)


def test_gpus_are_counted_for_what_runs_on_them(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TransformerEncoder(str(tiny_encoder), device="cpu")
    monkeypatch.setattr("selection.devices.gpu_count", lambda: 8)
    assert workers.work_of(None, encoder) is None  # it was put on the CPU
    encoder.device = "cuda:0"
    assert workers.work_of(None, encoder) is not None
    assert workers.work_of("cpu,cpu", encoder) is not None
    if openvino_engine.available():
        assert workers.work_of(None, TransformerEncoder(str(tiny_encoder), engine="openvino")) is None


def test_devices_that_are_not_there(cli: Cli, store: Path) -> None:
    for device in ("cuda:9", "cpu,cuda:9", "abacus"):
        code, _, errors = cli("build", store, "--device", device)
        assert code == 1
        assert "this machine has no device" in errors


def test_devices_that_are_not_there_are_refused_though_vectors_are_kept(
    cli: Cli, store: Path, task_folder: Path, tmp_path: Path
) -> None:
    assert cli("query", store, task_folder)[0] == 0
    for command in (["query", store, task_folder], ["select", store, task_folder, "-k", 1, "--out", tmp_path / "set"]):
        code, _, errors = cli(*command, "--device", "cuda:9")
        assert (code, errors) == (1, "nearkin: this machine has no device cuda:9: `nearkin doctor` lists what it has\n")


def test_a_sample_comes_from_all_over(built: Path) -> None:
    store = Store(built)
    sample = draw(store, 200)
    assert len(sample) == 200
    every = store.corpus.texts(0).to_pylist()
    places = [every.index(text) for text in sample.to_pylist()]
    assert places != sorted(places)
    assert min(places) < 60
    assert max(places) > 540
    assert draw(store, 200).equals(sample)
    assert len(draw(store, 10_000)) == 600


def test_unknown_precision() -> None:
    with pytest.raises(ModelError, match="choose one of exact, bf16, int8"):
        EncoderSpec("all-MiniLM-L6-v2", "int4")
    assert Wanted().min_recall == 0.95


def test_recall_counts_shared_neighbours() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert neighbour_recall(vectors, vectors, 5) == 1
    assert neighbour_recall(-vectors, vectors, 49) == 1
    assert neighbour_recall(rng.normal(size=(50, 8)).astype(np.float32), vectors, 5) < 0.4
