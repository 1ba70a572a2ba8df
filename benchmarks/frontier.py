"""The frontier: what a second of selection and a token of pretraining buy in F1.

A cell is a task, a phase and a finetuning seed. Cells are run seed by seed, and within a seed the baselines first, so a
grid that is stopped early still compares every arm it has. A cell is known by the key of its finetuning step, which
covers everything that shapes its result (`adaptation.steps`), so a cell that is in the results file is never run again,
on whichever machine the file was begun and whether or not models and sets are still there. A grid is what was run under
one recipe; a cell that an earlier grid in the file has in common with it is copied into it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from adaptation.phases import UNGUARDED, Phase, parse_phase
from adaptation.planning import Arm, plan_recipe
from adaptation.prediction import Predictor
from adaptation.recipe import USUAL_K, Recipe
from adaptation.steps import FORMAT, FinetuneStep, SelectStep
from adaptation.tasks import load_labelled, metric_of
from benchmarks.processes import alone
from benchmarks.results import Row, read_rows, write_rows
from benchmarks.selectors import time_selection
from selection.encoders import model_of_cascade
from selection.files import fingerprint, locked, write_json
from selection.models import quiet_libraries
from selection.selectors.registry import method_names
from selection.slugs import open_encoder
from selection.store import Store
from selection.stored import stored_encoder
from selection.wording import human_seconds

Place = tuple[str, str, int]
"""Task, phase, seed."""

BASELINES = ("none", "TAPT", "RAND-TAPT")
TRIAL = 512
AUTO = "auto"


def phase_names(methods: Sequence[str]) -> list[str]:
    """Phases of a grid, baselines first; a bare method of `nearkin select` is its ``-TAPT`` phase.

    Args:
        methods: phases as `adaptation.phases.parse_phase` takes them, or methods: ``knn``, ``tsds:alpha=0.8``.
    """
    known = method_names()
    named = [f"{name}-TAPT" if name.partition(":")[0] in known else name for name in methods]
    phases = [parse_phase(name).name for name in named]
    return list(dict.fromkeys([*BASELINES, *phases]))


def unguarded(phases: Sequence[str]) -> list[str]:
    """The same phases without the leak guard, where they have any: what contamination would buy.

    Args:
        phases: canonical names, as `phase_names` gives them.
    """
    named = []
    for phase in map(parse_phase, phases):
        names = [part.name if part.text == "task" else UNGUARDED + part.name for part in phase.parts]
        named.append("+".join(names))
    return [name for name in named if UNGUARDED in name]


def frontier(
    recipe: Recipe,
    *,
    seeds: int,
    out: Path,
    cache: Path | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Runs every cell of a grid that the results file lacks.

    Args:
        recipe: tasks, phases, budget and settings; its finetuning seeds are those of `seeds`.
        seeds: finetuning seeds, 0 to seeds - 1.
        out: results, a row a cell; rows of other grids in it are left as they are.
        cache: for sets and models; None: ``steps`` in the recipe's folder. One process at a time works in it.
        command: that this was called by, for the rows.
        say: told the forecast and each step.

    Returns:
        The grid's rows: ``grid`` (all of the recipe but tasks and phases, and what model and store hold, as JSON),
        ``key``, ``data`` (fingerprint of the task's texts and labels), ``task``, ``phase``,
        ``seed``, ``metric``, ``dev``, ``test`` (F1 in per cent), ``bf16`` (whether finetuning computed in it),
        ``best_epoch`` (from 1), ``predicted`` (labels of the test examples, in file order);
        ``embed_s`` (making the corpus's vectors, where the phase needs them: predicted from a trial), ``first_s`` and
        ``again_s`` (selecting on a store that knows nothing of the task yet, and once more), ``passages``,
        ``set_tokens``; ``steps``, ``tokens`` and ``pretrain_s`` of all masked-LM training; ``loss_before`` and ``loss``
        (nats, on the task's dev texts); ``finetune_s``; ``sets`` (their folders in the cache, by commas);
        ``model``, ``preset``, ``budget`` (tokens of each set, None where none are named), ``settings`` (JSON),
        ``commit``, ``command``.

    Raises:
        NearkinError: see `adaptation.run.run`; another process writes to `out`.
    """
    quiet_libraries()
    arms = plan_recipe(recipe).arms  # what is wrong with a recipe shows before anything is written
    cache = cache or recipe.out / "steps"
    busy = "another grid is at work in {}: wait for it, or name another"
    with (
        locked(out.with_name(f".{out.name}.lock"), f"{busy.format(out)} --out"),
        locked(cache.parent / ".lock", f"{busy.format(cache.parent)} --work"),
    ):
        return _Grid(recipe, arms, seeds, out, cache, command, say).run()


