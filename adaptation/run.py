"""Phases end to end: the function behind `nearkin run`.

Steps are run in the order of the recipe's phases, selection first, and each only where its result is not in the cache.
``OUT/results.json`` is written anew after every phase, so what is finished can be read while the rest goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adaptation.phases import parse_phase
from adaptation.planning import Arm, Plan, plan_recipe, possible_arms
from adaptation.prediction import Prediction, Predictor
from adaptation.recipe import Recipe
from adaptation.steps import AdaptStep, Step
from selection.errors import NearkinError
from selection.files import locked, write_json
from selection.models import quiet_libraries
from selection.terminal import aligned
from selection.versions import versions
from selection.wording import human_seconds, mean_and_sd, or_dash

logger = logging.getLogger(__name__)

RESULT_FILE = "results.json"


@dataclass(frozen=True)
class Row:
    """What a phase came to on a task; None where it has no such thing.

    Attributes:
        task, phase: their names.
        metric: ``macro-F1`` or ``micro-F1``.
        selection_seconds: of all its sets, when they were selected.
        passages, set_tokens: in these sets; tokens by the encoder's tokenizer.
        masked_lm_steps, tokens_seen, masked_lm_seconds: of its masked-LM training, all parts together.
        loss_before, loss_after: masked-LM loss of the base model and of the phase's on the task's dev texts, in nats.
        finetune_seconds: of all seeds.
        dev, test: F1 in percent by seed, with mean and sample standard deviation.
        parts: each masked-LM training by itself, with its settings and its own held-out loss.
        cached: steps whose results were there before this run.
        folders: where each step's result lies, in the cache.
    """

    task: str
    phase: str
    metric: str
    selection_seconds: float | None
    passages: int | None
    set_tokens: int | None
    masked_lm_steps: int
    tokens_seen: int
    masked_lm_seconds: float
    loss_before: float | None
    loss_after: float | None
    finetune_seconds: float
    dev_mean: float
    dev_std: float | None
    test_mean: float
    test_std: float | None
    dev: dict[str, float]
    test: dict[str, float]
    parts: list[dict[str, Any]]
    cached: list[str]
    folders: dict[str, str]


@dataclass(frozen=True)
class RunResult:
    """What a run made: a row a task and phase, and the file with them; neither after a dry run."""

    rows: list[Row]
    file: Path | None
    seconds: float


def run(
    recipe: Recipe,
    *,
    cache: Path | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = logger.info,
) -> RunResult:
    """Runs the phases of a recipe; the same call goes on where an earlier one was stopped.

    Args:
        recipe: see `adaptation.recipe.read_recipe`.
        cache: folder of steps' results, which several recipes may share; None is ``OUT/steps``.
        dry_run: say the plan, and do and write nothing.
        say: is told the plan, and each step as it starts and ends, a line at a time.

    Raises:
        NearkinError: a recipe that cannot be run, before anything is written; a step that fails; another run is at
            work in the same folder.
    """
    started = time.monotonic()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NearkinError("run works in one process: start it without accelerate or torchrun")
    quiet_libraries()
    cache = cache or recipe.out / "steps"
    _check_out(recipe.out)
    plan = plan_recipe(recipe)
    if dry_run:
        _predict(recipe, plan, cache, say)
        return RunResult([], None, time.monotonic() - started)
    with locked(recipe.out / ".lock", f"another run is at work in {recipe.out}: wait for it, or name another --out"):
        cache.mkdir(parents=True, exist_ok=True)
        predicted = _predict(recipe, plan, cache, say)
        rows = _Runner(recipe, plan, cache, predicted, say).run()
    return RunResult(rows, recipe.out / RESULT_FILE, time.monotonic() - started)


def _predict(recipe: Recipe, plan: Plan, cache: Path, say: Callable[[str], None]) -> dict[str, Prediction]:
    predictor = Predictor(recipe.model, cache)
    predicted = {step.key: predictor.predict(step) for step in plan.steps}
    for line in forecast(plan, cache, predicted):
        say(line)
    return predicted


class _Runner:
    """One call of `run`: what its steps share."""

    def __init__(
        self,
        recipe: Recipe,
        plan: Plan,
        cache: Path,
        predicted: dict[str, Prediction],
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.plan, self.cache, self.predicted, self.say = recipe, plan, cache, predicted, say
        self.number = {step.key: number for number, step in enumerate(plan.steps, 1)}
        self.there = {step.key for step in plan.steps if step.is_done(cache)}
        self.told: set[str] = set()

    def run(self) -> list[Row]:
        _ = self.others  # read before hours of work: what an earlier call left may be gone or changed by then
        for chosen in (chosen for arm in self.plan.arms for chosen in arm.selects):
            self._step(chosen)
        for arm in self.plan.arms:
            for step in arm.steps:
                self._step(step)
            self._write()
        return self._rows()

    def _rows(self) -> list[Row]:
        """Of every arm that is done, in this run or before it."""
        done = [arm for arm in self.plan.arms if all(step.is_done(self.cache) for step in arm.steps)]
        return [row_of(arm, self.cache, self.there) for arm in done]

    def _write(self) -> None:
        """Writes what is done, and what an earlier call left of other phases and tasks."""
        recipe, others = self.others
        rows = [asdict(row) for row in self._rows()] + others
        write_json(self.recipe.out / RESULT_FILE, {"recipe": _plain(recipe), "rows": rows, "versions": versions()})

    @cached_property
    def others(self) -> tuple[Recipe, list[dict[str, Any]]]:
        """The recipe with further phases and tasks, and their rows: those in the file that would come out the same.

        A row that cannot be planned any more, its task's folder gone say, stays where the recipe is the same otherwise.
        """
        planned = {(arm.task, arm.phase.name) for arm in self.plan.arms}
        try:
            known = json.loads((self.recipe.out / RESULT_FILE).read_text(encoding="utf-8"))
            rows = [row for row in known["rows"] if (row["task"], row["phase"]) not in planned]
            whole = self._with_those_of(rows, [Path(task) for task in known["recipe"]["tasks"]])
            there = {(arm.task, arm.phase.name): folders_of(arm, self.cache) for arm in possible_arms(whole)}
            same = _apart(known["recipe"]) == _apart(json.loads(json.dumps(_plain(self.recipe))))
            places = [(row["task"], row["phase"]) for row in rows]
            kept = [
                row
                for place, row in zip(places, rows, strict=True)
                if (there[place] == row.get("folders") if place in there else same)
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return self.recipe, []
        return (whole if kept else self.recipe), kept

    def _with_those_of(self, rows: Sequence[dict[str, Any]], tasks: Sequence[Path]) -> Recipe:
        """The recipe with the phases and tasks of rows; a task that it has by another path is not taken twice."""
        further = dict.fromkeys(self.recipe.phases)
        for row in rows:
            with suppress(NearkinError):  # a method whose package is gone
                further[parse_phase(row["phase"])] = None
        mine, wanted = {arm.task for arm in self.plan.arms}, {row["task"] for row in rows}
        others = {name: task for task in tasks if (name := task.resolve().name) in wanted - mine}
        return replace(self.recipe, phases=tuple(further), tasks=(*self.recipe.tasks, *others.values()))

    def _step(self, step: Step) -> None:
        if step.key in self.told:
            return
        self.told.add(step.key)
        name = f"[{self.number[step.key]}/{len(self.number)}] {step.kind} {step.title}"
        if step.is_done(self.cache):
            folder = step.folder(self.cache)
            shutil.rmtree(folder.with_name(f"{folder.name}.work"), ignore_errors=True)  # of one killed at its very end
            self.say(f"{name}: there already")
            return
        started = time.monotonic()
        self.say(f"{name}: about {human_seconds(self.predicted[step.key].seconds)}")
        step.make(self.cache)
        self.say(f"{name}: done in {human_seconds(time.monotonic() - started)}")


def _check_out(out: Path) -> None:
    """Refuses a folder of something else, which ``results.json`` would overwrite."""
    file = out / RESULT_FILE
    if out.exists() and not out.is_dir():
        raise NearkinError(f"{out} is a file: name a folder with --out")
    if not file.exists():
        return
    try:
        ours = "recipe" in json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise NearkinError(f"{file} is not a result of `nearkin run`: name another folder with --out")


def row_of(arm: Arm, cache: Path, there: set[str]) -> Row:
    """The row of an arm whose steps are done.

    Args:
        there: keys of steps that were done before this run.
    """
    sets = [step.record(cache) for step in arm.selects]
    parts = [(step, step.record(cache)) for step in arm.adapts]
    tuned = arm.finetune.record(cache)
    steps = {step.key: step for step in arm.steps}
    return Row(
        task=arm.task,
        phase=arm.phase.name,
        metric=tuned["metric"],
        selection_seconds=round(sum(found["seconds"] for found in sets), 3) if sets else None,
        passages=sum(found["passages"] for found in sets) if sets else None,
        set_tokens=sum(found["tokens"] for found in sets) if sets else None,
        masked_lm_steps=sum(record["steps"] for _, record in parts),
        tokens_seen=sum(record["tokens_seen"] for _, record in parts),
        masked_lm_seconds=round(sum(record["seconds"] for _, record in parts), 3),
        loss_before=arm.before.record(cache)["loss"],
        loss_after=arm.loss.record(cache)["loss"],
        finetune_seconds=tuned["seconds"],
        dev_mean=tuned["dev_mean"],
        dev_std=tuned["dev_std"],
        test_mean=tuned["test_mean"],
        test_std=tuned["test_std"],
        dev=tuned["dev"],
        test=tuned["test"],
        parts=[_part(step, record) for step, record in parts],
        cached=[f"{step.kind} {step.title}" for key, step in steps.items() if key in there],
        folders=folders_of(arm, cache),
    )


def folders_of(arm: Arm, cache: Path) -> dict[str, str]:
    """Where each step's result lies, in the cache."""
    return {f"{step.kind} {step.title}": step.folder(cache).name for step in arm.steps}


