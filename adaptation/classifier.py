"""One finetuning run: classifier, training, dev F1 an epoch, best epoch kept in memory."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, set_seed

from adaptation.batches import ShuffledBatches
from adaptation.finetune import SeedResult, f1
from adaptation.loading import load_classifier, load_config, load_tokenizer, token_limit
from adaptation.masking import Epoch, Pieces, generator, padded, padded_lengths
from adaptation.settings import FinetuneSettings
from adaptation.tasks import LabelledTask, Metric
from adaptation.texts import blocks, encoded_pieces
from adaptation.training import SteadyTrainer, mean_over_step, processes, training_arguments


class Finetuning:
    """A task tokenised for a model, to be trained once a seed.

    Args:
        folder: the model's.
        task: labelled.
        settings: see `FinetuneSettings`.
        metric: F1 that chooses the best epoch.
        bf16: autocast to bfloat16.
        say: is told each epoch's dev F1.
    """

    def __init__(
        self,
        folder: Path,
        task: LabelledTask,
        settings: FinetuneSettings,
        metric: Metric,
        bf16: bool,
        say: Callable[[str], None],
    ) -> None:
        self._processes = processes()
        self._folder, self._task, self._settings, self._metric, self._say = folder, task, settings, metric, say
        self.bf16 = bf16
        tokenizer = load_tokenizer(folder)
        self.collate = partial(collate, pad=tokenizer.pad_token_id or 0)
        self.max_tokens = token_limit(settings.max_tokens, load_config(folder), tokenizer)
        encoded = {name: encode(table, tokenizer, self.max_tokens) for name, table in task.splits.items()}
        self.splits = {name: Pieces(examples) for name, (examples, _) in encoded.items()}
        self.cut = sum(cut for _, cut in encoded.values())
        train = len(self.splits["train"])
        count = self._processes.num_processes
        self.per_device = max(settings.batch_size // count, 1)
        self.steps = math.ceil(train / (self.per_device * count))
        self.epochs = settings.passes(train, self.steps)

    @property
    def is_main_process(self) -> bool:
        return bool(self._processes.is_main_process)

    def fresh_tokenizer(self) -> Any:
        """The model's tokenizer without the truncation that encoding left on it."""
        return load_tokenizer(self._folder)

    def train(self, seed: int) -> tuple[Any, SeedResult, npt.NDArray[np.int64]]:
        """Trains with `seed`; returns the classifier at its best dev epoch, its result, its classes of test examples.

        Args:
            seed: draws new layers, order and dropout.
        """
        started, epoch = time.monotonic(), Epoch()
        set_seed(seed)
        model = load_classifier(self._folder, self._task.labels, self._settings.dropout)
        renew_head(model, seed)
        best = BestEpoch(self, seed, self._settings.patience)
        with tempfile.TemporaryDirectory(prefix="nearkin-") as scratch:  # which Trainer asks for; nothing is kept there
            trainer = SteadyTrainer(
                model=model,
                args=training_arguments(
                    Path(scratch),
                    steps=self.steps * self.epochs,
                    num_train_epochs=self.epochs,
                    bf16=self.bf16,
                    seed=seed,
                    learning_rate=self._settings.learning_rate,
                    per_device_train_batch_size=self.per_device,
                ),
                compute_loss_func=mean_over_step(summed_loss),
                train_dataset=self.splits["train"],
                data_collator=self.collate,
                order_seed=seed,
                epoch=epoch,
                batches=ShuffledBatches,
                callbacks=[best],
            )
            trainer.train()
        model.load_state_dict(best.weights)
        predicted = self.predict(model, "test")
        test = self.score(predicted, "test")
        self._say(f"seed {seed}: best epoch {best.epoch}, dev {best.dev:.2f}, test {test:.2f}")
        seconds = round(time.monotonic() - started, 3)
        return model, SeedResult(best.dev, test, best.epoch, best.epochs, seconds), predicted

    def predict(self, model: Any, split: str) -> npt.NDArray[np.int64]:
        """Class ids of a split's examples, int64 [examples], in file order."""
        pieces = self.splits[split]
        order = np.argsort(-pieces.lengths, kind="stable")
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        predictions = np.zeros(len(order), np.int64)
        batch = 4 * self._settings.batch_size
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            for at in range(0, len(order), batch):
                rows = order[at : at + batch]
                inputs = self.collate(pieces.__getitems__(rows.tolist()))
                del inputs["labels"]
                logits = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
                predictions[rows] = logits.argmax(-1).cpu().numpy()
        model.train(was_training)
        return predictions

    def score(self, predicted: npt.NDArray[np.int64], split: str) -> float:
        """F1 in percent of a split's class ids."""
        return f1(self._task.splits[split]["label"].to_numpy(), predicted, self._metric)

    def tell_epoch(self, seed: int, epoch: int, dev: float) -> None:
        """Says how an epoch went."""
        self._say(f"seed {seed}, epoch {epoch} of {self.epochs}: dev {self._metric}-F1 {dev:.2f}")


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats summed over examples; `logits` [rows, classes]."""
    return cross_entropy(logits.float(), labels, reduction="sum")


class BestEpoch(TrainerCallback):  # type: ignore[misc]
    """Measures dev F1 after each epoch, keeps the best epoch's weights, stops when patience is out.

    The weights stay in memory: Trainer's own way writes the model and its optimiser to disk every epoch, which costs
    more than a small task's epoch does.
    """

    def __init__(self, run: Finetuning, seed: int, patience: int) -> None:
        self._run, self._seed, self._patience = run, seed, patience
        self.dev, self.epoch, self.epochs = -1.0, 0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.epochs += 1
        dev = self._run.score(self._run.predict(model, "dev"), "dev")
        self._run.tell_epoch(self._seed, self.epochs, dev)
        if dev > self.dev:
            self.dev, self.epoch = dev, self.epochs
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        elif self.epochs - self.epoch >= self._patience:
            control.should_training_stop = True


def collate(batch: tuple[list[int], pa.Table], pad: int) -> dict[str, torch.Tensor]:
    """Tensors ``input_ids``, ``attention_mask`` [rows, longest] and ``labels`` [rows], int64.

    Args:
        batch: of `Pieces` over what `encode` gives.
        pad: id of the padding token.
    """
    table = batch[1]
    ids = padded(table["input_ids"], pad)
    labels = torch.from_numpy(table["label"].to_numpy().astype(np.int64))
    return {"input_ids": ids, "attention_mask": padded_lengths(table["length"], ids.shape[1]), "labels": labels}


def encode(table: pa.Table, tokenizer: Any, max_tokens: int) -> tuple[Any, int]:
    """A `datasets.Dataset` of ``input_ids`` (list<int32>), ``length`` (int32), ``label`` (int64); how many were cut.

    Args:
        table: columns ``text`` and ``label`` (class id).
        tokenizer: a fast transformers tokenizer.
        max_tokens: longer examples are cut on the right.
    """
    import datasets

    firsts, cut = [], 0
    for block in blocks(table["text"]):
        encoded = encoded_pieces(table["text"][block], tokenizer, max_tokens)
        pieces = np.bincount(encoded["overflow_to_sample_mapping"])
        cut += int((pieces > 1).sum())
        kept = [encoded["input_ids"][first] for first in np.cumsum(pieces) - pieces]
        firsts.append(pa.array(kept, pa.list_(pa.int32())))
    column = pa.chunked_array(firsts, pa.list_(pa.int32()))
    found = pa.table({"input_ids": column, "length": pc.list_value_length(column), "label": table["label"]})
    return datasets.Dataset(datasets.table.InMemoryTable(found)), cut


def renew_head(model: Any, seed: int) -> None:
    """Draws every layer outside the encoder, and the encoder's pooler, anew by `seed`."""
    draws = generator(seed)
    deviation = getattr(model.config, "initializer_range", 0.02)
    encoder = model.base_model
    new = [module for name, module in model.named_children() if name != model.base_model_prefix]
    if getattr(encoder, "pooler", None) is not None:
        new.append(encoder.pooler)
    with torch.no_grad():
        for module in (m for part in new for m in part.modules()):
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=draws) * deviation)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, torch.nn.LayerNorm):
                module.reset_parameters()
