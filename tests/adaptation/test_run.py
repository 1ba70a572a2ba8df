"""Runs of recipes on tiny models: every phase, what is kept between runs, what stops and goes on."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import selection.files
from adaptation import mlm
from adaptation.planning import plan_recipe
from adaptation.recipe import Recipe, read_recipe
from adaptation.run import RunResult, run
from adaptation.steps import AdaptStep, FinetuneStep, SelectStep, Step
from adaptation.texts import read_training_text
from selection.building import build
from selection.errors import NearkinError
from selection.files import sha256_of_file
from selection.ingest import CorpusSpec
from selection.store import Store
from tests.adaptation.conftest import write_jsonl
from tests.conftest import Cli, write_task

STEPS = {"max_steps": 2, "batch_size": 8, "micro_batch": 8, "max_tokens": 32, "bf16": "off"}
TUNING = {"epochs": 1, "max_tokens": 32, "learning_rate": 1e-3, "bf16": "off"}
EVERY = [
    "none", "TAPT", "DAPT", "DAPT+TAPT", "kNN-TAPT", "3NN-TAPT", "RAND-TAPT", "Curated-TAPT", "DAPT+Curated",
    "Transfer-TAPT", "not-DAPT", "TLM", "dsir-TAPT", "mix:knn=0.8,random=0.2-TAPT",
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
def test_the_paper_preset_runs_every_phase(make: Make, tmp_path: Path, ran: list[str]) -> None:
    said: list[str] = []
    result = run(make(*EVERY), say=said.append)
    rows = {row.phase: row for row in result.rows}
    assert list(rows) == [*EVERY[:8], "DAPT+Curated-TAPT", *EVERY[9:]]
    assert len(set(ran)) == len(ran)
    assert ran.count("adapt DAPT on docs") == 1  # three phases stand on it
    assert [rows[name].masked_lm_steps for name in ("none", "TAPT", "DAPT+TAPT")] == [0, 2, 4]
    assert rows["none"].loss_after == rows["none"].loss_before == rows["TAPT"].loss_before
    assert rows["none"].loss_after != rows["TAPT"].loss_after
    assert rows["DAPT"].passages > rows["kNN-TAPT"].passages > 0  # type: ignore[operator]
    assert rows["RAND-TAPT"].passages <= 2 * 40  # type: ignore[operator]
    assert rows["Transfer-TAPT"].parts[0]["counts"]["train"] == rows["Transfer-TAPT"].passages
    assert rows["TAPT"].parts[0]["settings"]["learning_rate"] == 1e-4
    assert rows["DAPT"].parts[0]["settings"]["learning_rate"] == 5e-4
    assert rows["none"].metric == "macro-F1"
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["phase"] for row in written["rows"]] == list(rows)
    assert written["recipe"]["settings"]["TAPT"]["parts"][0]["epochs"] == 100
    started = r"\[1/\d+\] select DAPT for libraries: docs: about \d.* (s|min)"
    assert any(re.fullmatch(started, line) for line in said)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_the_same(
    make: Make, tmp_path: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = ("none", "TAPT", "RAND-TAPT")
    whole = run(make(*phases, out=str(tmp_path / "whole")))
    expected = list(ran)
    ran.clear()
    recipe, adapt = make(*phases), AdaptStep.run

    def fails(self: AdaptStep, *args: Any, **named: Any) -> None:
        if self.sets:
            raise NearkinError("the power went")
        adapt(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(AdaptStep, "run", fails)
        with pytest.raises(NearkinError, match="the power went"):
            run(recipe)
    partial = json.loads((recipe.out / "results.json").read_text())
    assert [row["phase"] for row in partial["rows"]] == ["none", "TAPT"]
    said: list[str] = []
    resumed = run(recipe, say=said.append)
    assert ran == expected  # between the two of them, each step once
    assert figures(resumed) == figures(whole)
    assert resumed.rows[0].cached == ["loss none on libraries", "finetune none on libraries"]
    assert "[3/9] finetune none on libraries: there already" in said
    ran.clear()
    assert figures(run(recipe)) == figures(whole)
    assert ran == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_run_goes_on_within_a_training(
    world: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        model = "{world["model"]}"
        task = "{world["task"]}"
        out = "killed"
        phases = ["TAPT"]
        seeds = 1
        adapt = {{ max_steps = 24, batch_size = 8, max_tokens = 32, checkpoint_minutes = 0, bf16 = "off" }}
        finetune = {{ epochs = 1, max_tokens = 32, bf16 = "off" }}
        """
    )
    steps = tmp_path / "killed" / "steps"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from adaptation.training import SteadyTrainer\n"
        "from nearkin import main\n"
        "step = SteadyTrainer.training_step\n"
        "def killed(trainer, *args, **kwargs):\n"
        "    if trainer.state.global_step == 3 and any(Path(trainer.args.output_dir).glob('checkpoint-*')):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(trainer, *args, **kwargs)\n"
        "SteadyTrainer.training_step = killed\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code, "run", str(recipe)], stdout=subprocess.DEVNULL, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert not any(steps.glob("adapt-*/adaptation.json"))
    with caplog.at_level(logging.INFO):
        resumed = run(read_recipe(recipe))
    assert "continuing from step 3" in caplog.text
    whole = run(read_recipe(recipe, {"out": str(tmp_path / "whole")}))
    assert figures(resumed) == figures(whole)


