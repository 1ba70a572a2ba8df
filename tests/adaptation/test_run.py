"""Runs of recipes on tiny models: every phase, what is kept between runs, what stops and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from adaptation.recipe import Recipe, read_recipe
from adaptation.run import RunResult, run
from adaptation.steps import AdaptStep, FinetuneStep, SelectStep, Step
from selection.building import build
from selection.errors import NearkinError
from selection.ingest import CorpusSpec
from tests.adaptation.conftest import write_jsonl
from tests.conftest import Cli, write_task

STEPS = {"max_steps": 2, "batch_size": 8, "micro_batch": 8, "max_tokens": 32}
TUNING = {"epochs": 1, "max_tokens": 32, "learning_rate": 1e-3}
EVERY = [
    "none", "TAPT", "DAPT", "DAPT+TAPT", "kNN-TAPT", "3NN-TAPT", "RAND-TAPT", "Curated-TAPT", "DAPT+Curated",
    "Transfer-TAPT", "not-DAPT", "dsir-TAPT", "mix:knn=0.8,random=0.2-TAPT",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, passages: pa.Table, task_folder: Path, tiny_encoder: Path,
    tiny_model: Callable[[str], str], sentences: list[str],
) -> dict[str, Any]:  # fmt: skip
    """A store of two corpora, a second task, a curated file, and the keys of a recipe that uses them."""
    folder = tmp_path_factory.mktemp("world")
    texts = passages["text"].to_pylist()
    docs = write_jsonl(folder / "docs.jsonl", texts[:150])
    other = write_jsonl(folder / "other.jsonl", sentences[:80])
    store = folder / "store"
    build(store, [CorpusSpec("docs", str(docs)), CorpusSpec("other", str(other))], encoder=str(tiny_encoder))
    curated = write_jsonl(folder / "curated.jsonl", texts[150:200])
    labels = ["a", "b"] * 20
    splits = {s: pa.table({"text": sentences[n : n + 40], "label": labels}) for s, n in (("train", 100), ("dev", 140))}
    splits["test"] = pa.table({"text": sentences[180:220], "label": labels})
    return {
        "model": tiny_model("roberta"), "task": str(task_folder), "store": str(store), "k": 2, "seeds": 1,
        "domain": "docs", "unrelated": "other", "curated": str(curated),
        "transfer": str(write_task(folder / "sentences", splits)),
    }  # fmt: skip


Make = Callable[..., Recipe]


@pytest.fixture
def make(world: dict[str, Any], tmp_path: Path) -> Make:
    """A recipe of the given phases with settings cut to a step or two; other keys as options."""

    def made(*phases: str, adapt: dict[str, Any] | None = None, **keys: Any) -> Recipe:
        values = {**world, "phases": list(phases), "out": str(tmp_path / "out"), **keys}
        tables = {"adapt": {**STEPS, **(adapt or {})}, "dapt": STEPS, "finetune": TUNING}
        recipe = read_recipe(None, values)
        return replace(recipe, tables={**tables, "finetune": {**TUNING, **recipe.tables.get("finetune", {})}})

    return made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which steps were run, as they are."""
    titles: list[str] = []
    for kind in (SelectStep, AdaptStep, FinetuneStep):
        inner = kind.run

        def spy(self: Step, *args: Any, inner: Any = inner, **named: Any) -> None:
            titles.append(f"{self.kind} {self.title}")
            inner(self, *args, **named)

        monkeypatch.setattr(kind, "run", spy)
    return titles


def figures(result: RunResult) -> list[Any]:
    """What does not depend on the clock."""
    return [(r.phase, r.loss_before, r.loss_after, r.dev, r.test, r.tokens_seen, r.passages) for r in result.rows]


@pytest.mark.slow
def test_the_paper_preset_runs_every_phase(make: Make, tmp_path: Path) -> None:
    said: list[str] = []
    result = run(make(*EVERY), say=said.append)
    rows = {row.phase: row for row in result.rows}
    assert list(rows) == [*EVERY[:8], "DAPT+Curated-TAPT", *EVERY[9:]]
    print("\n".join(said))
