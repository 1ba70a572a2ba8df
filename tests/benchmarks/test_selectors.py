"""`bench selectors`: a row a task and method, peers at the same budget, nothing measured twice."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.selectors import selectors
from selection.building import build
from selection.errors import InputError
from selection.ingest import CorpusSpec
from tests.conftest import Cli


@pytest.mark.slow
def test_methods_and_peers_side_by_side(
    cli: Cli, passages: pa.Table, tiny_encoder: Path, task_folder: Path, tmp_path: Path
) -> None:
    own = [package == "numpy" for package in passages["package"].to_pylist()]
    specs = []
    for name, rows in (("docs", own), ("others", [not mine for mine in own])):
        pq.write_table(passages.filter(pa.array(rows)), tmp_path / f"{name}.parquet")
        specs.append(CorpusSpec(name, str(tmp_path / f"{name}.parquet")))
    built = tmp_path / "store"
    build(built, specs, encoder=str(tiny_encoder))
    texts = passages["text"].to_pylist()
    base = sum(len(t.encode()) for t, mine in zip(texts, own, strict=True) if mine) / sum(
        len(t.encode()) for t in texts
    )
    assert 0 < base < 1
    out, plot = tmp_path / "selectors.parquet", tmp_path / "selectors.png"
    command = [
        "bench", "selectors", built, f"{task_folder}=docs", "--methods", "knn", "random", "dsir", "--tokens", 3000,
        "--scratch", tmp_path / "scratch", "--out", out, "--plot", plot,
    ]  # fmt: skip
    code, _, err = cli(*command)
    assert code == 0, err
    rows = {row["method"]: row for row in pq.read_table(out).to_pylist()}
    assert list(rows) == ["knn", "random", "dsir", "data-selection", "bm25s"]
    for row in rows.values():
        assert 2500 < row["tokens"] <= 3000
        assert row["purity"] == pytest.approx(own_share(tmp_path / "scratch" / f"libraries-{row['method']}"))
        assert row["base"] == pytest.approx(base)
        assert row["first_s"] >= row["rank_s"] + row["fill_s"] > 0
    assert len({row["purity"] for row in rows.values()}) > 1
    assert rows["knn"]["coverage"] > rows["random"]["coverage"]
    assert rows["dsir"]["kl_reduction"] > rows["random"]["kl_reduction"]
    assert rows["knn"]["encode_s"] > 0 == rows["dsir"]["encode_s"]
    assert plot.stat().st_size > 10_000
    assert not list((tmp_path / "scratch").glob("*.store"))
    before = out.read_bytes()
    assert cli(*command)[0] == 0
    assert out.read_bytes() == before
    few = ["--methods", "random", "--peers", "--tokens", 3000, "--scratch", tmp_path / "scratch", "--out", out]
    code, printed, _ = cli("bench", "selectors", built, f"{task_folder}=docs", *few)
    assert code == 0
    assert "random" in printed
    assert "dsir" not in printed
    assert pq.read_table(out).num_rows == 5


def own_share(folder: Path) -> float:
    """Share of a set's bytes of text that are from corpus docs."""
    rows = pq.read_table(folder / "augmentation.parquet").to_pylist()
    bytes_of = {
        source: sum(len(r["text"].encode()) for r in rows if r["source"] == source) for source in ("docs", "others")
    }
    return bytes_of["docs"] / sum(bytes_of.values())


def test_a_domain_that_is_no_corpus_of_the_store_is_refused(built: Path, task_folder: Path) -> None:
    with pytest.raises(InputError, match="no corpus 'cs', it has docs"):
        selectors(built, [f"{task_folder}=cs"])
