"""The encoder is sentence-transformers' own output; a resumed build gives the same bytes; stale shards are redone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from selection import building, embedding
from selection.augmentation import select
from selection.building import build, collect
from selection.embedding import Embeddings
from selection.encoders import load_encoder
from selection.encoders.transformer import TransformerEncoder
from selection.errors import ModelError, StoreError
from selection.indexing import index
from selection.ingest import CorpusSpec
from selection.models import resolve_model
from selection.querying import query
from selection.store import Store
from selection.vector_files import read_vectors
from selection.verifying import verify


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selection.corpus.SHARD_ROWS", 64)
    monkeypatch.setattr("selection.columnar.BATCH_ROWS", 32)
    monkeypatch.setattr(embedding, "SAVE_EVERY_SECONDS", 0.0)


def _killed(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    """A build that is stopped before its first file."""

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("selection.embedding.write_vectors", fails)
        with pytest.raises(KeyboardInterrupt):
            build(store)


def digests(store: Path) -> dict[str, str]:
    files = sorted([*store.glob("embeddings/*/*.arrow"), *store.glob("index/*/*"), store / "manifest.json"])
    return {str(f.relative_to(store)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_vectors_are_sentence_transformers_own(passages: pa.Table, built: Path, tiny_encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    expected = model.encode(passages["text"].to_pylist(), normalize_embeddings=True)
    stored = np.concatenate(list(Embeddings(Store(built), "tiny-encoder")))
    assert stored.dtype == np.float16
    assert stored.shape == (600, 32)
    np.testing.assert_allclose(stored, expected, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(stored.astype(np.float32), axis=1), 1, atol=2e-3)


def test_a_sample_leaves_no_file_open(
    corpus_file: Path, tiny_encoder: Path, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "store", [CorpusSpec("docs", str(corpus_file))], encoder=str(tiny_encoder))
    wanted = np.concatenate([block[:10] for block in Embeddings(Store(tmp_path / "store"), "tiny-encoder")])
    open_now: list[int] = []
    held: list[weakref.ref[npt.NDArray[np.float16]]] = []

    def watched(path: Path, *about: Any) -> npt.NDArray[np.float16]:
        vectors = np.array(read_vectors(path, *about))
        held.append(weakref.ref(vectors))
        open_now.append(sum(one() is not None for one in held))
        return vectors

    monkeypatch.setattr(embedding, "read_vectors", watched)
    monkeypatch.setattr(embedding, "MAPPED_SHARDS", 1)
    embeddings = Embeddings(Store(tmp_path / "store"), "tiny-encoder")
    np.testing.assert_array_equal(embeddings.sample(10 * embeddings.shards, embeddings.shards), wanted)
    assert len(open_now) == embeddings.shards > 3
    assert max(open_now) == 2  # what is read, and the one before it


@pytest.mark.slow
def test_default_encoder_is_sentence_transformers_own(passages: pa.Table) -> None:
    from sentence_transformers import SentenceTransformer

    texts = passages["text"].slice(0, 48)
    expected = SentenceTransformer(str(resolve_model("all-MiniLM-L6-v2")), device="cpu").encode(
        texts.to_pylist(), normalize_embeddings=True
    )
    np.testing.assert_allclose(load_encoder("all-MiniLM-L6-v2", device="cpu").encode(texts), expected, atol=1e-5)
    half = load_encoder("all-MiniLM-L6-v2", "bf16", device="cpu").encode(texts)
    assert (half * expected).sum(axis=1).min() > 0.995
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)


@pytest.mark.usefixtures("small_shards")
def test_stopped_build_resumes_to_the_same_bytes(
    corpus_file: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CorpusSpec("docs", str(corpus_file))
    build(tmp_path / "whole", [spec], encoder=str(tiny_encoder))
    undisturbed = digests(tmp_path / "whole")
    real, calls = embedding._encode_shard, []

    def stopping(*args: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "_encode_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "resumed", [spec], encoder=str(tiny_encoder))
    assert len(list((tmp_path / "resumed").glob("embeddings/*/*.arrow"))) == 3
    result = build(tmp_path / "resumed")
    assert len(calls) == 4 + len(result.plan.embedding.todo)
    assert result.plan.embedding.reused >= 3 * 64
    assert digests(tmp_path / "resumed") == undisturbed


@pytest.mark.usefixtures("small_shards")
def test_only_changed_text_is_embedded_again(
    passages: pa.Table, tiny_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.parquet"
    table = passages.select(["id", "text"])
    pq.write_table(table, path, row_group_size=64)
    build(tmp_path / "store", [CorpusSpec("a", str(path))], encoder=str(tiny_encoder))
    texts = table["text"].to_pylist()
    texts[100] = "A different passage altogether."
    pq.write_table(table.set_column(1, "text", pa.array(texts)), path, row_group_size=64)
    result = build(tmp_path / "store")
    assert len(result.plan.embedding.todo) == 1
    assert "corpus a is not what it was: the text of 1 of its 10 shards has changed" in caplog.text
    rebuilt = np.concatenate(list(Embeddings(Store(tmp_path / "store"), "tiny-encoder")))
    build(tmp_path / "fresh", [CorpusSpec("a", str(path))], encoder=str(tiny_encoder))
    fresh = np.concatenate(list(Embeddings(Store(tmp_path / "fresh"), "tiny-encoder")))
    np.testing.assert_array_equal(rebuilt, fresh)
    caplog.clear()
    build(tmp_path / "store", [CorpusSpec("a", str(path), where="length(text) > 60")])
    assert "corpus a is not what it was" in caplog.text


def test_changed_encoder_makes_all_anew(store: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_encoder, tmp_path / "other" / "tiny-encoder"))
    assert len(build(store, encoder=str(other)).plan.embedding.todo) == 0
    settings = json.loads((other / "sentence_bert_config.json").read_text())
    settings["max_seq_length"] = 16
    (other / "sentence_bert_config.json").write_text(json.dumps(settings))
    before = (store / "manifest.json").read_bytes()
    with pytest.raises(StoreError, match=r"another version of .* than the one here"):
        build(store)  # nobody asked for it, and days of encoding may be at stake
    assert (store / "manifest.json").read_bytes() == before
    result = build(store, encoder=str(other))
    assert result.plan.embedding.reused == 0
    assert Store(store).manifest.encoders["tiny-encoder"].fingerprint == load_encoder(str(other)).fingerprint


def test_another_model_behind_a_static_encoder_is_noticed(
    corpus_file: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_encoder, tmp_path / "model"))
    store = tmp_path / "store"
    build(store, [CorpusSpec("d", str(corpus_file))], encoder=f"static:{model}")
    settings = json.loads((model / "sentence_bert_config.json").read_text())
    (model / "sentence_bert_config.json").write_text(json.dumps(settings | {"max_seq_length": 16}))
    before = (store / "manifest.json").read_bytes()
    with pytest.raises(StoreError, match="another version of static:"):
        build(store)
    assert (store / "manifest.json").read_bytes() == before
    assert build(store, encoder=f"static:{model}").plan.embedding.reused == 0


def test_a_corpus_that_grew_is_searched_as_it_was_until_it_is_embedded(
    passages: pa.Table, tiny_encoder: Path, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tmp_path / "docs", tmp_path / "store"
    folder.mkdir()
    pq.write_table(passages.slice(0, 300), folder / "1.parquet")
    build(path, [CorpusSpec("docs", str(folder))], encoder=str(tiny_encoder))
    before = query(path, task_folder, k=3).neighbours
    pq.write_table(passages.slice(300, 100), folder / "0.parquet")  # in front: every doc_id changes
    build(path, dry_run=True)
    assert query(path, task_folder, k=3).neighbours.equals(before)

    _killed(monkeypatch, path)
    assert query(path, task_folder, k=3).neighbours.equals(before)
    assert build(path).plan.embedding.passages == 100
    assert len(Store(path).corpus) == 400
    assert not Store(path).manifest.pending
    (folder / "1.parquet").unlink()
    build(path, [CorpusSpec("docs", str(folder))])
    assert len(Store(path).manifest.encoders["tiny-encoder"].shards) == 1
    assert len(list(path.rglob("part-*.arrow"))) == 1


def test_a_converted_corpus_that_changed_is_searched_as_it_was_until_it_is_embedded(
    tiny_encoder: Path, task_folder: Path, tmp_path: Path
) -> None:
    folder, path = tmp_path / "docs", tmp_path / "store"
    folder.mkdir()

    def write(name: str, texts: list[str]) -> None:
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")

    write("b.jsonl", [f"a matrix of {number} rows" for number in range(30)])
    build(path, [CorpusSpec("docs", str(folder))], encoder=str(tiny_encoder))
    before = query(path, task_folder, k=3).neighbours
    for turn, name in enumerate(("a.jsonl", "c.jsonl")):
        write(name, [f"a graph of {number} nodes", "and its edges"] if (number := turn) else ["a tree"])
        build(path, dry_run=True)
        assert query(path, task_folder, k=3).neighbours.equals(before)
        assert [problem for _, problem in verify(path) if problem]
        build(path)
        assert not [problem for _, problem in verify(path) if problem]
        assert len(list((path / "corpus").iterdir())) == 1
        before = query(path, task_folder, k=3).neighbours
    assert len(Store(path).corpus) == 33
    (folder / "b.jsonl").unlink()  # the store has the only copy
    write("d.jsonl", ["a heap"])
    assert len(build(path).plan.corpora[0].shards) == len(Store(path).corpus.shards)
    assert len(Store(path).corpus) == 33


def test_a_damaged_file_is_not_taken_in_again(store: Path) -> None:
    part = next(store.glob("embeddings/*/part-00000.arrow"))
    whole, at = part.read_bytes(), len(part.read_bytes()) // 2
    part.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    build(store)
    assert next(store.glob("embeddings/*/part-00000.arrow")).read_bytes() == whole


def test_a_store_within_its_corpus_is_no_part_of_it(passages: pa.Table, tiny_encoder: Path, tmp_path: Path) -> None:
    pq.write_table(passages.slice(0, 40), tmp_path / "0.parquet")
    build(tmp_path / "store", [CorpusSpec("docs", str(tmp_path))], encoder=str(tiny_encoder))
    assert build(tmp_path / "store").plan.embedding.passages == 0
    assert build(tmp_path / "store", [CorpusSpec("docs", str(tmp_path))]).plan.embedding.passages == 0


def test_a_build_sees_files_that_a_folder_gained(passages: pa.Table, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    pq.write_table(passages.slice(0, 40), folder / "0.parquet")
    build(tmp_path / "store", [CorpusSpec("docs", str(folder))], encoder=str(tiny_encoder))
    pq.write_table(passages.slice(40, 10), folder / "1.parquet")
    assert build(tmp_path / "store").plan.embedding.passages == 10
    assert build(tmp_path / "store").plan.embedding.passages == 0


def test_a_model_that_moved_is_found_again(store: Path, task_folder: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    opened = Store(store)
    opened.manifest.encoders["tiny-encoder"].model = "/gone/tiny-encoder"
    opened.save()
    with pytest.raises(StoreError, match=r"where that has moved, `nearkin build .* --encoder FOLDER`"):
        query(store, task_folder, k=1)
    assert build(store, encoder=str(tiny_encoder)).plan.embedding.passages == 0
    assert len(query(store, task_folder, k=1).neighbours)


def test_added_corpus_leaves_the_rest(store: Path, passages: pa.Table, tmp_path: Path) -> None:
    pq.write_table(passages.slice(0, 20), tmp_path / "more.parquet")
    result = build(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))])
    assert result.plan.embedding.passages == 20
    assert result.plan.embedding.reused == 600
    assert Store(store).corpus.take(np.array([605]))["source"].to_pylist() == ["more"]


def test_a_store_answers_as_it_was_until_an_added_corpus_is_embedded(
    store: Path, passages: pa.Table, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def neighbours() -> pa.Table:
        return query(store, task_folder, k=3).neighbours

    before = neighbours()
    pq.write_table(passages.slice(0, 20), tmp_path / "more.parquet")
    build(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))], dry_run=True)
    assert neighbours().equals(before)
    assert "left out, since not embedded yet: more" in caplog.text
    assert "1 shards are not embedded yet" in next(problem for _, problem in verify(store) if problem)

    _killed(monkeypatch, store)
    assert neighbours().equals(before)
    index(store, "stream")
    build(store)  # names no corpus: the one that was read is not forgotten
    assert len(Store(store).corpus) == 620
    caplog.clear()
    neighbours()
    assert "left out" not in caplog.text


def test_a_corpus_that_is_read_alone_is_seen_at_once_and_neighbours_wait(
    store: Path, passages: pa.Table, task_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = f"neighbours are found again once `nearkin build {store}` has embedded what is new"
    collect(store)  # brings nothing new
    assert said not in caplog.text
    assert len(query(store, task_folder, k=3).neighbours)
    pq.write_table(passages.slice(0, 20), tmp_path / "more.parquet")
    collect(store, [CorpusSpec("more", str(tmp_path / "more.parquet"))])
    assert caplog.text.count(said) == 1
    assert select(store, task_folder, tmp_path / "set", "domain:source=more", near="off").passages > 0
    with pytest.raises(StoreError, match="1 of 2 shards are not embedded"):
        query(store, task_folder, k=3)
    collect(store)  # could not be asked for neighbours before either
    assert caplog.text.count(said) == 1
    build(store)
    assert len(query(store, task_folder, k=3).neighbours)


def test_stale_or_damaged_shards_are_never_used(store: Path) -> None:
    part = next(store.glob("embeddings/*/part-00000.arrow"))
    whole = part.read_bytes()
    part.write_bytes(whole[:-200] + bytes(100) + whole[-100:])
    with pytest.raises(StoreError, match="changed or damaged"):
        list(Embeddings(Store(store), "tiny-encoder"))
    assert len(build(store).plan.embedding.todo) == 1
    assert part.read_bytes() == whole


def test_unknown_models_and_pickled_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no-such-model is not on this machine"):
        load_encoder("no-such-model")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="no safetensors"):
        load_encoder(str(tmp_path))
    with pytest.raises(ModelError, match="not a model folder"):
        load_encoder(str(tmp_path.parent))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_build_resumes_to_the_same_bytes(passages: pa.Table, tmp_path: Path) -> None:
    """kill -9 of the real command line with the real encoder; then byte for byte the undisturbed build."""
    (tmp_path / "docs").mkdir()
    for i in range(5):
        pq.write_table(passages.slice(i * 24, 24), tmp_path / "docs" / f"{i}.parquet")
    docs = [CorpusSpec("docs", str(tmp_path / "docs"))]
    store, whole = tmp_path / "killed", tmp_path / "whole"
    code = (
        "import os, signal, sys\n"
        "import selection.embedding\n"
        "from nearkin import main\n"
        "write = selection.embedding.write_vectors\n"
        "def killed(path, *args):\n"
        "    if 'part-00002' in path.name:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(path, *args)\n"
        "selection.embedding.write_vectors = killed\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "build", str(store), "--corpus", f"docs={tmp_path / 'docs'}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert len(list(store.glob("embeddings/*/part-*.arrow"))) == 2
    assert not (store / "index").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that was killed: sums over two round otherwise
    try:
        again = build(store, docs)
        build(whole, docs)
    finally:
        torch.set_num_threads(threads)
    assert again.plan.embedding.reused > 0
    parts = sorted(p.name for p in whole.glob("embeddings/*/*.arrow"))
    assert parts == [f"part-{i:05d}.arrow" for i in range(5)]
    assert digests(store) == digests(whole)


@pytest.mark.usefixtures("small_shards")
def test_text_edited_during_the_build_is_noticed(
    passages: pa.Table, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(passages, path, row_group_size=64)
    real = embedding._encode_shard

    def editing(*args: object) -> object:
        edited = tmp_path / "edited"
        pq.write_table(passages.slice(1), edited, row_group_size=64)
        edited.replace(path)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "_encode_shard", editing)
    with pytest.raises(StoreError, match="changed since it was read"):
        build(tmp_path / "store", [CorpusSpec("a", str(path))], encoder=str(tiny_encoder))
    monkeypatch.setattr(embedding, "_encode_shard", real)
    build(tmp_path / "store", encoder=str(tiny_encoder))
    assert len(Embeddings(Store(tmp_path / "store"), "tiny-encoder")) == 599


@pytest.mark.usefixtures("small_shards")
def test_plain_build_goes_on_with_the_encoder_it_began_with(
    corpus_file: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*args: object) -> object:
        raise KeyboardInterrupt

    real = embedding._encode_shard
    monkeypatch.setattr(embedding, "_encode_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s", [CorpusSpec("d", str(corpus_file))], encoder=str(tiny_encoder), max_tokens=16)
    monkeypatch.setattr(embedding, "_encode_shard", real)
    assert build(tmp_path / "s").plan.choice.encoder.slug == "tiny-encoder-16"


def test_verify_compares_each_stage_with_the_one_before(store: Path, passages: pa.Table, tmp_path: Path) -> None:
    def problems() -> list[str]:
        return [problem for _, problem in verify(store) if problem]

    assert problems() == []
    opened = Store(store)
    opened.manifest.encoders["tiny-encoder"].settings["index"] = "ivf"
    opened.save()
    assert "there is no index" in problems()[0]
    build(store)
    pq.write_table(passages.slice(0, 9), tmp_path / "more.parquet")
    with opened.lock():
        building._ingest_all(opened, [CorpusSpec("more", str(tmp_path / "more.parquet"))])
    assert "not embedded yet" in problems()[0]
    build(store)
    assert problems() == []


def test_pickled_module_weights_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_encoder, tmp_path / "model"))
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="a pickle"):
        resolve_model(str(model))


@pytest.mark.parametrize("broken", [np.nan, 0.0])
def test_an_encoder_without_vectors_is_refused(
    broken: float, corpus_file: Path, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TransformerEncoder.run

    def run(self: TransformerEncoder, *arguments: Any) -> Any:
        vectors = real(self, *arguments)
        vectors[-1] = broken
        return vectors

    monkeypatch.setattr(TransformerEncoder, "run", run)
    with pytest.raises(ModelError, match="zero or not finite"):
        build(tmp_path / "store", [CorpusSpec("docs", str(corpus_file))], encoder=str(tiny_encoder))
