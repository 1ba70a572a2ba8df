"""Steps of a run: select, adapt, loss, finetune. Each knows what it depends on, so it has a name before it is run.

A step's key is the fingerprint of what shapes its result: its settings, the content of what it reads, and the keys of
the steps it stands on. Its result lies in ``CACHE/<kind>-<first 16 digits of the key>``, where it appears whole or not
at all, so a step is done when that is there, whichever recipe it was done for. What changes no result (paths, the time
between checkpoints, how many seeds are still to come) is not part of a key.

Another kind of training is another class like `AdaptStep`, with a `location` of its model, and a member of `Model`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from adaptation import finetune as finetuning
from adaptation import mlm
from adaptation.finetune import FinetuneResult, SeedResult
from adaptation.settings import AdaptSettings, FinetuneSettings
from selection.files import fingerprint, locked, sweep, write_json
from selection.filling import Budget

if TYPE_CHECKING:
    from selection.selectors import Selector

logger = logging.getLogger(__name__)

FORMAT = "3"  # raised where a step comes to give another result for the same inputs
LOSS_DOCUMENTS = 1000


@dataclass(frozen=True)
class Step(ABC):
    """What every step has.

    Attributes:
        title: what it does, for a person.
        inputs: fingerprint of the content of the files it reads.
    """

    title: str
    inputs: str
    kind: ClassVar[str]
    result: ClassVar[str]

    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """What else shapes the result: settings, and keys of other steps; plain values."""

    @abstractmethod
    def run(self, cache: Path) -> None:
        """Makes the result; goes on where an earlier call was stopped."""

    def make(self, cache: Path) -> None:
        """Runs it where its result is not there.

        Raises:
            NearkinError: another process that shares the cache is at it.
        """
        busy = f"another run that shares {cache} is at {self.kind} {self.title}: wait for it, and start this again"
        with locked(cache / ".locks" / self.folder(cache).name, busy):
            if not self.is_done(cache):
                sweep(cache, self.folder(cache).name)
                sweep(self.folder(cache))
                self.run(cache)

    @cached_property
    def key(self) -> str:
        return fingerprint(FORMAT, self.kind, self.inputs, json.dumps(self.shape(), sort_keys=True))

    def folder(self, cache: Path) -> Path:
        return cache / f"{self.kind}-{self.key[:16]}"

    def is_done(self, cache: Path) -> bool:
        return (self.folder(cache) / self.result).is_file()

    def record(self, cache: Path) -> dict[str, Any]:
        """What the step wrote about itself."""
        return dict(json.loads((self.folder(cache) / self.result).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class BaseModel:
    """The model that phases start from; `key` is the fingerprint of its files."""

    name: str
    key: str

    def location(self, cache: Path) -> str:
        return self.name


@dataclass(frozen=True)
class SelectStep(Step):
    """A set for a task: of the store, or of a file of the user's, which passes the same guard.

    Attributes:
        store: None where a file is given.
        file: what `selection.finding.find_files` takes.
        exclude: files of texts that must not be selected beside the task's own.
        guarded: whether dev and test texts are kept out.
        method_file: what `method` reads, where its name says so by a path of a recipe.
    """

    task: Path
    method: str
    budget: Budget
    store: Path | None = None
    file: str | None = None
    exclude: tuple[Path, ...] = ()
    near: str = "ngrams"
    encoder: str | None = None
    seed: int = 0
    guarded: bool = True
    method_file: str | None = None
    kind: ClassVar[str] = "select"
    result: ClassVar[str] = "manifest.json"

    def shape(self) -> dict[str, Any]:
        shape = {"method": self.method, "budget": asdict(self.budget), "near": self.near, "seed": self.seed}
        return shape if self.guarded else shape | {"guarded": False}

    def how(self) -> str | Selector:
        """The method, as `selection.augmentation.select` takes it."""
        from selection.selectors.curated import CuratedSelector
        from selection.selectors.registry import find_selector

        if self.file is not None:
            return CuratedSelector(self.file)
        if self.method_file is None:
            return self.method
        found: Any = find_selector(self.method)
        return cast("Selector", replace(found, file=self.method_file))

    def run(self, cache: Path) -> None:
        from selection.augmentation import select

        with _store_or_empty(self.store) as store:
            select(
                store, self.task, self.folder(cache), self.how(), self.budget, exclude=self.exclude, near=self.near,
                encoder=self.encoder if self.file is None else None, seed=self.seed, guarded=self.guarded,
                overwrite=True,
            )  # fmt: skip


@contextmanager
def _store_or_empty(store: Path | None) -> Iterator[Path]:
    """A store; where there is none, an empty one, since a user's own passages come from no store."""
    if store is not None:
        yield store
        return
    from selection.store import Store

    with tempfile.TemporaryDirectory(prefix="nearkin-") as folder:
        empty = Store(Path(folder) / "store", create=True)
        empty.save()
        yield empty.path


