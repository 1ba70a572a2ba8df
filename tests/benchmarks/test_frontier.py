"""A grid of one small task on a tiny model: every cell once, none twice, and what it says about them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import f1_score

from adaptation.phases import parse_phase
from adaptation.planning import plan_recipe
from adaptation.recipe import Recipe
from adaptation.tasks import load_labelled
from benchmarks import frontier as grids
from benchmarks.frontier import frontier, phase_names, unguarded
from benchmarks.frontier_plot import plot_frontier
from benchmarks.grid import pareto, points, scores, summary
from benchmarks.results import Row, read_rows, write_rows
from selection.store import Store
from tests.conftest import Cli


def test_phases_begin_with_the_baselines() -> None:
    assert phase_names(["knn", "TAPT", "tsds:alpha=0.8", "5NN-TAPT", "dapt"]) == [
        "none", "TAPT", "RAND-TAPT", "kNN-TAPT", "tsds:alpha=0.8-TAPT", "5NN-TAPT", "DAPT",
    ]  # fmt: skip


def test_phases_with_a_set_have_an_unguarded_twin() -> None:
    assert unguarded(["none", "TAPT", "kNN-TAPT", "DAPT+TAPT"]) == ["unguarded-kNN-TAPT", "unguarded-DAPT+TAPT"]


@pytest.mark.slow
def test_every_cell_is_there_once_seeds_outermost(recipe: Recipe, grid: tuple[Path, list[Row]]) -> None:
    out, rows = grid
    phases = ["none", "TAPT", "RAND-TAPT", "kNN-TAPT"]
    assert [(row["phase"], row["seed"]) for row in rows] == [(p, s) for s in (0, 1) for p in phases]
    assert len({row["key"] for row in rows}) == 8
    by_phase = {row["phase"]: row for row in rows}
    assert by_phase["none"]["tokens"] == by_phase["none"]["first_s"] == 0
    assert by_phase["none"]["loss"] is None  # the base has no head
    assert by_phase["kNN-TAPT"]["embed_s"] > 0 == by_phase["RAND-TAPT"]["embed_s"]
    assert 0 < by_phase["kNN-TAPT"]["set_tokens"] <= 400
    assert by_phase["kNN-TAPT"]["steps"] == by_phase["TAPT"]["steps"] == 2
    assert all(row["command"] == "nearkin bench frontier" and row["dev"] >= 0 for row in rows)
    assert read_rows(out) == rows
    task = load_labelled(recipe.tasks[0])
    gold = pc.take(pa.array(task.labels), task.splits["test"]["label"]).to_pylist()
    for row in rows:
        assert row["test"] == pytest.approx(100 * f1_score(gold, row["predicted"], average="macro", zero_division=0))


@pytest.mark.slow
def test_cells_in_the_file_are_not_run_again_though_all_else_is_gone(
    recipe: Recipe, grid: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, rows = grid
    out = Path(shutil.copy(source, tmp_path / "rows.parquet"))
    ran: list[tuple[str, int]] = []
    cell = grids._Grid._cell
    monkeypatch.setattr(
        grids._Grid, "_cell", lambda self, arm, seed: ran.append((arm.phase.name, seed)) or cell(self, arm, seed)
    )
    assert frontier(recipe, seeds=2, out=out, cache=tmp_path / "none") == rows
    assert ran == []
    few = replace(recipe, phases=(parse_phase("none"),))
    more = frontier(few, seeds=3, out=out, cache=tmp_path / "none")
    assert ran == [("none", 2)]
    assert more[:2] == [row for row in rows if row["phase"] == "none"]
    assert len(read_rows(out)) == 9

    # Another budget is another grid, which shares what selects nothing.
    ran.clear()
    other = replace(recipe, tokens=300, phases=tuple(map(parse_phase, ("none", "TAPT"))))
    shared = frontier(other, seeds=2, out=out, cache=tmp_path / "none")
    assert ran == []
    assert [row["test"] for row in shared] == [row["test"] for row in rows if row["phase"] in ("none", "TAPT")]
    assert {row["budget"] for row in shared} == {300}
    assert len(read_rows(out)) == 9 + 4

    # A row of data that has changed since is made anew, in its place.
    stale = [row | {"key": "of another task"} if row["grid"] == rows[0]["grid"] else row for row in read_rows(out)]
    write_rows([row for row in stale if row["grid"] == rows[0]["grid"]], out)
    cache = tmp_path / "steps"
    assert frontier(few, seeds=1, out=out, cache=cache)[0]["test"] == rows[0]["test"]
    assert ran == [("none", 0)]
    assert len(read_rows(out)) == 9

    # Nor does a forecast stumble over steps that a run has done in the same folder.
    ran.clear()
    (arm,) = plan_recipe(few).arms
    arm.finetune.make(cache)
    write_rows([row for row in read_rows(out) if row["phase"] != "none"], out)
    frontier(few, seeds=1, out=out, cache=cache)
    assert ran == [("none", 0)]


@pytest.mark.slow
def test_a_renamed_task_is_the_same_task(
    recipe: Recipe, grid: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, rows = grid
    out = Path(shutil.copy(source, tmp_path / "rows.parquet"))
    task = Path(shutil.copytree(recipe.tasks[0], tmp_path / "renamed"))
    monkeypatch.setattr(grids._Grid, "_cell", lambda self, arm, seed: pytest.fail("a cell was run again"))
    found = frontier(replace(recipe, tasks=(task,)), seeds=2, out=out, cache=tmp_path / "none")
    assert [row["test"] for row in found] == [row["test"] for row in rows]
    assert {row["task"] for row in read_rows(out)} == {"renamed"}


@pytest.mark.parametrize(("asked", "computed"), [("off", False), ("auto", True)])
def test_a_phase_with_a_format_of_its_own_keeps_it(
    recipe: Recipe, grid: tuple[Path, list[Row]], tmp_path: Path, monkeypatch, asked: str, computed: bool
) -> None:
    class Seen(Exception):
        pass

    def see(folder, task, settings, metric, bf16, say):
        raise Seen(bf16)

    monkeypatch.setattr("adaptation.classifier.Finetuning", see)
    of_none = replace(recipe, by_phase={"none": {"finetune": {"bf16": asked}}})
    arms = plan_recipe(of_none).arms
    made = grids._Grid(of_none, arms, 2, tmp_path / "rows.parquet", tmp_path, "", lambda line: None)
    made.rows = [row | {"grid": made.grid, "bf16": True} for row in grid[1]]
    with pytest.raises(Seen, match=str(computed)):
        made._finetune(arms[0], 0)
    for row in made.rows:  # what they were told to compute in settles nothing
        row["settings"] = row["settings"].replace('"bf16": "auto"', '"bf16": "on"')
    assert made._settled() is None


def test_another_store_is_another_grid(recipe: Recipe, grid: tuple[Path, list[Row]], tmp_path: Path) -> None:
    store = Path(shutil.copytree(recipe.store, tmp_path / "store"))  # type: ignore[type-var, arg-type]
    arms = plan_recipe(recipe).arms
    assert grids._shape(replace(recipe, store=store), arms[0]) == grid[1][0]["grid"]
    opened = Store(store)
    with opened.lock():
        opened.manifest.corpora[0].shards.pop()
        opened.save()
    assert grids._shape(replace(recipe, store=store), arms[0]) != grid[1][0]["grid"]


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert grids._commit() == ""


def test_a_limit_of_k_beside_tokens_is_another_grid(recipe: Recipe, grid: tuple[Path, list[Row]]) -> None:
    arms = plan_recipe(recipe).arms
    for k in (7, 50):
        assert grids._shape(replace(recipe, k=k), arms[0]) != grid[1][0]["grid"]


@pytest.mark.parametrize(
    ("line", "options", "seeds"), [("seeds = 4", [], 4), ("", [], 3), ("seeds = 4", ["--seeds", 2], 2)]
)
def test_seeds_are_those_of_the_recipe(tmp_path: Path, cli: Cli, monkeypatch, line, options, seeds) -> None:
    asked = []
    monkeypatch.setattr(grids, "frontier", lambda recipe, *, seeds, **others: asked.append(seeds) or [])
    monkeypatch.setattr("benchmarks.results.format_rows", lambda rows: [])
    (tmp_path / "recipe.toml").write_text(line)
    given = (
        "--tasks",
        "t",
        "--methods",
        "knn",
        "--recipe",
        tmp_path / "recipe.toml",
        "--out",
        tmp_path / "o",
        *options,
    )
    code, _, said = cli("bench", "frontier", "store", *given)
    assert (code, said, asked) == (0, "", [seeds])


@pytest.mark.slow
def test_sums_gains_and_the_front(grid: tuple[Path, list[Row]], tmp_path: Path) -> None:
    _, rows = grid
    found = {row["phase"]: row for row in summary(rows)}
    tests = scores(rows, "kNN-TAPT")
    (task,) = tests
    mean = sum(tests[task].values()) / 2
    assert found["kNN-TAPT"]["f1"] == pytest.approx(mean)
    assert found["kNN-TAPT"]["over_none"] == pytest.approx(mean - found["none"]["f1"])
    assert found["none"]["over_none"] is found["RAND-TAPT"]["over_random"] is None
    front = pareto(points(rows), "selection")
    assert [p.f1 for p in front] == sorted({p.f1 for p in front})
    assert max(p.f1 for p in points(rows)) == front[-1].f1
    plot_frontier(rows, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5000
