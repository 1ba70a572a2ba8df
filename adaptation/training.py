"""transformers' Trainer with what this package needs of it: steady batches, plain failures, quiet output.

`SteadyTrainer` serves both kinds of training; `MaskedLMTrainer` adds the masked-LM loss. The loss is a mean over all
masked tokens of an optimiser step, however the step is divided into micro-batches and processes. (The stock path
takes the model's own mean of each micro-batch and adds those up undivided, since BERT's forward accepts loss
arguments and then ignores them.) The head runs on the masked positions alone: 15 % of a vocabulary-wide product that
costs as much as a small encoder.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from adaptation.attention import suit_cpu
from adaptation.batches import LengthGroupedBatches, Order
from adaptation.masking import HELD_OUT_EPOCH, IGNORED, Epoch, Masker, Pieces
from selection.errors import DISK_FULL, NearkinError, explain_os_error
from selection.files import locked, sync_files

logger = logging.getLogger(__name__)

ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "weight_decay": 0.01}
WARMUP_SHARE = 0.06
SPENT = "seconds.txt"
# safetensors and torch.save give the operating system's words in errors of their own.
FULL = (
    "No space left", "StorageFull", "quota", "File too large", "os error 28", "os error 122", "os error 27",
    "unexpected pos",
)  # fmt: skip
SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def training_arguments(work: Path, *, steps: int, bf16: bool, seed: int, **others: Any) -> Any:
    """TrainingArguments with the optimiser of Don't Stop Pretraining (appendix tables 13 and 14).

    Args:
        work: folder for checkpoints, removed by the caller.
        steps: optimiser steps of the whole run; the warm-up is 6 % of them, the decay linear.
        bf16: autocast to bfloat16.
        seed: seeds dropout.
        others: further arguments of TrainingArguments.
    """
    found = TrainingArguments(
        output_dir=str(work),
        warmup_steps=int(np.ceil(WARMUP_SHARE * steps)),
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        bf16=bf16,
        # Trainer takes bfloat16 on a CPU only where it is told that a CPU is meant.
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        seed=seed,
        report_to="none",
        save_strategy="no",
        logging_steps=max(steps // 50, 1),
        logging_nan_inf_filter=False,
        log_level="error",
        log_level_replica="error",
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        include_num_input_tokens_seen="non_padding",
        **ADAM,
        **others,
    )
    # `accelerate launch` sets a precision in the environment, which Trainer takes where bf16 is off.
    found.mixed_precision = "bf16" if bf16 else "no"
    return one_device(found)


def one_device(arguments: Any) -> Any:
    """Arguments for one device a process: Trainer would else divide batches among all GPUs, and losses with them."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def processes() -> Any:
    """accelerate's state of the processes that train together, as Trainer sees it.

    It is asked of TrainingArguments, since a state made without them takes several processes on CPUs for one.

    Raises:
        NearkinError: accelerate was told to divide the model among them.
    """
    for name, what in SHARDING.items():
        if os.environ.get(name, "").lower() in ("1", "t", "true", "y", "yes", "on"):
            raise NearkinError(
                f"accelerate is set up for {what} ({name}), and every process here holds a whole model: "
                "run `accelerate config` anew without it, or start with `accelerate launch --multi_gpu`"
            )
    with tempfile.TemporaryDirectory() as folder:
        return TrainingArguments(output_dir=folder, report_to="none").distributed_state


def of_first(value: int) -> int:
    """What the first of the processes that train together says; a trial or a draw may end otherwise in another."""
    together = processes()
    if together.num_processes == 1:
        return value
    told = torch.tensor([value], dtype=torch.int64, device=together.device)
    torch.distributed.broadcast(told, 0)
    return int(told.item())


@contextmanager
def alone_at(out: Path, lock: Path) -> Iterator[None]:
    """Holds the lock of an output folder; of processes that train together the first holds it for all.

    Raises:
        NearkinError: another training is at work there.
    """
    if not processes().is_main_process:
        yield
        return
    with locked(lock, f"another training is at work in {out}: wait for it, or name another folder"):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                lock.unlink()


