"""Masked-LM and task loss together: the first stage of TLM (Yao et al., 2022, section 3.2).

Each optimiser step sees masked text and some labelled examples; their losses are added, the task's multiplied by a
weight. The classifier that this takes is thrown away afterwards, and the encoder finetuned like any other (the second
stage): with a classifier kept, this arm of a comparison would start from another place than the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from adaptation.classifier import collate, encode
from adaptation.masking import Pieces, generator
from adaptation.tasks import LabelledTask
from adaptation.training import MaskedLMTrainer

HEAD = "nearkin_task_head"


@dataclass(frozen=True)
class JointTask:
    """A task whose loss is added to the masked LM's.

    Attributes:
        pieces: train examples, columns ``input_ids``, ``length``, ``label``.
        classes: number of labels.
        batch: examples an optimiser step takes.
        weight: of their mean cross-entropy, against a masked-LM loss of weight 1.
    """

    pieces: Pieces
    classes: int
    batch: int
    weight: float

    @classmethod
    def of(cls, task: LabelledTask, tokenizer: Any, max_tokens: int, batch: int, weight: float) -> JointTask:
        """A task tokenised; examples longer than `max_tokens` are cut."""
        pieces = Pieces(encode(task.splits["train"], tokenizer, max_tokens)[0])
        return cls(pieces, len(task.labels), batch, weight)

    def add_head(self, model: Any, dropout: float, seed: int) -> None:
        """Gives a masked LM a classifier over its [CLS] vector, drawn by `seed`; see `remove_head`."""
        width = model.config.hidden_size
        layers = torch.nn.Sequential(
            torch.nn.Dropout(dropout), torch.nn.Linear(width, width), torch.nn.Tanh(),
            torch.nn.Dropout(dropout), torch.nn.Linear(width, self.classes),
        )  # fmt: skip
        draws = generator(seed)
        with torch.no_grad():
            for layer in layers:
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws) * 0.02)
                    layer.bias.zero_()
        model.add_module(HEAD, layers)


def remove_head(model: Any) -> None:
    """Takes away what `JointTask.add_head` gave."""
    if hasattr(model, HEAD):
        delattr(model, HEAD)


class JointTrainer(MaskedLMTrainer):
    """`MaskedLMTrainer` that adds a task's loss to every optimiser step.

    Examples are drawn by (seed, step, micro-batch) alone, so a resumed run sees those that an undisturbed one sees.

    Args:
        task: whose model has the head that `JointTask.add_head` gives.
        pad: id of the padding token.
        others: arguments of `MaskedLMTrainer`; one process trains alone, as `adaptation.mlm` sees to.
    """

    def __init__(self, *, task: JointTask, pad: int, **others: Any) -> None:
        super().__init__(**others)
        self._task, self._pad, self._at = task, pad, (-1, 0)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        rows = self._draw()
        if not rows:
            return loss
        batch = collate(self._task.pieces.__getitems__(rows), self._pad)
        labelled = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
        labels = labelled.pop("labels")
        self.state.num_input_tokens_seen += int(batch["attention_mask"].sum())
        with self.accelerator.autocast():  # which Trainer puts around the whole model's forward alone
            scores = getattr(model, HEAD)(model.base_model(**labelled).last_hidden_state[:, 0])
        total = cross_entropy(scores.float(), labels, reduction="sum")
        return loss + self._task.weight * total / self._task.batch

    def _draw(self) -> list[int]:
        """Rows for the next micro-batch; a step's micro-batches take `JointTask.batch` together."""
        step, micro = self.state.global_step, self.current_gradient_accumulation_steps  # fewer at an epoch's end
        number = self._at[1] + 1 if self._at[0] == step else 0
        self._at = (step, number)
        count = self._task.batch // micro + (number < self._task.batch % micro)
        draws = generator(self.args.seed, step, number)
        return torch.randint(len(self._task.pieces), (count,), generator=draws).tolist()
