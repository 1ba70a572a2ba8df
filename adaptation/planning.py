"""From a recipe to its steps, before any of them runs: what each phase stands on, and what steps phases share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from adaptation.cards import cards
from adaptation.loading import transformer_folder
from adaptation.phases import Part, Phase
from adaptation.recipe import PRESETS, Recipe
from adaptation.steps import AdaptStep, BaseModel, FinetuneStep, LossStep, Model, SelectStep, Step
from adaptation.tasks import LabelledTask, load_labelled, metric_of
from selection.encoders import model_of_cascade
from selection.errors import InputError, NearkinError
from selection.files import TextFingerprint, fingerprint, sha256_of_file, sha256_once
from selection.filling import Budget
from selection.finding import find_files
from selection.index.kinds import BY_NAME
from selection.models import model_fingerprint, resolve_model
from selection.selectors.pool import Pool
from selection.selectors.registry import find_selector
from selection.slugs import open_encoder
from selection.store import Store
from selection.task import Task, read_task


@dataclass(frozen=True)
class Arm:
    """A phase on a task.

    Attributes:
        before: the base model's loss on the task's dev texts.
        adapts: a step a part of the phase, in order; `selects` are the sets they read.
        loss, finetune: of the model in the end.
    """

    phase: Phase
    task: str
    before: LossStep
    selects: tuple[SelectStep, ...]
    adapts: tuple[AdaptStep, ...]
    loss: LossStep
    finetune: FinetuneStep

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them, in the order in which they are run."""
        return (*self.selects, self.before, *self.adapts, self.loss, self.finetune)


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to."""

    arms: tuple[Arm, ...]

    @cached_property
    def steps(self) -> list[Step]:
        """Every step once. Selection comes first: it takes little, and what is wrong with a set shows before hours."""
        ordered: list[Step] = [step for arm in self.arms for step in arm.selects]
        ordered += [step for arm in self.arms for step in arm.steps]
        return list({step.key: step for step in ordered}.values())


def plan_recipe(recipe: Recipe) -> Plan:
    """The steps of a recipe. Reads tasks, the store's manifest and the model's files; writes nothing.

    Raises:
        InputError: a task, corpus or file that cannot be used.
        ModelError: a model that is not to be had.
        NearkinError: a phase that lacks something: a store, a domain, a file.
    """
    planner = _Planner(recipe)
    return Plan(tuple(planner.arm(phase, task) for task in planner.tasks for phase in recipe.phases))


def possible_arms(recipe: Recipe) -> list[Arm]:
    """The arms of a recipe that can be planned, where others cannot: of tasks that are there, with what they need."""
    readable = []
    for path in recipe.tasks:
        with suppress(NearkinError):
            load_labelled(path)
            readable.append(path)
    planner, found = _Planner(replace(recipe, tasks=tuple(readable))), []
    for task in planner.tasks:
        for phase in recipe.phases:
            with suppress(NearkinError):
                found.append(planner.arm(phase, task))
    return found


class _Planner:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tasks = [load_labelled(path) for path in recipe.tasks]
        names = [task.task.name for task in self.tasks]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise NearkinError(f"two tasks are called {doubled[0]}: rename one's folder, since results go by it")
        folder = transformer_folder(recipe.model)
        self.base = BaseModel(recipe.model, model_fingerprint(folder))
        self.store = Store(recipe.store) if recipe.store is not None else None
        if self.store is not None:
            self.store.check_corpora()

    def arm(self, phase: Phase, task: LabelledTask) -> Arm:
        model: Model = self.base
        adapts: list[AdaptStep] = []
        selects: list[SelectStep] = []
        for number, part in enumerate(phase.parts):
            so_far = Phase(phase.parts[: number + 1]).name
            chosen = self._select(part, task)
            model = self._adapt(phase, part, so_far, task, chosen, model)
            adapts.append(model)
            selects += [chosen] if chosen else []
        before, loss = self._loss("none", task, self.base), self._loss(phase.name, task, model)
        tuned = self._finetune(phase, task, model)
        return Arm(phase, task.task.name, before, tuple(selects), tuple(adapts), loss, tuned)

    def _adapt(
        self,
        phase: Phase,
        part: Part,
        title: str,
        task: LabelledTask,
        chosen: SelectStep | None,
        model: Model,
    ) -> AdaptStep:
        settings = self.recipe.adapting(phase, part.schedule)
        of_domain = part.text in ("domain", "unrelated")
        # The dev texts measure all that is trained for the task, so that losses compare; a domain has its own share.
        # Where a set may hold dev texts to show what they bring, they are trained on.
        held_out = None if of_domain or not part.guarded else task.task.path / "dev.jsonl"
        read = () if of_domain else ("train", "dev", "test") if part.has_task_text else ("dev",)
        return AdaptStep(
            title=f"{title} on {self._corpus_title(part, task) if of_domain else task.task.name}",
            inputs=task.identity() if part.joint else _fingerprint_of(task.task, read),
            before=model,
            task=task.task.path if part.has_task_text else None,
            sets=(chosen,) if chosen else (),
            held_out=held_out,
            settings=settings,
            joint=part.joint,
        )

    def _loss(self, name: str, task: LabelledTask, model: Model) -> LossStep:
        usual = self.recipe.adapting(Phase(()), "adapt")  # the same for every phase, whatever its own settings
        return LossStep(
            title=f"{name} on {task.task.name}",
            inputs=_fingerprint_of(task.task, ("dev",)),
            before=model,
            task=task.task.path,
            max_tokens=usual.max_tokens,
            seed=usual.seed,
        )

    def _finetune(self, phase: Phase, task: LabelledTask, model: Model) -> FinetuneStep:
        settings = self.recipe.finetuning(phase)
        metric = settings.metric or metric_of(task.task.name)
        return FinetuneStep(
            title=f"{phase.name} on {task.task.name}",
            inputs=fingerprint(task.identity(), metric),
            before=model,
            task=task.task.path,
            settings=settings,
        )

    def _select(self, part: Part, task: LabelledTask) -> SelectStep | None:
        if part.text == "task":
            return None
        if part.text == "selected":
            return self._selected(part, task)
        if part.text in ("domain", "unrelated"):
            return self._corpus(part, task)
        key = part.text
        value = self.recipe.curated if key == "curated" else self.recipe.transfer
        if value is None:
            what = "the file of your passages" if key == "curated" else "the folder of another task"
            raise NearkinError(f"phase {part.name} needs {key}: name {what} as {key} in the recipe or as --{key}")
        if key == "transfer":
            other = read_task(value).path
            value = str(other / "train.jsonl" if other.is_dir() else other)
        return self._of_file(part, value, [task])

    def _selected(self, part: Part, task: LabelledTask) -> SelectStep:
        store, method = self._store_for(part), part.method or "knn"
        budget = self.recipe.budget(part)
        selector = find_selector(method)
        named = getattr(selector, "file", None)
        file = named and str(self.recipe.folder / Path(named).expanduser())
        if file is None:
            self._check(budget, store)
        text_alone = getattr(selector, "text_alone", False) and self.recipe.near != "all"
        read = self._texts(store, task.task) if text_alone else self._whole_store(store)
        return self._step(
            part,
            [task],
            method,
            budget=budget,
            inputs=[*read, *_files(file)],
            method_file=file if file != named else None,
        )

    def _check(self, budget: Budget, store: Store) -> None:
        try:
            budget.check(store.corpus)
        except InputError as error:
            usual = PRESETS[self.recipe.preset]["budget"].get("tokens")
            if usual is None or budget.tokens != usual:
                raise
            raise InputError(f"{error} (the preset {self.recipe.preset} asks for so many)") from error

    def _corpus(self, part: Part, task: LabelledTask) -> SelectStep:
        name = self._corpus_name(part, task)
        # Tasks of one domain share its training, so its set is guarded against all of theirs.
        together = [other for other in self.tasks if self._named(part, other) == name]
        together.sort(key=lambda other: other.task.name)
        there = self._corpora()
        if name not in there:
            return self._of_file(part, name, together)
        store = self._store_for(part)
        read = [shard.text for corpus in store.manifest.corpora if corpus.name == name for shard in corpus.shards]
        read += self._whole_store(store) if self.recipe.near == "all" else []  # which compares embeddings
        return self._step(part, together, f"domain:source={name}", inputs=read, name=name)

    def _named(self, part: Part, task: LabelledTask) -> str | None:
        """The corpus of DAPT or not-DAPT as the recipe names it; else the domain on the task's card."""
        if part.text == "unrelated":
            return self.recipe.unrelated
        card = cards().get(task.task.name, {}).get("domain")
        return self.recipe.domain or (card if card in self._corpora() else None)

    def _corpus_name(self, part: Part, task: LabelledTask) -> str:
        """A corpus of the store, or a path."""
        key = "domain" if part.text == "domain" else "unrelated"
        named, there = self._named(part, task), self._corpora()
        if named is not None and (named in there or "/" in named or Path(named).is_file()):
            return named
        has = f" (it has {', '.join(there)})" if there else ""
        if self.store is None:
            raise NearkinError(f"phase {part.name} needs a store with its corpus: name it as store or as --store")
        if named is None:
            raise NearkinError(
                f"phase {part.name} on {task.task.name} needs {key}: name a corpus of {self.store.path}{has} "
                f"as {key} in the recipe or as --{key}"
            )
        raise NearkinError(f"{self.store.path} has no corpus {named!r}{has}: mend {key}, or add it by `nearkin build`")

    def _corpus_title(self, part: Part, task: LabelledTask) -> str:
        named = self._corpus_name(part, task)
        return named if named in self._corpora() else Path(named).name

    def _of_file(self, part: Part, file: str, tasks: Sequence[LabelledTask]) -> SelectStep:
        name = Path(file).parent.name if Path(file).name == "train.jsonl" else Path(file).name
        return self._step(part, tasks, "curated", file=file, inputs=_files(file), name=name)

    def _step(
        self,
        part: Part,
        tasks: Sequence[LabelledTask],
        method: str,
        inputs: Sequence[str],
        file: str | None = None,
        budget: Budget | None = None,
        name: str = "",
        method_file: str | None = None,
    ) -> SelectStep:
        first, *others = [task.task for task in tasks]
        guarded = [path for task in others for path in (task.path / "dev.jsonl", task.path / "test.jsonl")]
        guarded = guarded if part.guarded else []
        splits = ("train", "dev", "test")
        texts = [_fingerprint_of(first, splits), *(_fingerprint_of(other, splits[1:]) for other in others)]
        return SelectStep(
            title=f"{part.name} for {', '.join(task.task.name for task in tasks)}" + (f": {name}" if name else ""),
            inputs=fingerprint(*texts, *inputs),
            task=first.path,
            method=method,
            budget=budget or self.recipe.budget(part),
            store=None if file else self.recipe.store,
            file=file,
            exclude=tuple(guarded),
            # A file has no embeddings.
            near="ngrams" if file and self.recipe.near == "all" else self.recipe.near,
            encoder=self.recipe.encoder,
            seed=self.recipe.seed,
            guarded=part.guarded,
            method_file=method_file,
        )

    def _corpora(self) -> list[str]:
        return [corpus.name for corpus in self.store.manifest.corpora] if self.store is not None else []

    def _store_for(self, part: Part) -> Store:
        if self.store is None:
            raise NearkinError(f"phase {part.name} selects from a store: name one as store in the recipe or as --store")
        return self.store

    def _texts(self, store: Store, task: Task) -> list[str]:
        """What a method reads that asks for no vectors: all texts, and the tokenizer that counts a budget."""
        texts = store.corpus.identity
        counter = resolve_model(Pool(store, task, self.recipe.encoder).tokenizer) / "tokenizer.json"
        return [*texts, sha256_of_file(counter) if counter.is_file() else ""]

    def _whole_store(self, store: Store) -> list[str]:
        """What a method may draw on: all texts, and the vectors of the encoder, or of all where none is named."""
        encoders = store.manifest.encoders
        one = self.recipe.encoder
        slugs = [open_encoder(store, one)] if one and model_of_cascade(one) is None else sorted(store.manifest.in_use)
        parts = store.corpus.identity
        for slug in slugs:
            kind = encoders[slug].settings.get("index", "stream")
            index = store.manifest.indexes.get(f"{slug}-{kind}")
            exact = index is None or BY_NAME[kind].exact  # all of these find the same
            parts += [slug, encoders[slug].fingerprint]
            if index is not None and not exact:
                searched = {name: index.settings.get(name) for name in ("effort", "rerank")}
                parts += [kind, index.embeddings, str(index.lists), json.dumps(searched, sort_keys=True)]
            if one and one not in encoders and "cascade" in encoders[slug].settings:
                parts.append(str(encoders[slug].settings["cascade"]))  # the precision that a cascade ends in
        return [*parts, one if one and model_of_cascade(one) is not None else ""]


def _files(location: str | None) -> list[str]:
    return [sha256_once(path) for path in find_files(location)] if location is not None else []


def _fingerprint_of(task: Task, splits: Sequence[str]) -> str:
    return fingerprint(*(TextFingerprint.of(task.splits[s]["text"]) for s in splits if s in task.splits))
