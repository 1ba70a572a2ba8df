"""Recipes: file and options, presets and tables, and what is wrong with one said in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptation.finetune import FinetuneSettings
from adaptation.mlm import AdaptSettings
from adaptation.phases import parse_phase
from adaptation.recipe import Recipe, read_recipe
from selection.errors import NearkinError
from selection.filling import Budget

RECIPE = """
model = "roberta-base"
task = "tasks/chemprot"
store = "store"
out = "runs/chemprot"
phases = ["none", "tapt", "DAPT+TAPT", "kNN-TAPT"]
k = 20

[adapt]
epochs = 10

[finetune]
learning_rate = 5e-5

[phase."dapt+tapt".dapt]
max_steps = 500
"""
LEAST: dict[str, Any] = {"model": "m", "task": "t", "out": "o"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "recipe.toml"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return path


def of(*phases: str, **keys: Any) -> Recipe:
    return read_recipe(None, {**LEAST, "phases": phases, **keys})


def test_the_papers_settings_are_the_default() -> None:
    recipe = of("DAPT+TAPT")
    (phase,) = recipe.phases
    assert recipe.adapting(phase, "adapt") == AdaptSettings() == AdaptSettings(epochs=100, batch_size=256)
    assert recipe.adapting(phase, "dapt") == AdaptSettings(max_steps=12_500, batch_size=2048, learning_rate=5e-4)
    assert recipe.finetuning(phase) == FinetuneSettings(seeds=5, learning_rate=2e-5, batch_size=16, patience=3)
    assert recipe.budget(parse_phase("kNN-TAPT").parts[0]) == Budget(k=50)
    assert recipe.budget(parse_phase("RAND-TAPT").parts[0]) == Budget(k=50)
    assert recipe.budget(parse_phase("150NN-TAPT").parts[0]) == Budget(k=150)
    assert recipe.budget(parse_phase("DAPT").parts[0]) == Budget(everything=True)


def test_quick_gives_every_phase_the_same_steps_and_tokens() -> None:
    recipe = of("TAPT", preset="quick")
    (phase,) = recipe.phases
    adapt, dapt = recipe.adapting(phase, "adapt"), recipe.adapting(phase, "dapt")
    assert (adapt.max_steps, adapt.batch_size) == (dapt.max_steps, dapt.batch_size)
    for name in ("kNN-TAPT", "RAND-TAPT", "dsir-TAPT"):
        assert recipe.budget(parse_phase(name).parts[0]) == Budget(tokens=300_000)
    assert of("TAPT", preset="quick", docs=7).budget(parse_phase("kNN-TAPT").parts[0]) == Budget(docs=7)
    assert of("TAPT", preset="quick", k=7).budget(parse_phase("kNN-TAPT").parts[0]) == Budget(k=7)


def test_a_file_with_paths_of_its_own(file: Path) -> None:
    recipe = read_recipe(file)
    assert recipe.tasks == (file.parent / "tasks/chemprot",)
    assert (recipe.store, recipe.out) == (file.parent / "store", file.parent / "runs/chemprot")
    assert recipe.model == "roberta-base"
    assert [phase.name for phase in recipe.phases] == ["none", "TAPT", "DAPT+TAPT", "kNN-TAPT"]
    both, tapt = recipe.phases[2], recipe.phases[1]
    assert recipe.adapting(tapt, "adapt").epochs == 10
    assert recipe.adapting(both, "dapt").max_steps == 500
    assert recipe.adapting(both, "dapt").batch_size == 2048
    assert recipe.adapting(tapt, "dapt").max_steps == 12_500
    assert recipe.finetuning(tapt).learning_rate == 5e-5


def test_options_win_over_the_file(file: Path) -> None:
    options = {"task": ["a", "b"], "phases": ["50NN-TAPT"], "seeds": 2, "seed": 9, "tokens": 1000, "store": None}
    recipe = read_recipe(file, options)
    assert recipe.tasks == (Path("a"), Path("b"))
    assert recipe.store == file.parent / "store"
    (phase,) = recipe.phases
    assert recipe.finetuning(phase) == FinetuneSettings(seeds=2, learning_rate=5e-5)
    assert recipe.adapting(phase, "adapt").seed == recipe.seed == 9
    assert recipe.budget(phase.parts[0]) == Budget(k=50, tokens=1000)


def test_options_win_over_every_table_of_the_file(file: Path) -> None:
    file.write_text(
        RECIPE.replace("[adapt]", "[adapt]\nseed = 3").replace("[finetune]", "[finetune]\nseeds = 4")
        + 'seed = 5\n[phase."TAPT".finetune]\nseeds = 6\nepochs = 2\n'
    )

    def seeds(**options: Any) -> list[int]:
        recipe = read_recipe(file, options)
        tapt, both = recipe.phases[1], recipe.phases[2]
        assert recipe.finetuning(tapt).epochs == 2
        assert recipe.adapting(tapt, "adapt").epochs == 10
        drawn = [recipe.adapting(both, schedule).seed for schedule in ("adapt", "dapt")]
        return [*drawn, recipe.finetuning(tapt).seeds, recipe.finetuning(both).seeds]

    assert seeds() == [3, 5, 6, 4]
    assert seeds(seed=9) == [9, 9, 6, 4]
    assert seeds(seeds=2) == [3, 5, 2, 2]


def test_a_limit_holds_beside_another_that_is_given_with_it(file: Path) -> None:
    (part,) = parse_phase("kNN-TAPT").parts
    assert of("TAPT", k=5, tokens=1000).budget(part) == Budget(k=5, tokens=1000)
    assert of("TAPT", k=5, docs=10, preset="quick").budget(part) == Budget(k=5, docs=10)
    assert of("TAPT", tokens=1000).budget(part) == Budget(tokens=1000)
    assert read_recipe(file).budget(part) == Budget(k=20)
    assert read_recipe(file, {"tokens": 1000}).budget(part) == Budget(tokens=1000)
    assert read_recipe(file, {"k": 5, "tokens": 1000}).budget(part) == Budget(k=5, tokens=1000)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(NearkinError, match="between 0 and 4294967295"):
        of("TAPT", seed=seed)
    with pytest.raises(NearkinError, match="between 0 and 4294967295"):
        AdaptSettings(seed=seed)


def test_epochs_replace_the_presets_steps() -> None:
    recipe = of("TAPT", preset="quick")
    assert recipe.adapting(recipe.phases[0], "adapt").max_steps == 600
    by_epochs = Recipe(**{**vars(recipe), "tables": {"adapt": {"epochs": 3}}})
    assert by_epochs.adapting(recipe.phases[0], "adapt").max_steps is None


def test_names_and_paths_are_told_apart(file: Path) -> None:
    (file.parent / "news.jsonl").write_text("{}")
    (file.parent / "model").mkdir()
    file.write_text(RECIPE.replace("roberta-base", "model") + "\n")
    text = 'domain = "biomed"\nunrelated = "news.jsonl"\n' + file.read_text()
    file.write_text(text)
    recipe = read_recipe(file)
    assert recipe.domain == "biomed"
    assert recipe.unrelated == str(file.parent / "news.jsonl")
    assert recipe.model == str(file.parent / "model")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('model = "roberta-base"', "model = ", "recipe.toml is not TOML: invalid value (at line 2, column 9)"),
        ("phases =", "phasess =", "unknown key 'phasess', did you mean phases?"),
        ("[finetune]", "[finetuning]", "unknown key 'finetuning', did you mean finetune?"),
        ("epochs = 10", "epoch = 10", "[adapt]: unknown key 'epoch', did you mean epochs?"),
        ("epochs = 10", 'epochs = "ten"', "[adapt]: epochs must be a whole number, not 'ten'"),
        ("epochs = 10", "epochs = 1.5", "[adapt]: epochs must be a whole number, not 1.5"),
        ("epochs = 10", "epochs = true", "epochs must be a whole number, not True"),
        ("epochs = 10", "epochs = 0", "phase TAPT: epochs must be more than 0, not 0"),
        ("5e-5", '"low"', "[finetune]: learning_rate must be a number, not 'low'"),
        (".dapt]", ".dpat]", "unknown table 'dpat' in [phase.\"dapt+tapt\"], did you mean dapt?"),
        ('"dapt+tapt"', '"dapt+tatp"', "[phase.\"dapt+tatp\"]: unknown phase 'tatp'"),
        ('"tapt"', '"tatp"', "unknown phase 'tatp', did you mean TAPT?"),
        ("k = 20", "k = 0", "k must be at least 1, not 0"),
        ("k = 20", 'preset = "papre"', "unknown preset 'papre': choose one of paper, quick"),
        ("k = 20", 'near = "some"', "near is one of off, ngrams, all, not 'some'"),
        ("k = 20", "seed = -1", "seed must lie between 0 and 4294967295"),
        ('model = "roberta-base"', "", "no model is named"),
        ('task = "tasks/chemprot"', "", "no task is named"),
        ("[adapt]\nepochs = 10", "adapt = 3", "adapt is a table of settings"),
        ("k = 20", "phase = 3", "not TOML"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(file: Path, old: str, new: str, sentence: str) -> None:
    assert old in RECIPE
    file.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(NearkinError) as failed:
        read_recipe(file)
    assert sentence in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NearkinError, match=r"nothing\.toml does not exist"):
        read_recipe(tmp_path / "nothing.toml")