@dataclass(frozen=True)
class AdaptStep(Step):
    """A masked LM trained further.

    Attributes:
        before: where its weights come from.
        task: whose training text it reads; None for none.
        sets: what it reads besides.
        held_out: file of texts to measure on; None for a share of what it reads.
        joint: learn the labels of `task` along.
    """

    before: Model
    task: Path | None
    sets: tuple[SelectStep, ...]
    held_out: Path | None
    settings: AdaptSettings
    joint: bool = False
    kind: ClassVar[str] = "adapt"
    result: ClassVar[str] = mlm.RESULT_FILE

    def shape(self) -> dict[str, Any]:
        unshaping = AdaptSettings.unshaping(self.joint, self.held_out is not None)
        settings = asdict(self.settings) | dict.fromkeys(unshaping)
        sets = [chosen.key for chosen in self.sets]
        joint = {"joint": True} if self.joint else {}
        return {"before": self.before.key, "task": self.task is not None, "sets": sets, "settings": settings, **joint}

    def location(self, cache: Path) -> str:
        return str(self.folder(cache))

    def run(self, cache: Path) -> None:
        texts = [*([self.task] if self.task else []), *(chosen.folder(cache) for chosen in self.sets)]
        mlm.adapt(
            self.before.location(cache), texts, self.folder(cache), settings=self.settings, held_out=self.held_out,
            joint=self.task if self.joint else None, guarded=all(chosen.guarded for chosen in self.sets),
            overwrite=True,
        )  # fmt: skip


Model = BaseModel | AdaptStep
"""What a step can start from."""


@dataclass(frozen=True)
class LossStep(Step):
    """A model's masked-LM loss on a task's dev texts, by the same masks for every model; None without a head."""

    before: Model
    task: Path
    max_tokens: int | None
    seed: int
    kind: ClassVar[str] = "loss"
    result: ClassVar[str] = "loss.json"

    def shape(self) -> dict[str, Any]:
        return {"before": self.before.key, "max_tokens": self.max_tokens, "seed": self.seed}

    def run(self, cache: Path) -> None:
        from adaptation.domain_loss import domain_losses
        from adaptation.loading import NoMaskedLMError

        loss: float | None
        try:
            (loss,) = domain_losses(
                self.before.location(cache), [("dev", str(self.task / "dev.jsonl"))], documents=LOSS_DOCUMENTS,
                max_tokens=self.max_tokens, seed=self.seed, say=logger.info,
            )  # fmt: skip
        except NoMaskedLMError as error:
            logger.info("%s", error)
            loss = None
        write_json(self.folder(cache) / self.result, {"loss": loss, "documents": LOSS_DOCUMENTS})


@dataclass(frozen=True)
class FinetuneStep(Step):
    """Classifiers of a task, one a seed. More seeds later are added to those that are there."""

    before: Model
    task: Path
    settings: FinetuneSettings
    kind: ClassVar[str] = "finetune"
    result: ClassVar[str] = finetuning.RESULT_FILE

    def shape(self) -> dict[str, Any]:
        return {"before": self.before.key, "settings": {**asdict(self.settings), "seeds": None}}

    def is_done(self, cache: Path) -> bool:
        return self.seeds_done(cache) >= self.settings.seeds

    def seeds_done(self, cache: Path) -> int:
        """How many of the seeds asked for are there."""
        if not super().is_done(cache):
            return 0
        return sum(int(seed) < self.settings.seeds for seed in super().record(cache)["seeds"])

    def record(self, cache: Path) -> dict[str, Any]:
        """The figures of the seeds asked for, see `adaptation.finetune.figures`."""
        whole = super().record(cache)
        wanted = {int(seed): row for seed, row in whole["seeds"].items() if int(seed) < self.settings.seeds}
        by_seed = {seed: SeedResult(**row) for seed, row in wanted.items()}
        return finetuning.figures(FinetuneResult(self.folder(cache), whole["metric"], by_seed))

    def run(self, cache: Path) -> None:
        # Its key is the folder's name, so what lies there under another identity came of a model that was made anew.
        finetuning.finetune(
            self.before.location(cache), self.task, self.folder(cache), settings=self.settings, overwrite=True
        )