def _part(step: AdaptStep, record: dict[str, Any]) -> dict[str, Any]:
    kept = ("counts", "settings", "new_head", "steps", "tokens_seen", "seconds", "held_out_loss")
    return {"title": step.title, **{key: record[key] for key in kept}}


def _plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON: what was asked for, and the settings of every phase as they were in the end."""
    named = asdict(replace(recipe, phases=()))
    named |= {key: str(value.resolve()) for key, value in named.items() if isinstance(value, Path)}
    named["tasks"] = [str(task.resolve()) for task in recipe.tasks]
    named["phases"] = [phase.name for phase in recipe.phases]
    named["settings"] = {
        phase.name: {
            "parts": [asdict(recipe.adapting(phase, part.schedule)) for part in phase.parts],
            "finetune": asdict(recipe.finetuning(phase)),
        }
        for phase in recipe.phases
    }
    return named


def _apart(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as JSON without what may differ from call to call: its tasks and phases, and how many seeds."""
    varying = ("tasks", "phases", "settings", "out", "folder")
    left = {name: value for name, value in recipe.items() if name not in varying}
    tables = {**left["tables"]}
    tables["finetune"] = {name: value for name, value in tables.get("finetune", {}).items() if name != "seeds"}
    return left | {"tables": tables}


