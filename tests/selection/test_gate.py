"""What the gate keeps out beside equal texts: pieces of dev and test, near copies, and what is near by cosine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selection import augmentation
from selection.augmentation import Budget, select
from selection.building import build
from selection.errors import NearkinError
from selection.gate import REMOVED, Gate, Nearness
from selection.guard import Guard, normalise
from selection.ingest import CorpusSpec
from selection.selectors.pool import Pool
from selection.selectors.random import RandomSelector
from selection.store import Store
from selection.task import read_task
from tests.conftest import Cli, write_task

WORDS = [f"word{i}" for i in range(400)]


def stretch(start: int, length: int = 40) -> str:
    return " ".join(WORDS[start : start + length])


def rows_of(texts: list[str]) -> pa.Table:
    ids = pa.array([str(i) for i in range(len(texts))])
    source = pa.repeat(pa.scalar("c"), len(texts))
    return pa.table({"id": ids, "text": pa.array(texts, pa.large_string()), "source": source})


def guard_of(**texts: str) -> Guard:
    return Guard({split: normalise(pa.array([text], pa.large_string())) for split, text in texts.items()})


TEXTS = [
    stretch(0),  # 0 stays
    stretch(10),  # 1 more than half of its runs are in 0: a near copy
    stretch(22),  # 2 shares too little with 0, but much with 1, which occurred before
    stretch(100),  # 3 stays
    stretch(100).upper(),  # 4 a copy of 3
    stretch(205, 50),  # 5 holds a piece of the test text
    stretch(260, 30),  # 6 holds a piece of a training text only: stays
    stretch(300, 20),  # 7 is the dev text
]
GUARD = {"test": stretch(240, 20), "dev": stretch(300, 20), "train": stretch(260, 20)}


def test_each_candidate_is_out_for_the_first_reason() -> None:
    for blocks in ([8], [3, 5], [1] * 8):
        gate, kept, start = Gate(guard_of(**GUARD), Nearness(ngrams=True), keep=True), [], 0
        for size in blocks:
            ids = np.arange(start, start + size)
            kept += ids[gate.admit(ids, rows_of(TEXTS[start : start + size]))].tolist()
            gate.settle(size)
            start += size
        assert kept == [0, 3, 6]
        removed = gate.removed
        assert (removed.duplicates, removed.near_duplicates) == (1, 2)
        assert removed.leaks == {"test": 0, "dev": 1, "train": 0}
        assert removed.near_leaks == {"test": 1, "dev": 0}
        told = {row["doc_id"]: row for row in gate.report().to_pylist()}
        assert {doc: row["reason"] for doc, row in told.items()} == {
            1: "near duplicate", 2: "near duplicate", 4: "duplicate", 5: "near test", 7: "dev",
        }  # fmt: skip
        assert told[1]["other_doc_id"] == 0
        assert told[5]["other_text"] == stretch(240, 20)
        assert told[1]["text"] == TEXTS[1]


def test_without_nearness_only_equal_texts_are_kept_out() -> None:
    gate = Gate(guard_of(**GUARD))
    assert gate.admit(np.arange(8), rows_of(TEXTS)).tolist() == [0, 1, 2, 3, 5, 6]
    assert gate.removed.near_leaks == {}
    assert gate.report().schema.equals(REMOVED)


def test_cosine_keeps_out_what_is_near_in_meaning() -> None:
    vectors = np.eye(8, 16, dtype=np.float32)
    vectors[2] = vectors[0] * 0.99 + vectors[3] * np.sqrt(1 - 0.99**2)
    nearness = Nearness(vectors_of=lambda ids: vectors[ids], forbidden={"test": vectors[5:6]})
    texts = [stretch(40 * i, 30) for i in range(8)]
    gate = Gate(guard_of(test="another text"), nearness, keep=True)
    assert gate.admit(np.arange(8), rows_of(texts)).tolist() == [0, 1, 3, 4, 6, 7]
    gate.settle(8)
    assert gate.removed.near_leaks == {"test": 1}
    assert gate.removed.near_duplicates == 1
    copy = gate.report().to_pylist()[0]
    assert (copy["doc_id"], copy["other_doc_id"], round(copy["likeness"], 2)) == (2, 0, 0.99)


@pytest.fixture
def leaky(tiny_encoder: Path, tmp_path: Path) -> tuple[Path, Path]:
    splits = {"train": stretch(260, 20), "dev": stretch(300, 20), "test": stretch(240, 20)}
    task = write_task(tmp_path / "task", {split: pa.table({"text": [text]}) for split, text in splits.items()})
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "corpus.parquet")
    build(tmp_path / "store", [CorpusSpec("c", str(tmp_path / "corpus.parquet"))], encoder=str(tiny_encoder))
    return tmp_path / "store", task


def test_what_was_kept_out_is_counted_and_listed(cli: Cli, leaky: tuple[Path, Path], tmp_path: Path) -> None:
    store, task = leaky
    for kind in ("parquet", "csv", "jsonl"):
        out, report = tmp_path / kind, tmp_path / f"removed.{kind}"
        code, printed, _ = cli("select", store, task, "--method", "domain", "--report", report, "--out", out)
        assert code == 0
        assert "removed 1 duplicates, 2 near-duplicates; texts of the task or excluded: 0 tr" in printed
        assert "passages that hold a piece of one, or are too near: 0 dev, 1 test" in printed
        assert report.exists()
    rows = [json.loads(line) for line in (tmp_path / "removed.jsonl").read_text().splitlines()]
    assert sorted(row["doc_id"] for row in rows) == [1, 2, 4, 5, 7]
    assert pq.read_table(tmp_path / "removed.parquet").num_rows == 5
    code, _, err = cli("select", store, task, "--docs", 1, "--report", tmp_path / "r.txt", "--out", tmp_path / "no")
    assert code == 1
    assert "name it .parquet, .csv or .jsonl" in err
    manifest = json.loads((tmp_path / "parquet" / "manifest.json").read_text())
    assert manifest["removed"]["near_leaks"] == {"dev": 0, "test": 1}


def test_near_all_compares_embeddings(tmp_path: Path) -> None:
    texts = [
        "The kinase inhibitor reduced tumour growth in mice.",
        "The inhibitor of kinase reduced the growth of tumours in mice.",
        "We train a parser on newspaper text.",
        "A film of great beauty, badly acted.",
        "This movie is beautiful, but the acting is bad.",
    ]
    pq.write_table(pa.table({"text": texts}), tmp_path / "corpus.parquet")
    build(tmp_path / "store", [CorpusSpec("c", str(tmp_path / "corpus.parquet"))])
    splits = {"train": "A paper on parsing.", "test": "A film of great beauty, and badly acted."}
    task = write_task(tmp_path / "task", {split: pa.table({"text": [text]}) for split, text in splits.items()})
    result = select(tmp_path / "store", task, tmp_path / "all", "domain", near="all")
    assert result.table["doc_id"].to_pylist() == [0, 2, 4]
    assert (result.removed.near_duplicates, result.removed.near_leaks) == (1, {"test": 1})
    with pytest.raises(NearkinError, match="compares embeddings"):
        select(tmp_path / "store", task, tmp_path / "x", f"curated:file={tmp_path / 'corpus.parquet'}", near="all")
    with pytest.raises(NearkinError, match="unknown nearness"):
        select(tmp_path / "store", task, tmp_path / "x", "random", Budget(docs=1), near="some")


def test_near_all_encodes_each_text_once_and_no_blank_one(
    leaky: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, task = leaky
    texts = ["An excluded text.", "", None, " ", "An excluded text.", "Another one."]
    pq.write_table(pa.table({"text": texts}), tmp_path / "outside.parquet")
    encoded: list[list[str | None]] = []
    plain = augmentation.encode_texts
    monkeypatch.setattr(
        augmentation, "encode_texts", lambda *given: encoded.append(given[2].to_pylist()) or plain(*given)
    )
    excluded, pool = [tmp_path / "outside.parquet"], Pool(Store(store), read_task(task))

    def nearness() -> Nearness:
        return augmentation._nearness("all", RandomSelector(), pool, Guard.of(pool.task, excluded), excluded)

    assert {reason: len(vectors) for reason, vectors in nearness().forbidden.items()} == {
        "test": 1, "dev": 1, "excluded": 2,
    }  # fmt: skip
    assert ["An excluded text.", "Another one."] in encoded
    pq.write_table(pa.table({"text": pa.array([None, ""])}), tmp_path / "outside.parquet")
    assert set(nearness().forbidden) == {"test", "dev"}
