"""What a run will take: optimiser steps, tokens and seconds of each step that is still to do.

Tokens come of the model's own tokenizer on the task's text and on a sample of the corpus. Seconds come of a few
forward and backward passes of a copy of the model over task text on this machine, once with the masked-LM loss and
once as a classifier. Early stopping is not foreseen, so finetuning may take less; selection is put at measured rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads

from adaptation.loading import load_config, load_masked_lm, load_tokenizer, token_limit, transformer_folder
from adaptation.speed import Speed, classifier_speed, masked_lm_speed
from adaptation.steps import LOSS_DOCUMENTS, AdaptStep, BaseModel, FinetuneStep, LossStep, SelectStep, Step
from adaptation.tasks import LabelledTask, load_labelled
from adaptation.texts import MOST_HELD_OUT
from selection.corpus import Corpus
from selection.domains import domains_of, sampled
from selection.selectors.domain import DomainSelector, PartOfCorpus
from selection.selectors.registry import find_selector
from selection.store import Store
from selection.tokens import count_tokens

SAMPLE = 500
FORWARD = 1 / 3  # of a forward and backward pass
HEAD_ALONE = 1 / 2
MEASURED_AT_ONCE = 8  # pieces of a trial pass that foretells how long a loss takes
START = 0.5  # seconds to load a model and its text
RANKED, ADMITTED = 40_000, 3_000  # passages a second, two cores: ranking the corpus; reading, guarding and writing


@dataclass(frozen=True)
class Prediction:
    """Optimiser steps, tokens that go through the model in training, seconds; None where there is no such thing."""

    steps: int | None
    tokens: int | None
    seconds: float


@dataclass(frozen=True)
class Size:
    """Texts, of which some were measured.

    Attributes:
        texts: how many in all.
        lengths: tokens of a sample of them, special tokens left out, int64 [sample].
        specials: special tokens of a piece.
    """

    texts: float
    lengths: npt.NDArray[np.int64]
    specials: int

    def pieces(self, limit: int) -> float:
        """Into how many pieces of at most `limit` tokens they are cut."""
        return self.texts * float(np.ceil(np.maximum(self.lengths, 1) / (limit - self.specials)).mean())

    def tokens(self, limit: int) -> float:
        """Tokens of those pieces, special ones included."""
        return self.texts * float(self.lengths.mean()) + self.specials * self.pieces(limit)

    def cut(self, limit: int) -> float:
        """Tokens where the rest of a longer text is cut off."""
        return self.texts * float(np.minimum(self.lengths + self.specials, limit).mean())


class Predictor:
    """Predicts steps of one run; the model is measured when a step first needs it.

    Args:
        model: what every phase starts from.
        cache: where steps' results lie.
    """

    def __init__(self, model: str, cache: Path) -> None:
        self.folder, self.cache = transformer_folder(model), cache
        self.tokenizer = load_tokenizer(self.folder)
        self.config = load_config(self.folder)
        self._tasks: dict[Path, LabelledTask] = {}
        self._sizes: dict[str, Size] = {}
        self._speeds: dict[str, Speed] = {}

    def predict(self, step: Step) -> Prediction:
        """What `step` takes if it is run now; nothing where its result is there."""
        if step.is_done(self.cache):
            return Prediction(None, None, 0.0)
        if isinstance(step, SelectStep):
            return Prediction(None, None, START + self._select_seconds(step))
        if isinstance(step, AdaptStep):
            return self._adapt(step)
        if isinstance(step, LossStep):
            if self._new_head and isinstance(step.before, BaseModel):
                return Prediction(None, None, START)  # a model without a head has no loss
            limit = self._limit(step.max_tokens)
            size = self._split(step.task, "dev")
            tokens = size.tokens(limit) * min(1, LOSS_DOCUMENTS / size.texts)
            speed = self._masked_lm(step.task, limit, "off", MEASURED_AT_ONCE)  # losses are computed in float32
            return Prediction(None, None, START + FORWARD * tokens * speed.token)
        assert isinstance(step, FinetuneStep)
        return self.finetuning(step, step.settings.seeds - step.seeds_done(self.cache))

    def _adapt(self, step: AdaptStep) -> Prediction:
        settings, limit = step.settings, self._limit(step.settings.max_tokens)
        sizes = [self._set(chosen) for chosen in step.sets] + ([self._split(step.task, "train")] if step.task else [])
        pieces, tokens = sum(size.pieces(limit) for size in sizes), sum(size.tokens(limit) for size in sizes)
        epoch = max(math.ceil(pieces / settings.batch_size), 1)
        steps = settings.max_steps or settings.epochs * epoch
        seen = steps * settings.batch_size * tokens / pieces if settings.max_steps else settings.epochs * tokens
        guide = step.task or step.sets[0].task
        speed = self._masked_lm(guide, limit, settings.bf16, settings.micro_batch)
        if step.joint and step.task:  # and labelled examples, each step
            train = self._split(step.task, "train")
            seen += steps * settings.task_batch * train.cut(limit) / train.texts
        if step.held_out is not None:
            measured = self._split(guide, "dev").tokens(limit)
        else:
            measured = min(settings.held_out, MOST_HELD_OUT / sum(size.texts for size in sizes)) * tokens
        extra = 2 * FORWARD * measured * speed.token
        if self._new_head and isinstance(step.before, BaseModel):
            warmup = min(settings.head_warmup_steps, steps)
            extra += HEAD_ALONE * warmup * (seen / steps) * speed.token
        return Prediction(steps, round(seen), START + seen * speed.token + steps * speed.step + extra)

    def finetuning(self, step: FinetuneStep, runs: int) -> Prediction:
        """What so many seeds take, whatever is there."""
        settings, limit = step.settings, self._limit(step.settings.max_tokens)
        train, dev, test = (self._split(step.task, split) for split in ("train", "dev", "test"))
        each = math.ceil(train.texts / settings.batch_size)
        epochs = settings.passes(int(train.texts), each)
        steps, seen = epochs * each, epochs * train.cut(limit)
        speed = self._classifier(step)
        measured = FORWARD * (epochs * dev.cut(limit) + test.cut(limit))
        seconds = runs * (START + (seen + measured) * speed.token + steps * speed.step)
        return Prediction(runs * steps, round(runs * seen), seconds)

    def _select_seconds(self, step: SelectStep) -> float:
        corpus = len(Store(step.store).corpus) if step.store and not step.budget.everything else 0
        return corpus / RANKED + self._set(step).texts / ADMITTED

    def _limit(self, asked: int | None) -> int:
        return token_limit(asked, self.config, self.tokenizer)

    def _task(self, path: Path) -> LabelledTask:
        if path not in self._tasks:
            self._tasks[path] = load_labelled(path)
        return self._tasks[path]

    def _split(self, task: Path, split: str) -> Size:
        name = f"{task}/{split}"
        if name not in self._sizes:
            texts = self._task(task).splits[split]["text"]
            self._sizes[name] = self._size(len(texts), texts.take(_spread(len(texts))))
        return self._sizes[name]

    def _set(self, step: SelectStep) -> Size:
        if step.key not in self._sizes:
            self._sizes[step.key] = self._set_there(step) if step.is_done(self.cache) else self._set_to_come(step)
        return self._sizes[step.key]

    def _set_there(self, step: SelectStep) -> Size:
        file = pads.dataset(step.folder(self.cache) / "augmentation.parquet")
        count = file.count_rows()
        return self._size(count, file.take(_spread(count), columns=["text"])["text"])

    def _set_to_come(self, step: SelectStep) -> Size:
        if step.file is not None:
            counted = [0]

            def count(batches: Any) -> Any:
                for batch in batches:
                    counted[0] += len(batch)
                    yield batch

            (_, batches), *_ = domains_of("set", step.file, "text")
            texts = pa.chunked_array(list(sampled(count(batches), SAMPLE, step.seed)), pa.large_string())
            return self._size(counted[0], texts)
        assert step.store is not None
        corpus: Corpus = Store(step.store).corpus
        selector = find_selector(step.method)
        passages = PartOfCorpus(corpus, selector.source if isinstance(selector, DomainSelector) else None)
        sample = passages.doc_ids(_spread(len(passages)).to_numpy())
        size = self._size(len(passages), corpus.take(sample, ["text"])["text"])
        budget, examples = step.budget, len(self._task(step.task).splits["train"])
        bounds = [size.texts, *([budget.k * examples] if budget.k else []), *([budget.docs] if budget.docs else [])]
        bounds += [budget.tokens / max(float(size.lengths.mean()), 1)] if budget.tokens else []
        return Size(min(bounds), size.lengths, size.specials)

    def _size(self, count: int, texts: pa.ChunkedArray) -> Size:
        return Size(count, count_tokens(texts, str(self.folder)), self.tokenizer.num_special_tokens_to_add())

    @cached_property
    def _new_head(self) -> bool:
        return bool(load_masked_lm(self.folder)[1])

    def _masked_lm(self, task: Path, limit: int, bf16: str, at_once: int) -> Speed:
        like = f"masked LM, {limit} tokens, {bf16}, {at_once} at once"
        if like not in self._speeds:
            texts = self._task(task).splits["train"]["text"]
            some = texts.take(_spread(len(texts)))
            self._speeds[like] = masked_lm_speed(self.folder, some, limit, bf16, at_once)
        return self._speeds[like]

    def _classifier(self, step: FinetuneStep) -> Speed:
        like = f"classifier, {step.settings.batch_size} at once, {step.settings.max_tokens}, {step.settings.bf16}"
        if like not in self._speeds:
            task = self._task(step.task)
            few = {split: table.take(_spread(len(table))) for split, table in task.splits.items()}
            few_of_it = LabelledTask(task.task, task.labels, few)
            self._speeds[like] = classifier_speed(self.folder, few_of_it, step.settings)
        return self._speeds[like]


def _spread(count: int) -> pa.Array:
    """At most `SAMPLE` row numbers, evenly over `count`."""
    return pa.array(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))