def last_checkpoint(work: Path) -> Path | None:
    """The latest whole checkpoint in a folder; None where there is none."""
    # trainer_state.json is written last, so a checkpoint without it was cut short.
    whole = [f.parent for f in work.glob("checkpoint-*/trainer_state.json") if f.stat().st_size]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def seconds_at(checkpoint: Path | None) -> float:
    """What a run had taken when it wrote this checkpoint; 0 where that is not known."""
    try:
        return 0.0 if checkpoint is None else float((checkpoint / SPENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


def _disk_is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in DISK_FULL or any(words in str(error) for words in FULL)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Says plainly that a model could not be written for want of space, or of the user's share of it.

    Raises:
        NearkinError: that.
    """
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not _disk_is_full(error):
            raise
        raise explain_os_error(OSError(errno.ENOSPC, str(error)), f"writing {path}") from error


class EpochClock(TrainerCallback):  # type: ignore[misc]
    """Tells sampler and collator which epoch begins, in a resumed run too."""

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch.number = int(state.epoch or 0)


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint every `minutes`, whatever a step costs; processes follow the first one's clock.

    Each notes what `spent` says, the seconds that the run took so far, so that a resumed one counts them too.
    """

    def __init__(self, minutes: float, spent: Callable[[], float]) -> None:
        self._seconds, self._last, self._spent = minutes * 60, time.monotonic(), spent

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or last_checkpoint(folder.parent) != folder:  # it found no room
            return
        with suppress(OSError):  # a full disk keeps no run from going on
            (folder / SPENT).write_text(f"{self._spent():.3f}", encoding="utf-8")
        try:
            sync_files(folder)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for older in set(folder.parent.glob("checkpoint-*")) - {folder}:
            shutil.rmtree(older, ignore_errors=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = time.monotonic() - self._last >= self._seconds
        if args.world_size > 1:
            flag = torch.tensor([due], dtype=torch.int32, device=args.device)
            torch.distributed.broadcast(flag, 0)
            due = bool(flag.item())
        if due and state.global_step < state.max_steps:
            control.should_save, self._last = True, time.monotonic()


class SteadyTrainer(Trainer):  # type: ignore[misc]
    """A Trainer over `Pieces` whose batches depend on (seed, epoch) alone, and that stops at a loss that is no number.

    Args:
        order_seed: draws the order of batches.
        epoch: counter shared with the collator.
        keep_order: batches in the order of the pieces, instead of a random one.
        batches: how a random order is made.
        others: arguments of Trainer.
    """

    def __init__(
        self,
        *,
        order_seed: int,
        epoch: Epoch,
        keep_order: bool = False,
        batches: type[Order] = LengthGroupedBatches,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        suit_cpu(self.model)
        self._keep_order, self._batches = keep_order, batches
        self._order_seed, self._epoch_counter = order_seed, epoch
        self.add_callback(EpochClock(epoch))
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        if self._keep_order:
            return SequentialSampler(self.train_dataset)
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self._batches(self.train_dataset.lengths, step, self._order_seed, self._epoch_counter)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            kept = last_checkpoint(Path(self.args.output_dir))
            left = f"the last good checkpoint is {kept}" if kept else "nothing was written"
            raise NearkinError(
                f"the training loss is not a number at step {self.state.global_step + 1}: "
                f"lower --lr, or train with --bf16 off; {left}"
            )
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _disk_is_full(error):
                raise
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            logger.warning(
                "no room for a checkpoint at step %d in %s: training goes on, and would resume from an earlier one",
                self.state.global_step,
                folder.parent,
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logger.info("step %d of %d: loss %.4f", self.state.global_step, self.state.max_steps, logs["loss"])


class MaskedRows:
    """Lets the head of a masked LM see masked positions alone, where the head is one module (BERT, RoBERTa, ...)."""

    def __init__(self, model: Any) -> None:
        self._chosen: torch.Tensor | None = None
        heads = [module for name, module in model.named_children() if name != model.base_model_prefix]
        if len(heads) == 1:
            heads[0].register_forward_pre_hook(self._pick)

    @contextmanager
    def of(self, labels: torch.Tensor) -> Iterator[None]:
        """Within, a forward over a batch with these labels gives logits [masked, vocabulary]."""
        self._chosen = labels != IGNORED
        try:
            yield
        finally:
            self._chosen = None

    def _pick(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._chosen is None or args[0].shape[:2] != self._chosen.shape:
            return None
        return (args[0][self._chosen], *args[1:])


def masked_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats summed over masked tokens; `logits` [masked, vocabulary] or [rows, tokens, vocabulary]."""
    chosen = labels != IGNORED
    logits = logits[chosen] if logits.dim() == 3 else logits
    return cross_entropy(logits.float(), labels[chosen], reduction="sum")


def mean_over_step(summed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Trainer's ``compute_loss_func`` of a loss summed over labels: its mean over all labels of an optimiser step."""

    def mean(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        count = num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum()
        return summed(outputs.logits, labels) / torch.as_tensor(count).clamp(min=1)  # read by no CPU, which would wait

    return mean


class MaskedLMTrainer(SteadyTrainer):
    """`SteadyTrainer` with the masked-LM loss of this module."""

    def __init__(self, *, rows: MaskedRows, **others: Any) -> None:
        super().__init__(compute_loss_func=mean_over_step(masked_loss), **others)
        self._rows = rows

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        with self._rows.of(inputs["labels"]):
            return super().compute_loss(model, inputs, *args, **kwargs)


def held_out_loss(model: Any, pieces: Pieces, masker: Masker, rows: MaskedRows, batch: int) -> float:
    """Mean masked-LM loss in nats over held-out pieces, in float32, with masks fixed by the masker's seed.

    The masks and the format are the same at every call, so losses differ by the model alone.

    Args:
        model: a masked LM, put back into the mode it came in.
        pieces: held-out pieces.
        masker: its epoch is set to one that training never has.
        rows: the model's.
        batch: pieces a forward pass takes.

    Raises:
        NearkinError: the loss is not a number.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    masker.epoch.number = HELD_OUT_EPOCH
    order = np.argsort(-pieces.lengths, kind="stable").tolist()
    total, count = 0.0, 0
    with torch.inference_mode():
        for at in range(0, len(order), batch):
            inputs = {k: v.to(device) for k, v in masker(pieces.__getitems__(order[at : at + batch])).items()}
            labels = inputs.pop("labels")
            with rows.of(labels):
                total += masked_loss(model(**inputs).logits, labels).item()
            count += int((labels != IGNORED).sum())
    model.train(was_training)
    if not np.isfinite(total):
        raise NearkinError("the held-out masked-LM loss is not a number: lower --lr; nothing was written")
    if count == 0:
        raise NearkinError("no token of the held-out text was masked: hold out more text")
    return total / count


def plain_forward(model: Any) -> None:
    """Takes off what Trainer put around a model's forward, so that it computes in the format of its weights again.

    accelerate leaves autocast on the model after training; a trainer that comes later puts it on anew.
    """
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)


@contextmanager
def repeatable() -> Iterator[None]:
    """Within, CUDA uses algorithms that give the same bits each time, where it has them; a CPU does so by itself.

    The backward pass of attention has none that is fast, so there the last bits of a CUDA run may differ.
    """
    if not torch.cuda.is_available():
        yield
        return
    # cuBLAS reads it when CUDA starts; without it the same run gives other bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    was = torch.are_deterministic_algorithms_enabled()
    filled, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False  # a kernel a tensor
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        settings.fill_uninitialized_memory = filled
