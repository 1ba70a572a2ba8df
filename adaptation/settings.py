"""How to train a masked LM further and how to finetune, each with the defaults of Don't Stop Pretraining."""

from __future__ import annotations

from dataclasses import dataclass

from adaptation.tasks import Metric
from selection.errors import NearkinError

SEEDS = 2**32  # NumPy's generator, which set_seed seeds too, takes no more
LARGE_TASK = 5000


@dataclass(frozen=True)
class AdaptSettings:
    """How to train; the defaults are those of TAPT (Don't Stop Pretraining, appendix table 13).

    Attributes:
        epochs: passes over the training text, each with new masks.
        max_steps: optimiser steps instead of `epochs`.
        batch_size: pieces an optimiser step takes, over all processes; reached by gradient accumulation.
        micro_batch: pieces a forward pass takes on one device.
        learning_rate: peak, after a warm-up over 6 % of the steps, before a linear decay.
        max_tokens: longest piece; None for what the model takes, at most 512.
        mlm_probability: share of tokens to predict; of them 80 % are masked, 10 % replaced, 10 % left.
        whole_word: choose words instead of tokens.
        held_out: share of distinct texts to measure on where no file of them is given.
        head_warmup_steps: steps that train a new head alone, before the encoder moves; never more than the run has.
        head_learning_rate: their peak learning rate.
        bf16: ``auto``, ``on`` or ``off``.
        seed: draws held-out texts, order, masks, dropout and a new head.
        checkpoint_minutes: time between checkpoints; changes no result.
        task_batch: with a task to be learnt jointly, its labelled examples an optimiser step takes.
        task_weight: of their mean cross-entropy against the masked-LM loss.
        keep_order: take the texts in the order in which they are given (a set's ``--order curriculum``), every epoch.
    """

    epochs: int = 100
    max_steps: int | None = None
    batch_size: int = 256
    micro_batch: int = 32
    learning_rate: float = 1e-4
    max_tokens: int | None = None
    mlm_probability: float = 0.15
    whole_word: bool = False
    held_out: float = 0.05
    head_warmup_steps: int = 100
    head_learning_rate: float = 3e-3
    bf16: str = "auto"
    seed: int = 0
    checkpoint_minutes: float = 5.0
    keep_order: bool = False
    task_batch: int = 16
    task_weight: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "epochs", "batch_size", "micro_batch", "learning_rate", "head_learning_rate")
        _positive(self, "task_batch", "task_weight")
        for name in ("mlm_probability", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise NearkinError(f"{name.replace('_', ' ')} must lie between 0 and 1, not {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise NearkinError(f"the number of steps must be at least 1, not {self.max_steps}")
        if not 0 <= self.seed < SEEDS:
            raise NearkinError(f"the seed must lie between 0 and {SEEDS - 1}, not {self.seed}")
        if self.head_warmup_steps < 0:
            raise NearkinError(f"the head's warm-up must be 0 steps or more, not {self.head_warmup_steps}")

    @staticmethod
    def unshaping(joint: bool, held_out_file: bool) -> set[str]:
        """Names of the settings that change no result.

        Args:
            joint: a task is learnt along.
            held_out_file: a file of texts to measure on is given.
        """
        names = {"checkpoint_minutes"} if joint else {"checkpoint_minutes", "task_batch", "task_weight"}
        return names | {"held_out"} if held_out_file else names


@dataclass(frozen=True)
class FinetuneSettings:
    """How to finetune; the defaults are those of the paper.

    Attributes:
        seeds: runs, with seeds 0 to seeds - 1.
        epochs: most passes over train; None for 10, or 3 above `LARGE_TASK` examples.
        max_steps: about so many optimiser steps at most, in whole epochs: fewer of them where train is large.
        patience: epochs without a better dev F1 after which a run stops.
        batch_size: examples an optimiser step takes.
        learning_rate: peak, after a warm-up over 6 % of the steps, before a linear decay.
        max_tokens: longer examples are cut; None for what the model takes, at most 512.
        dropout: in encoder and classifier.
        metric: ``macro`` or ``micro`` F1; None for what the task's card says, else macro.
        bf16: ``auto``, ``on`` or ``off``.
        keep_model: also write the classifier of the seed with the best dev F1 to ``OUT/model``.
    """

    seeds: int = 5
    epochs: int | None = None
    max_steps: int | None = None
    patience: int = 3
    batch_size: int = 16
    learning_rate: float = 2e-5
    max_tokens: int | None = None
    dropout: float = 0.1
    metric: Metric | None = None
    bf16: str = "auto"
    keep_model: bool = False

    def __post_init__(self) -> None:
        _positive(self, "seeds", "patience", "batch_size", "learning_rate")
        if self.epochs is not None and self.epochs < 1:
            raise NearkinError(f"epochs must be at least 1, not {self.epochs}")
        if self.max_steps is not None and self.max_steps < 1:
            raise NearkinError(f"steps must be at least 1, not {self.max_steps}")
        if self.metric not in (None, "macro", "micro"):
            raise NearkinError(f"metric {self.metric} is neither macro nor micro")

    def passes(self, examples: int, steps: int) -> int:
        """Epochs, at most, over so many training examples in so many steps each."""
        epochs = self.epochs or (3 if examples > LARGE_TASK else 10)
        return epochs if self.max_steps is None else min(epochs, max(round(self.max_steps / steps), 1))


def _positive(settings: AdaptSettings | FinetuneSettings, *names: str) -> None:
    """Refuses settings that must be more than 0 and are not."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise NearkinError(f"{name.replace('_', ' ')} must be more than 0, not {getattr(settings, name)}")