class _Grid:
    """One call of `frontier`: what its cells share."""

    def __init__(
        self,
        recipe: Recipe,
        arms: Sequence[Arm],
        seeds: int,
        out: Path,
        cache: Path,
        command: str,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.out, self.cache, self.command, self.say = recipe, out, cache, command, say
        ordered = sorted(arms, key=lambda arm: recipe.phases.index(arm.phase))
        self.cells = [(arm, seed) for seed in range(seeds) for arm in ordered]
        self.grid = _shape(recipe, ordered[0])
        self.data = {arm.task: arm.finetune.inputs[:16] for arm in arms}
        self.rows = read_rows(out)
        self.commit = _commit()
        self._embedding: float | None = None

    def run(self) -> list[Row]:
        self._copy_shared()
        mine = self._mine()
        left = [cell for cell in self.cells if _place(*cell) not in mine]
        if left:
            self.cache.mkdir(parents=True, exist_ok=True)
            for arm, _ in left:  # before any training: it takes little, and what is wrong with a set shows early
                self._select(arm)
            predicted = self._predict(left)
            self.say(
                f"{len(left)} cells of {len(self.cells)} to do, {len({arm.finetune.key for arm, _ in left})} arms: "
                f"about {human_seconds(sum(predicted))}"
            )
            started = time.monotonic()
            for number, (arm, seed) in enumerate(left, 1):
                row = self._cell(arm, seed)
                self._enter(row)
                taken, foreseen = time.monotonic() - started, sum(predicted[:number])
                self.say(
                    f"[{number}/{len(left)}] {arm.task}, {arm.phase.name}, seed {seed}: test {row['test']:.2f}; "
                    f"{human_seconds(taken)} so far, {human_seconds(foreseen)} predicted for it, "
                    f"about {human_seconds(taken / max(foreseen, 1e-9) * sum(predicted[number:]))} to come"
                )
        mine = self._mine()
        return [mine[_place(*cell)] for cell in self.cells]

    def _mine(self) -> dict[Place, Row]:
        """This grid's rows by task, phase and seed; not those of a model, task or store that has changed since."""
        keys = {_place(*cell): _key(*cell) for cell in self.cells}
        return {place: row for row in self.rows if (place := self._own(row)) and keys.get(place) == row["key"]}

    def _own(self, row: Row) -> Place | None:
        """Where a row stands in this grid; None for one of another."""
        if (row.get("grid"), row.get("model")) != (self.grid, self.recipe.model):
            return None
        if row["task"] in self.data and row.get("data") != self.data[row["task"]]:
            return None  # of a task whose texts or labels have changed since
        return row["task"], row["phase"], row["seed"]

    def _enter(self, *new: Row) -> None:
        """Writes new rows, in place of what stood there."""
        places = {self._own(row) for row in new}
        self.rows = [row for row in self.rows if self._own(row) is None or self._own(row) not in places] + list(new)
        write_rows(self.rows, self.out)

    def _copy_shared(self) -> None:
        """Takes over what other grids in the file have run already, or this one under another name."""
        mine, known = self._mine(), {row.get("key"): row for row in self.rows}
        shared = [cell for cell in self.cells if _place(*cell) not in mine and _key(*cell) in known]
        about = {"grid": self.grid, "command": self.command, **self._about()}
        if shared:
            tasks = {arm.task for arm, _ in self.cells}
            # A task under another name than before is still one task.
            new = {known[_key(*cell)]["task"]: cell[0].task for cell in shared}
            for row in self.rows:
                if self._own(row) is not None and row["task"] not in tasks and row["task"] in new:
                    row["task"] = new[row["task"]]
            names = [{"task": t, "phase": arm.phase.name, "data": self.data[t]} for arm, _ in shared if (t := arm.task)]
            self._enter(*(known[_key(*cell)] | about | name for cell, name in zip(shared, names, strict=True)))

    def _about(self) -> Row:
        return {"model": self.recipe.model, "preset": self.recipe.preset, "budget": self.recipe.tokens}

    def _predict(self, left: Sequence[tuple[Arm, int]]) -> list[float]:
        """Seconds that each of the cells to come will take, in this order; the first of an arm trains it."""
        predictor = Predictor(self.recipe.model, self.cache)
        seen: set[str] = set()
        seconds = []
        for arm, _ in left:
            fresh = {
                step.key: step for step in arm.steps if not isinstance(step, FinetuneStep) and step.key not in seen
            }
            before = sum(predictor.predict(step).seconds for step in fresh.values())
            seconds.append(before + predictor.finetuning(arm.finetune, 1).seconds)
            seen |= fresh.keys()
        return seconds

    def _cell(self, arm: Arm, seed: int) -> Row:
        selecting = self._select(arm)
        for step in (arm.before, *arm.adapts, arm.loss):
            if not step.is_done(self.cache):
                self.say(f"{step.kind} {step.title}")
                step.make(self.cache)
        adapted = [step.record(self.cache) for step in arm.adapts]
        tuned = self._finetune(arm, seed)
        settings = {"finetune": arm.finetune.shape()["settings"], "adapt": [s.shape()["settings"] for s in arm.adapts]}
        return {
            "grid": self.grid, "key": _key(arm, seed), "data": self.data[arm.task],
            "task": arm.task, "phase": arm.phase.name, "seed": seed,
            **tuned, **selecting,
            "steps": sum(record["steps"] for record in adapted),
            "tokens": sum(record["tokens_seen"] for record in adapted),
            "pretrain_s": sum(record["seconds"] for record in adapted),
            "loss_before": arm.before.record(self.cache)["loss"], "loss": arm.loss.record(self.cache)["loss"],
            **self._about(), "settings": json.dumps(settings, sort_keys=True),
            "sets": ",".join(step.folder(self.cache).name for step in arm.selects),
            "commit": self.commit, "command": self.command,
        }  # fmt: skip

    def _select(self, arm: Arm) -> Row:
        """Selects the arm's sets, each timed on a store that is fresh to the task; what that cost."""
        costs: Row = {"embed_s": 0.0, "first_s": 0.0, "again_s": 0.0, "passages": 0, "set_tokens": 0}
        for step in arm.selects:
            file = step.folder(self.cache).with_suffix(".timing.json")
            if not (step.is_done(self.cache) and file.exists()):
                self.say(f"{step.kind} {step.title}")
                step.make(self.cache)
                write_json(file, self._time(step))
            timing, record = json.loads(file.read_text(encoding="utf-8")), step.record(self.cache)
            for name in ("embed_s", "first_s", "again_s"):
                costs[name] += timing[name]
            costs["passages"] += record["passages"]
            costs["set_tokens"] += record["tokens"]
        return costs

    def _time(self, step: SelectStep) -> dict[str, float]:
        if step.store is None:
            return {"embed_s": 0.0, "first_s": 0.0, "again_s": 0.0}
        store = Store(step.store)
        options = {
            "encoder": step.encoder, "budget": step.budget, "seed": step.seed, "near": step.near,
            "exclude": step.exclude, "guarded": step.guarded,
        }  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="nearkin-", dir=self.cache) as scratch:
            target = Path(scratch) / "set"
            found = alone(time_selection, store.path, step.task, step.how(), target, options)
        # A cascade encodes what it needs within the selection.
        needs_vectors = found["encode_s"] > 0 and model_of_cascade(step.encoder or "") is None
        return {
            "embed_s": self._embedding_seconds(store, open_encoder(store, step.encoder)) if needs_vectors else 0.0,
            "first_s": found["first_s"],
            "again_s": found["again_s"],
        }

    def _embedding_seconds(self, store: Store, slug: str) -> float:
        """What embedding the corpus takes on this machine, from a random part of it."""
        if self._embedding is None:
            rows = np.sort(np.random.default_rng(0).choice(len(store.corpus), min(TRIAL, len(store.corpus)), False))
            texts = store.corpus.take(rows, ["text"])["text"]
            encoder = stored_encoder(store, slug)
            encoder.encode(texts.slice(0, 8))
            began = time.perf_counter()
            encoder.encode(texts)
            self._embedding = (time.perf_counter() - began) * len(store.corpus) / len(rows)
        return self._embedding

    def _finetune(self, arm: Arm, seed: int) -> Row:
        """One seed's F1; `FinetuneStep` would do those before it over again where its folder is gone."""
        from adaptation.classifier import Finetuning
        from adaptation.loading import transformer_folder
        from adaptation.precision import use_bf16
        from adaptation.training import repeatable

        step = arm.finetune
        task = load_labelled(step.task)
        metric = step.settings.metric or metric_of(task.task.name)
        folder = transformer_folder(step.before.location(self.cache))
        settled = self._settled() if step.settings.bf16 == AUTO else None
        bf16 = use_bf16(step.settings.bf16) if settled is None else settled
        tuning = Finetuning(folder, task, step.settings, metric, bf16, lambda line: None)
        with repeatable():
            _, result, predicted = tuning.train(seed)
        found = {"metric": f"{metric}-F1", "dev": result.dev, "test": result.test, "bf16": tuning.bf16}
        known = {"finetune_s": result.seconds, "best_epoch": result.best_epoch}
        return {**found, **known, "predicted": [task.labels[number] for number in predicted.tolist()]}

    def _settled(self) -> bool | None:
        """What this grid's finetuning settled on where it had the choice, so that seeds compare; None at first."""
        of_rows = ((json.loads(row["settings"])["finetune"]["bf16"], row["bf16"]) for row in self._mine().values())
        return next((settled for asked, settled in of_rows if asked == AUTO), None)


