from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results import read_rows
from benchmarks.training import PARTS, WAYS, Training, plot_training, summary, training

MEASURED = WAYS[::2]  # the plain one and the fastest


@pytest.fixture(scope="module")
def measured(tiny_encoder: Path, task_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("training") / "rows.parquet"
    what = Training(str(tiny_encoder), task_folder, steps=3, batch=8, epochs=1, max_tokens=32)
    return what, out, training(what, ways=MEASURED, seeds=1, out=out)


@pytest.mark.slow
def test_every_way_is_measured_and_the_plain_one_is_one(measured, tmp_path) -> None:
    what, out, rows = measured
    assert [(row["part"], row["way"]) for row in rows] == [(part, way) for part in PARTS for way in MEASURED]
    losses = [row["result"] for row in rows if row["part"] == "masked LM"]
    assert max(losses) - min(losses) < 0.5
    assert all(row["tokens"] > 100 for row in rows if row["part"] == "masked LM")
    found = summary(rows)
    assert [row["ratio"] for row in found if row["way"] == WAYS[0]] == [1.0, 1.0]
    plot_training(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000

    said: list[str] = []
    assert training(what, ways=MEASURED, seeds=1, out=out, say=said.append) == rows == read_rows(out)
    assert said == []