@pytest.mark.slow
def test_recipes_share_a_cache_and_a_change_redoes_what_stands_on_it(
    make: Make, tmp_path: Path, ran: list[str]
) -> None:
    cache = tmp_path / "cache"
    first = run(make("none", "TAPT"), cache=cache)
    ran.clear()
    again = run(make("TAPT", "TAPT+RAND-TAPT", out=str(tmp_path / "other")), cache=cache)
    assert ran == [
        "select RAND-TAPT for libraries", "adapt TAPT+RAND-TAPT on libraries", "finetune TAPT+RAND-TAPT on libraries"
    ]  # fmt: skip
    assert figures(again)[0] == figures(first)[1]
    ran.clear()
    run(make("TAPT", "TAPT+RAND-TAPT", k=3), cache=cache)
    assert "adapt TAPT on libraries" not in ran
    assert len(ran) == 3
    ran.clear()
    run(make("none", "TAPT", adapt={"learning_rate": 1e-3}), cache=cache)
    assert ran == ["adapt TAPT on libraries", "finetune TAPT on libraries"]
    ran.clear()
    run(make("TAPT", adapt={"checkpoint_minutes": 1.0}), cache=cache)
    assert ran == []


@pytest.mark.slow
def test_more_seeds_are_added_and_fewer_are_read(make: Make, ran: list[str]) -> None:
    one = run(make("none"))
    two = run(make("none", seeds=2))
    assert ran == ["finetune none on libraries"] * 2
    assert two.rows[0].test["0"] == one.rows[0].test["0"]
    assert list(two.rows[0].test) == ["0", "1"]
    assert figures(run(make("none", seeds=1))) == figures(one)
    assert len(ran) == 2


@pytest.mark.slow
def test_text_that_changed_is_trained_on_anew(make: Make, tmp_path: Path, task_folder: Path, ran: list[str]) -> None:
    task = tmp_path / "task"
    task.mkdir()
    for split in ("train", "dev", "test"):
        (task / f"{split}.jsonl").write_bytes((task_folder / f"{split}.jsonl").read_bytes())
    run(make("TAPT", task=str(task)))
    ran.clear()
    lines = (task / "test.jsonl").read_text().splitlines(keepends=True)
    (task / "test.jsonl").write_text("".join(lines[1:]))
    run(make("TAPT", task=str(task)))
    assert ran == ["adapt TAPT on task", "finetune TAPT on task"]  # test texts are withheld from training


def test_a_dry_run_touches_nothing(make: Make, world: dict[str, Any], tmp_path: Path) -> None:
    def state() -> list[tuple[str, int]]:
        folders = (tmp_path, Path(world["store"]), Path(world["task"]))
        return sorted((str(f), f.stat().st_mtime_ns) for folder in folders for f in folder.rglob("*"))

    before, said = state(), list[str]()
    result = run(make("none", "DAPT+TAPT", "kNN-TAPT", "Curated-TAPT"), dry_run=True, say=said.append)
    assert (result.rows, result.file) == ([], None)
    assert state() == before
    (trained,) = [line.split() for line in said if "adapt" in line and "DAPT+TAPT" in line]
    assert trained[4:7] == ["to", "do", "2"]
    assert said[-1].startswith("15 of 15 steps to do, about ")


def test_predicted_steps_and_tokens_are_those_of_the_run(make: Make) -> None:
    said: list[str] = []
    recipe = make("TAPT")
    by_epochs = {"epochs": 2, "batch_size": 8, "max_tokens": 32}
    (row,) = run(replace(recipe, tables={**recipe.tables, "adapt": by_epochs}), say=said.append).rows
    (line,) = [line for line in said if line.startswith("adapt")]
    updates, tokens = line.partition("to do")[2].replace(",", "").split()[:2]
    assert int(updates) == row.masked_lm_steps > 2
    assert int(tokens) == pytest.approx(row.tokens_seen, rel=0.02)