def _key(arm: Arm, seed: int) -> str:
    return f"{arm.finetune.key[:24]}-{seed}"


def _place(arm: Arm, seed: int) -> Place:
    return arm.task, arm.phase.name, seed


def _shape(recipe: Recipe, arm: Arm) -> str:
    """All that shapes cells but tasks and phases, as JSON: settings, the model's files, the store's texts."""
    names = ("seed", "k", "tokens", "docs", "domain", "unrelated", "curated", "transfer", "encoder", "near")
    base = Phase(())
    settings = {
        "adapt": asdict(recipe.adapting(base, "adapt")), "dapt": asdict(recipe.adapting(base, "dapt")),
        "finetune": asdict(recipe.finetuning(base)),
    }  # fmt: skip
    for table, unshaping in (("adapt", "checkpoint_minutes"), ("dapt", "checkpoint_minutes"), ("finetune", "seeds")):
        settings[table].pop(unshaping)
    texts = Store(recipe.store).corpus.identity if recipe.store else []
    content = {"base": arm.before.before.key[:16], "texts": fingerprint(*texts)[:16], "format": FORMAT}
    both = recipe.k is not None and (recipe.tokens is not None or recipe.docs is not None)
    content |= {"limits": "k too"} if both else {}
    values = {name: getattr(recipe, name) for name in names} | {"k": recipe.k or USUAL_K}
    return json.dumps(values | settings | {"phase": recipe.by_phase} | content)


def _commit() -> str:
    """The commit of this source tree; nothing where it is none, as in an installed package, or where git is missing."""
    tree = Path(__file__).parent.parent
    try:
        said = [
            subprocess.run(["git", *command], cwd=tree, capture_output=True, text=True, check=True).stdout.strip()
            for command in (("rev-parse", "--show-toplevel"), ("describe", "--always", "--dirty"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said[1] if Path(said[0]).resolve() == tree.resolve() else ""