def forecast(plan: Plan, cache: Path, predicted: dict[str, Prediction]) -> list[str]:
    """The steps as lines of a table: what is there, what is to do, and what that takes."""
    rows = []
    for step in plan.steps:
        guess = predicted[step.key]
        done = step.is_done(cache)
        seconds = "-" if done else human_seconds(guess.seconds)
        state = "there" if done else "to do"
        rows.append((step.kind, step.title, state, or_dash(guess.steps, ",d"), or_dash(guess.tokens, ",d"), seconds))
    total = sum(guess.seconds for guess in predicted.values())
    to_do = sum(not step.is_done(cache) for step in plan.steps)
    head = ("step", "what", "", "updates", "tokens", "predicted")
    return [*aligned([head, *rows], left=3), f"{to_do} of {len(rows)} steps to do, about {human_seconds(total)}"]


def table(rows: Sequence[Row]) -> list[str]:
    """Results as lines of a table."""
    several = len({row.task for row in rows}) > 1
    lines = [
        (
            *([row.task] if several else []),
            row.phase,
            or_dash(row.passages, ",d"),
            or_dash(row.selection_seconds, ".1f"),
            or_dash(row.masked_lm_steps or None, ",d"),
            or_dash(row.tokens_seen or None, ",d"),
            human_seconds(row.masked_lm_seconds) if row.masked_lm_steps else "-",
            or_dash(row.loss_after, ".3f"),
            mean_and_sd(row.dev_mean, row.dev_std),
            mean_and_sd(row.test_mean, row.test_std),
        )
        for row in rows
    ]
    head = (
        *(["task"] if several else []), "phase", "passages", "selection s", "updates", "tokens seen", "training",
        "dev loss", "dev F1", "test F1",
    )  # fmt: skip
    return aligned([head, *lines], left=2 if several else 1)
