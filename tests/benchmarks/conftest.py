"""A grid of one small task on a tiny model, run once for all tests that look at one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adaptation.recipe import Recipe, read_recipe
from benchmarks.frontier import frontier, phase_names
from benchmarks.results import Row

STEPS = {"max_steps": 2, "batch_size": 8, "micro_batch": 8, "max_tokens": 32}


@pytest.fixture(scope="session")
def recipe(built: Path, task_folder: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("grid")
    options = {
        "tasks": [str(task_folder)], "store": str(built), "model": str(tiny_encoder), "preset": "quick",
        "tokens": 400, "phases": phase_names(["knn"]), "out": str(folder),
    }  # fmt: skip
    tables = {"adapt": STEPS, "dapt": STEPS, "finetune": {"epochs": 1, "max_tokens": 32}}
    return replace(read_recipe(None, options), tables=tables)


@pytest.fixture(scope="session")
def grid(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    out = tmp_path_factory.mktemp("results") / "frontier.parquet"
    return out, frontier(recipe, seeds=2, out=out, command="nearkin bench frontier")
