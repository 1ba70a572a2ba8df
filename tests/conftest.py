"""Shared fixtures: a tiny sentence encoder, real passages (docstrings of packages), a small store, the CLI."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not os.environ.get("NEARKIN_TEST_GPU"):  # else what is tested would depend on the machine; read when CUDA starts
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several, builds would embed in other processes
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads that wait for each other cost most of both
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from benchmarks.harvest import Harvest, harvest
from selection.building import build
from selection.ingest import CorpusSpec

# A busy machine is no bug: examples may take as long as they take.
settings.register_profile("nearkin", deadline=None)
settings.load_profile("nearkin")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session", autouse=True)
def no_mps() -> Iterator[None]:
    """Keeps the tests on the CPU of a Mac, too, which no environment variable does."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "darwin" and not os.environ.get("NEARKIN_TEST_GPU"):
            patch.setattr("torch.backends.mps.is_available", lambda: False)
        yield


@pytest.fixture(scope="session")
def harvested() -> Harvest:
    """Some hundreds of real passages and a small labelled task."""
    packages = ("numpy", "networkx", "scipy", "sklearn")
    return harvest(packages, passages=600, train=40, dev=20, test=20)


@pytest.fixture(scope="session")
def passages(harvested: Harvest) -> pa.Table:
    return harvested.corpus


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model with random weights: two layers, 32 dimensions, the real tokenizer."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoTokenizer, BertConfig, BertModel

    from selection.models import resolve_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "tiny-encoder"
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("all-MiniLM-L6-v2"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    inner = folder.with_name("bert")
    BertModel(config).save_pretrained(inner)
    tokenizer.save_pretrained(inner)
    word = models.Transformer(str(inner), max_seq_length=64)
    SentenceTransformer(modules=[word, models.Pooling(32), models.Normalize()], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def corpus_file(passages: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "docs.parquet"
    pq.write_table(passages.select(["id", "text", "package"]), path, row_group_size=100)
    return path


@pytest.fixture(scope="session")
def task_folder(harvested: Harvest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "libraries", harvested.task)


def write_task(folder: Path, splits: dict[str, pa.Table]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        lines = [json.dumps(row) for row in table.to_pylist()]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def built(corpus_file: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the passages, for reading only."""
    path = tmp_path_factory.mktemp("built") / "store"
    build(path, [CorpusSpec("docs", str(corpus_file))], encoder=str(tiny_encoder))
    return path


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A copy of `built` that a test may change, without what other tests had it keep."""
    return Path(shutil.copytree(built, tmp_path / "store", ignore=shutil.ignore_patterns("tasks", "ngrams")))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process: (exit code, stdout, stderr)."""
    from nearkin import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run