@pytest.mark.slow
def test_domains_are_shared_by_tasks_and_guarded_against_all(make: Make, world: dict[str, Any], ran: list[str]) -> None:
    result = run(make("DAPT", task=[world["task"], world["transfer"]]))
    assert [(row.task, row.phase) for row in result.rows] == [("libraries", "DAPT"), ("sentences", "DAPT")]
    assert [title for title in ran if not title.startswith("finetune")] == [
        "select DAPT for libraries, sentences: docs", "adapt DAPT on docs"
    ]  # fmt: skip


@pytest.mark.slow
def test_no_dev_or_test_text_is_trained_on_but_where_the_guard_is_off(
    make: Make, sentences: list[str], tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted in every source: dev and test texts of two tasks, as they are, shouted, and quoted whole."""
    drawn = iter([s for s in sentences if len(s.split()) > 14])

    def some(count: int) -> list[str]:
        return [next(drawn) for _ in range(count)]

    def task(name: str, train: list[str]) -> Path:
        texts = {"train": train, "dev": some(2), "test": some(2)}
        return write_task(
            tmp_path / name,
            {split: pa.table({"text": t, "label": ["a", "b"] * (len(t) // 2)}) for split, t in texts.items()},
        )

    def evaluated(folder: Path) -> list[str]:
        return [
            json.loads(line)["text"]
            for s in ("dev", "test")
            for line in (folder / f"{s}.jsonl").read_text().splitlines()
        ]

    tasks = [task("alpha", some(8)), task("beta", some(8))]
    secret = [text for folder in tasks for text in evaluated(folder)]
    planted = [
        *secret,
        *[text.upper() for text in secret],
        *[f"They said that {text}, as is known." for text in secret],
    ]
    docs, curated = (write_jsonl(tmp_path / f"{name}.jsonl", [*some(8), *planted]) for name in ("docs", "curated"))
    store, everything = tmp_path / "store", 8 + len(planted)
    build(store, [CorpusSpec("docs", str(docs))], encoder=str(tiny_encoder))
    trained: list[str] = []

    def watched(*args: Any, **named: Any) -> Any:
        found = read_training_text(*args, **named)
        trained.append("\n".join(found.train.to_pylist()).lower())
        return found

    monkeypatch.setattr(mlm, "read_training_text", watched)
    recipe = make(
        "DAPT", "Curated-TAPT", "Transfer-TAPT", "kNN-TAPT", "unguarded-kNN-TAPT", task=[str(t) for t in tasks],
        store=str(store), domain="docs", curated=str(curated), transfer=str(task("gamma", [*some(8), *planted])),
        k=everything,
    )  # fmt: skip
    cache = recipe.out / "steps"
    steps = [step for step in plan_recipe(recipe).steps if isinstance(step, SelectStep | AdaptStep)]
    for step in steps:
        step.make(cache)
    adapts = [step for step in steps if isinstance(step, AdaptStep)]
    others = [phase.name for phase in recipe.phases[1:]]
    assert [step.title.split()[0] for step in adapts] == ["DAPT", *others, *others]
    for step, text in zip(adapts, trained, strict=True):
        (chosen,) = step.sets
        kept = pq.read_table(chosen.folder(cache) / "augmentation.parquet")["text"].to_pylist()
        removed = chosen.record(cache)["removed"]
        own = secret if step.title == "DAPT on docs" else evaluated(chosen.task)
        for found in ("\n".join(kept).lower(), text):
            assert {one.lower() in found for one in own} == {not chosen.guarded}, step.title
        leaks = {reason: count for reason, count in removed["leaks"].items() if reason != "train"}
        if not chosen.guarded:
            assert not any([*leaks.values(), *removed["near_leaks"].values()])
        elif step.title == "DAPT on docs":  # for both tasks: those of the second are excluded
            assert leaks == {"dev": 4, "test": 4, "excluded": 8}
            assert removed["near_leaks"] == {"dev": 2, "test": 2, "excluded": 4}
        else:
            assert leaks == {"dev": 4, "test": 4}, step.title
            assert removed["near_leaks"] == {"dev": 2, "test": 2}


@pytest.mark.slow
def test_sets_of_the_users_own_need_no_store(make: Make, world: dict[str, Any]) -> None:
    recipe = replace(make("Curated-TAPT", "not-DAPT", unrelated=world["curated"]), store=None)
    rows = run(recipe).rows
    assert rows[0].passages == rows[1].passages
    assert 40 < rows[0].passages <= 50  # type: ignore[operator]


@pytest.mark.slow
def test_a_model_without_a_head_has_no_loss_before(make: Make, tiny_model: Callable[[str], str]) -> None:
    rows = run(make("none", "TAPT", model=tiny_model("bert-encoder"))).rows
    assert rows[0].loss_after is None
    assert rows[1].loss_before is None
    assert rows[1].loss_after is not None


@pytest.mark.parametrize(
    ("phase", "keys", "sentence"),
    [
        ("DAPT", {"store": None}, "phase DAPT needs a store"),
        ("kNN-TAPT", {"store": None}, "kNN-TAPT selects from a store"),
        ("DAPT", {"domain": None}, "needs domain: name a corpus of .* (it has docs, other)"),
        ("DAPT", {"domain": "biomed"}, "has no corpus 'biomed' (it has docs, other)"),
        ("not-DAPT", {"unrelated": None}, "needs unrelated"),
        ("Curated-TAPT", {"curated": None}, "needs curated: name the file of your passages"),
        ("Curated-TAPT", {"curated": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ("Transfer-TAPT", {"transfer": None}, "needs transfer"),
        ("Transfer-TAPT", {"transfer": "nowhere"}, "nowhere does not exist"),
        ("TAPT", {"task": "nowhere"}, "task nowhere does not exist"),
        ("TAPT", {"store": "nowhere"}, "nowhere is not a store"),
        ("RAND-TAPT", {"docs": 10**6}, "more than the 230 passages"),
    ],
)
def test_what_is_missing_is_one_sentence(make: Make, phase: str, keys: dict[str, Any], sentence: str) -> None:
    pattern = sentence.replace("(", r"\(").replace(")", r"\)")
    recipe = make(phase, **keys)
    with pytest.raises(NearkinError, match=pattern):
        run(recipe)
    assert not recipe.out.exists()


def test_keys_hold_what_shapes_a_result_and_no_more(make: Make, world: dict[str, Any], tmp_path: Path) -> None:
    phases = ("TAPT", "TLM", "kNN-TAPT", "RAND-TAPT", "dsir-TAPT")

    def keys(encoder: str | None = None, **adapt: Any) -> dict[str, list[str]]:
        recipe = make(*phases, adapt=adapt, store=str(store), encoder=encoder)
        return {arm.phase.name: [step.key for step in (*arm.selects, *arm.adapts)] for arm in plan_recipe(recipe).arms}

    store = Path(shutil.copytree(world["store"], tmp_path / "store"))
    before = keys()
    weighed = keys(task_weight=0.5, held_out=0.1)
    assert [phase for phase in phases if weighed[phase] != before[phase]] == ["TLM"]
    opened = Store(store)
    assert keys(next(iter(opened.manifest.encoders))) == before  # the only one there is
    with opened.lock():
        (entry,) = opened.manifest.encoders.values()
        entry.fingerprint = "of another version"
        opened.save()
    again = keys()
    assert [phase for phase in phases if again[phase] != before[phase]] == ["kNN-TAPT"]


@pytest.mark.slow
def test_results_of_other_phases_stay_in_the_file(make: Make) -> None:
    def written() -> dict[str, float]:
        rows = json.loads((recipe.out / "results.json").read_text())["rows"]
        return {row["phase"]: row["test_mean"] for row in rows}

    recipe = make("none", "TAPT")
    both = {row.phase: row.test_mean for row in run(recipe).rows}
    assert list(both) == ["none", "TAPT"]
    (one,) = run(make("none", seeds=2)).rows
    assert written() == {"none": one.test_mean, "TAPT": both["TAPT"]}
    run(make("none", k=7))  # in which TAPT would come out the same
    assert list(written()) == ["none", "TAPT"]
    run(make("none", adapt={"learning_rate": 1e-3}))  # in which it would not
    assert list(written()) == ["none"]


def test_rows_stay_of_tasks_that_moved_and_of_phases_that_cannot_be_planned(
    make: Make, world: dict[str, Any], tmp_path: Path
) -> None:
    first, second = (Path(shutil.copytree(world[key], tmp_path / key)) for key in ("task", "transfer"))
    curated = Path(shutil.copy(world["curated"], tmp_path / "curated.jsonl"))
    kept = {"curated": str(curated)}
    run(make("none", "Curated", task=[str(first), str(second)], **kept))

    def again(path: Path, **keys: Any) -> list[tuple[str, str]]:
        recipe = make("none", task=str(path), **{**kept, **keys})
        run(recipe)
        written = json.loads((recipe.out / "results.json").read_text())
        assert set(written["recipe"]["tasks"]) == {str(tmp_path / row["task"]) for row in written["rows"]}
        return sorted((row["task"], row["phase"]) for row in written["rows"])

    every = sorted((task, phase) for task in ("task", "transfer") for phase in ("none", "Curated-TAPT"))
    assert again(tmp_path / "transfer" / ".." / "task") == every
    shutil.move(second, tmp_path / "elsewhere")
    assert again(first) == every
    curated.unlink()
    assert again(first) == every
    assert again(first, seeds=2) == every
    assert again(first, seed=1) == [("task", "none")]


def test_a_file_that_phases_share_is_hashed_once(
    make: Make, world: dict[str, Any], tmp_path: Path, monkeypatch
) -> None:
    read = []
    monkeypatch.setattr(selection.files, "sha256_of_file", lambda path: read.append(path) or sha256_of_file(path))
    domain = Path(shutil.copy(world["curated"], tmp_path / "domain.jsonl"))
    recipe = make("DAPT", "DAPT+TAPT", "DAPT+kNN-TAPT", domain=str(domain))
    before = plan_recipe(recipe)
    assert read.count(domain) == 1
    domain.write_text(domain.read_text() + '{"text": "One passage more than there was."}\n')
    assert plan_recipe(recipe).arms[0].selects[0].key != before.arms[0].selects[0].key
    assert read.count(domain) == 2


def test_a_methods_file_is_beside_the_recipe(world: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    keys = {name: world[name] for name in ("model", "task", "store")}
    sets = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(world["curated"], folder / "mine.jsonl")
        lines = [f'{key} = "{value}"' for key, value in keys.items()]
        phases = 'phases = ["curated:file=mine.jsonl-TAPT"]'
        (folder / "recipe.toml").write_text("\n".join([*lines, 'out = "out"', phases, "k = 1"]))
        recipe = read_recipe(folder / "recipe.toml")
        ((chosen,),) = [arm.selects for arm in plan_recipe(recipe).arms]
        chosen.make(tmp_path / "steps")
        sets.append(chosen)
    assert sets[0].key == sets[1].key
    assert sets[0].record(tmp_path / "steps")["passages"] > 10
    # From the command line it is a path of the current folder, as ever.
    monkeypatch.chdir(tmp_path / "first")
    options = {"phases": ["curated:file=mine.jsonl-TAPT"]}
    ((again,),) = [arm.selects for arm in plan_recipe(read_recipe(tmp_path / "second/recipe.toml", options)).arms]
    assert (again.key, again.how()) == (sets[0].key, "curated:file=mine.jsonl-TAPT".removesuffix("-TAPT"))


def test_two_runs_in_one_folder_are_refused(make: Make) -> None:
    from filelock import FileLock

    recipe = make("none")
    recipe.out.mkdir()
    with FileLock(str(recipe.out / ".lock")), pytest.raises(NearkinError, match="another run is at work in"):
        run(recipe)


def test_results_of_something_else_are_not_overwritten(make: Make) -> None:
    recipe = make("none")
    recipe.out.mkdir()
    (recipe.out / "results.json").write_text('{"metric": "macro-F1"}')
    with pytest.raises(NearkinError, match="is not a result of `nearkin run`"):
        run(recipe)


def test_the_command(world: dict[str, Any], tmp_path: Path, cli: Cli) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        model = "{world["model"]}"
        task = "{world["task"]}"
        out = "out"
        phases = ["none", "TAPT"]
        [adapt]
        max_steps = 2
        batch_size = 8
        [finetune]
        epochs = 1
        """
    )
    code, out, err = cli("run", recipe, "--seeds", 1, "--dry-run")
    assert (code, err) == (0, "")
    assert out.endswith("dry run: nothing was done\n")
    code, out, err = cli("run", recipe, "--seeds", 1)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[-4].split()[:2] == ["phase", "passages"]
    assert lines[-2].startswith("TAPT ")
    assert lines[-1].startswith(f"written to {tmp_path / 'out' / 'results.json'} after ")
    code, out, err = cli("run", recipe, "--phases", "TATP")
    assert (code, out) == (1, "")
    assert "did you mean TAPT?" in err
