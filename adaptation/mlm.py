"""Continued masked-LM training: `nearkin adapt` (Don't Stop Pretraining, sections 3 to 5).

The defaults are the paper's TAPT. Checkpoints go to ``OUT.work`` beside the output; Trainer writes pickled optimiser
states there, which is why that folder is removed once the model is whole. OUT itself holds safetensors and text only.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptation.settings import AdaptSettings as AdaptSettings
from adaptation.tasks import load_labelled
from adaptation.texts import TrainingText, open_pieces, read_training_text, texts_in_pieces, tokenise
from selection.errors import NearkinError
from selection.files import (
    ASIDE,
    TextFingerprint,
    atomic_folder,
    atomic_write,
    check_replaceable,
    fingerprint,
    write_json,
)
from selection.models import model_fingerprint, quiet_libraries
from selection.versions import versions
from selection.wording import human_seconds

if TYPE_CHECKING:
    from adaptation.joint import JointTask
    from adaptation.training import MaskedLMTrainer

logger = logging.getLogger(__name__)

RESULT_FILE = "adaptation.json"
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class AdaptResult:
    """What a run made.

    Attributes:
        out: the model folder.
        held_out_loss: nats a masked token, ``before`` any training, ``after_head_warmup`` (None without a new head)
            and ``after``; the same masks each time. A new head starts by guessing tokens by their frequency.
        new_head: the model had no masked-LM head and was given one.
        texts, pieces: distinct training texts, and the pieces they were cut into.
        split_texts: texts longer than one piece.
        steps: optimiser steps, the head's warm-up not counted.
        tokens_seen: tokens that went through the model in them, padding not counted.
        training_seconds: of the steps that this call took, checkpoints included, measuring and the warm-up not.
        training_tokens: that went through the model in them.
        seconds: wall time, that of calls which were stopped included up to their last checkpoint.
    """

    out: Path
    held_out_loss: dict[str, float | None]
    new_head: bool
    texts: int
    pieces: int
    split_texts: int
    steps: int
    tokens_seen: int
    training_seconds: float
    training_tokens: int
    seconds: float


def adapt(
    model: str,
    texts: Sequence[Path | str],
    out: Path,
    *,
    settings: AdaptSettings | None = None,
    held_out: Path | None = None,
    joint: Path | None = None,
    guarded: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = logger.info,
) -> AdaptResult:
    """Trains `model` as a masked LM on `texts` and writes it to `out`.

    A run that was stopped continues from its last checkpoint when the same model, texts and settings are given again,
    and ends with the same weights (on CUDA but for last bits, see `adaptation.training.repeatable`). Under
    ``accelerate launch`` every process calls this; the first one writes.

    Args:
        model: see `selection.models.resolve_model`. One without a masked-LM head gets a new one (see `AdaptResult`).
        texts: files with a ``text`` column, task folders (their train split alone), augmentation folders.
        out: folder to make: safetensors, configuration, tokenizer, ``adaptation.json``.
        settings: None for the defaults.
        held_out: file of texts to measure on, instead of a share of `texts`.
        joint: task folder whose labelled train split is learnt along with the masked LM (see `adaptation.joint`).
        guarded: False trains on dev and test texts where they are among `texts`, to measure what contamination buys.
        overwrite: replace `out` where it exists.
        say: is told the plan and what was measured, a sentence at a time.

    Raises:
        InputError: texts that cannot be used.
        ModelError: a model that cannot be loaded or has no masked-LM form.
        NearkinError: `out` exists, or another process is at work there; settings that do not fit; a loss that is not a
            number.
    """
    started = time.monotonic()
    settings, out = settings or AdaptSettings(), Path(os.path.abspath(out))  # noqa: PTH100
    check_replaceable(out, overwrite, RESULT_FILE)
    quiet_libraries()
    from adaptation.training import alone_at, repeatable

    with repeatable():
        run = _Run(model, texts, out, settings, held_out, joint, guarded, say)
        with alone_at(out, out.with_name(f".{out.name}.lock")):
            check_replaceable(out, overwrite, RESULT_FILE)  # another may have written it while this one read
            run.prepare()
            return run.train(overwrite, started)


class _Run:
    """One call of `adapt`: what its steps share."""

    def __init__(
        self,
        model: str,
        texts: Sequence[Path | str],
        out: Path,
        settings: AdaptSettings,
        held_out: Path | None,
        joint: Path | None,
        guarded: bool,
        say: Callable[[str], None],
    ) -> None:
        from transformers import set_seed

        from adaptation.loading import load_masked_lm, load_tokenizer, token_limit, transformer_folder
        from adaptation.training import processes

        self.processes, self.texts, self.held_out_file, self.guarded = processes(), texts, held_out, guarded
        if joint and self.processes.num_processes > 1:
            raise NearkinError("masked-LM and task loss together train on one device: start one process")
        self.say = say if self.processes.is_main_process else logger.debug
        self.name, self.out, self.settings = model, out, settings
        self.folder = transformer_folder(model)
        self.task = load_labelled(joint) if joint else None
        self.tokenizer = load_tokenizer(self.folder, masks=True)
        set_seed(settings.seed)
        self.model, self.new_head = load_masked_lm(self.folder)
        self.max_tokens = token_limit(settings.max_tokens, self.model.config, self.tokenizer)
        self.micro = min(settings.micro_batch, max(settings.batch_size // self.processes.num_processes, 1))
        self.accumulate = max(round(settings.batch_size / (self.micro * self.processes.num_processes)), 1)
        self.work = out.with_name(out.name + ".work")

    def prepare(self) -> None:
        """Reads the text and cuts it into pieces, where an earlier call has not; from here on only those are held."""
        from adaptation.masking import Epoch, Masker, Pieces
        from adaptation.training import MaskedRows

        settings, tokenizer = self.settings, self.tokenizer
        self.progress: dict[str, Any] = self._prepare_work()
        self.bf16, self.counts = bool(self.progress["bf16"]), self.progress["counts"]
        self.data = open_pieces(self.work / "train.arrow")
        self.split_texts = texts_in_pieces(self.data)
        self.pieces, self.held_out = Pieces(self.data), Pieces(open_pieces(self.work / "held-out.arrow"))
        batch = self.micro * self.accumulate * self.processes.num_processes
        self.steps = settings.max_steps or settings.epochs * math.ceil(len(self.pieces) / batch)
        self.epoch = Epoch()
        self.masker = Masker.of(tokenizer, settings.mlm_probability, settings.seed, self.epoch)
        self.measurer = Masker.of(tokenizer, settings.mlm_probability, settings.seed, Epoch())
        self.rows = MaskedRows(self.model)
        self.joint = self._join(tokenizer)
        self._check_room()
        self._say_plan(batch)

    def _join(self, tokenizer: Any) -> JointTask | None:
        """The task to be learnt along, its head on the model."""
        if self.task is None:
            return None
        from adaptation.joint import JointTask

        settings = self.settings
        found = JointTask.of(self.task, tokenizer, self.max_tokens, settings.task_batch, settings.task_weight)
        found.add_head(self.model, getattr(self.model.config, "hidden_dropout_prob", 0.1), settings.seed)
        return found

    def _identity(self, text: TrainingText) -> str:
        unshaping = AdaptSettings.unshaping(self.task is not None, self.held_out_file is not None)
        unshaping |= {"epochs"} if self.settings.max_steps else set()
        unshaping |= set() if self.new_head else {"head_warmup_steps", "head_learning_rate"}
        settings = {name: value for name, value in asdict(self.settings).items() if name not in unshaping}
        return fingerprint(
            model_fingerprint(self.folder),
            TextFingerprint.of(text.train),
            TextFingerprint.of(text.held_out),
            json.dumps(settings, sort_keys=True),
            f"{self.processes.num_processes} processes",
            self.task.identity() if self.task else "",
        )

    def _prepare_work(self) -> dict[str, Any]:
        """What the work folder says of itself, once the first process has read the texts and cut them."""
        from adaptation.training import of_first

        note, call = self.work / "progress.json", of_first(secrets.randbits(62))
        if self.processes.is_main_process:
            self._cut(note, call)
        # Polled, since a barrier gives up after half an hour.
        while (found := _note_of(note)).get("call") != call:
            time.sleep(LOOK_SECONDS)
        self.processes.wait_for_everyone()
        return found

    def _cut(self, note: Path, call: int) -> None:
        """Leaves pieces and a note of this call in the work folder; where a run of these texts left some, they stay."""
        from adaptation.precision import use_bf16

        if self.work.exists() and not note.exists() and not _is_left_empty(self.work):
            raise NearkinError(f"{self.work} is no unfinished training and in the way: move it, or name another --out")
        self.work.mkdir(parents=True, exist_ok=True)
        file, settings = self.work / f"texts{ASIDE}", self.settings
        text: TrainingText | None = None
        try:
            text = read_training_text(
                self.texts,
                file,
                held_out_file=self.held_out_file,
                held_out=settings.held_out,
                seed=settings.seed,
                guarded=self.guarded,
            )
            self.sources, self.identity, known = text.sources, self._identity(text), _note_of(note)
            if known.get("identity") != self.identity:
                if known.get("identity"):
                    self.say(f"{self.work} belongs to a run with other texts or settings: starting anew")
                write_json(note, {"identity": None})  # tells whose folder it is, should what follows be stopped
                _clear(self.work, {file, note})
                cut = partial(tokenise, tokenizer=self.tokenizer, max_tokens=self.max_tokens, words=settings.whole_word)
                for part, texts in (("train", text.train), ("held-out", text.held_out)):
                    with atomic_write(self.work / f"{part}.arrow") as aside:
                        cut(texts, file=aside)
                known = {"identity": self.identity, "bf16": use_bf16(settings.bf16)}
            write_json(note, known | {"counts": text.counts(), "call": call})
        finally:
            text = None
            with suppress(OSError):  # Windows keeps what is mapped
                file.unlink()
            with suppress(OSError):
                self.work.rmdir()  # where nothing came of it

    def _check_room(self) -> None:
        """Refuses a run whose model would not fit on the disk; checkpoints are given up where they do not fit."""
        size = 4 * self.model.num_parameters()
        free = shutil.disk_usage(self.work).free
        if free < size:
            raise NearkinError(
                f"{self.out}: the adapted model takes {size / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB free"
            )

    def _say_plan(self, batch: int) -> None:
        counts = self.counts
        self.say(
            f"{counts['train']} texts to train on ({counts['duplicates']} duplicates, {counts['withheld']} withheld "
            f"left out), {counts['held_out']} held out; {int(self.pieces.lengths.sum())} tokens in "
            f"{len(self.pieces)} pieces of at most {self.max_tokens} ({self.split_texts} texts split)"
        )
        device = "CUDA" if self.processes.device.type == "cuda" else self.processes.device.type
        self.say(
            f"{self.steps} steps of {batch} pieces, about {self.steps * batch / len(self.pieces):.1f} epochs, on "
            f"{self.processes.num_processes} {device}, {'bfloat16' if self.bf16 else 'float32'}"
        )
        if self.new_head:
            self.say(
                f"{self.name} has no masked-LM head: it gets a new one with tied embeddings, which starts at the "
                f"tokens' frequencies and is trained alone for {self._warmup_steps()} steps first"
            )

    def _warmup_steps(self) -> int:
        return min(self.settings.head_warmup_steps, self.steps) if self.new_head else 0

    def train(self, overwrite: bool, started: float) -> AdaptResult:
        from adaptation.training import Checkpoints, last_checkpoint, plain_forward, seconds_at

        checkpoint = last_checkpoint(self.work)
        started -= seconds_at(checkpoint)  # as if the calls before had been one with this
        if checkpoint is None:
            self._before()
        else:
            self.say(f"continuing from step {checkpoint.name.rpartition('-')[2]}")
        trainer = self._trainer(self.steps, self.settings.learning_rate)
        trainer.add_callback(Checkpoints(self.settings.checkpoint_minutes, lambda: time.monotonic() - started))
        began, before = time.monotonic(), _tokens_at(checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        taken = time.monotonic() - began
        plain_forward(self.model)
        losses = {k: self.progress.get(k) for k in ("before", "after_head_warmup")} | {"after": self._measure()}
        state = trainer.state
        result = AdaptResult(
            out=self.out,
            held_out_loss=losses,
            new_head=bool(self.new_head),
            texts=self.counts["train"],
            pieces=len(self.pieces),
            split_texts=self.split_texts,
            steps=state.global_step,
            tokens_seen=int(state.num_input_tokens_seen),
            training_seconds=taken,
            training_tokens=int(state.num_input_tokens_seen) - before,
            seconds=time.monotonic() - started,
        )
        if self.processes.is_main_process:
            self._write(result, overwrite)
        self.processes.wait_for_everyone()
        return result

    def _before(self) -> None:
        from adaptation.head import bias_to_frequency, token_counts
        from adaptation.training import plain_forward

        if self.new_head:
            bias_to_frequency(self.model, token_counts(self.data, self.masker.vocabulary), self.masker.special)
        self.model.to(self.processes.device)
        began = time.monotonic()
        self.progress["before"], self.progress["after_head_warmup"] = self._measure(), None
        # A training step costs about three forward passes over the same tokens.
        speed = self.held_out.lengths.sum() / (time.monotonic() - began)
        seconds = 3 * self.pieces.lengths.mean() * self.micro * self.accumulate * self.steps / speed
        loss = self.progress["before"]
        self.say(f"held-out masked-LM loss before: {loss:.4f}; training takes about {human_seconds(seconds)}")
        if steps := self._warmup_steps():
            encoder = [p for name, p in self.model.named_parameters() if name not in self.new_head]
            for parameter in encoder:
                parameter.requires_grad_(False)
            self._trainer(steps, self.settings.head_learning_rate, warmup=True).train()
            plain_forward(self.model)
            for parameter in encoder:
                parameter.requires_grad_(True)
            self.progress["after_head_warmup"] = self._measure()
            self.say(f"held-out masked-LM loss after the head's warm-up: {self.progress['after_head_warmup']:.4f}")
        if self.processes.is_main_process:
            write_json(self.work / "progress.json", self.progress)

    def _trainer(self, steps: int, learning_rate: float, warmup: bool = False) -> MaskedLMTrainer:
        from adaptation.joint import JointTrainer
        from adaptation.training import MaskedLMTrainer, training_arguments

        self.epoch.number = 0
        arguments = training_arguments(
            self.work,
            steps=steps,
            max_steps=steps,
            bf16=self.bf16,
            seed=self.settings.seed,
            learning_rate=learning_rate,
            per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=self.accumulate,
        )
        # The warm-up of a new head, which has no checkpoints, is that of the masked LM alone.
        joint = None if warmup else self.joint
        kind = partial(JointTrainer, task=joint, pad=self.masker.pad_id) if joint else MaskedLMTrainer
        trainer: MaskedLMTrainer = kind(
            model=self.model,
            args=arguments,
            train_dataset=self.pieces,
            data_collator=self.masker,
            order_seed=self.settings.seed,
            epoch=self.epoch,
            keep_order=self.settings.keep_order,
            rows=self.rows,
        )
        return trainer

    def _measure(self) -> float:
        from adaptation.training import held_out_loss

        return held_out_loss(self.model, self.held_out, self.measurer, self.rows, self.micro)

    def _write(self, result: AdaptResult, overwrite: bool) -> None:
        from adaptation.joint import remove_head
        from adaptation.loading import load_tokenizer
        from adaptation.training import full_disk_told

        losses = result.held_out_loss
        if self.joint:
            remove_head(self.model)
        with atomic_folder(self.out, overwrite, RESULT_FILE) as folder, full_disk_told(self.out):
            self.model.save_pretrained(folder)
            load_tokenizer(self.folder).save_pretrained(folder)
            write_json(folder / RESULT_FILE, _record(self, result) | {"held_out_loss": losses, "versions": versions()})
        shutil.rmtree(self.work, ignore_errors=True)
        self.say(f"held-out masked-LM loss after: {losses['after']:.4f}; model written to {self.out}")


def _note_of(file: Path) -> dict[str, Any]:
    """What the work folder says of itself; nothing where there is none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:  # or the first process deletes it meanwhile
        return {}


def _clear(work: Path, kept: set[Path]) -> None:
    """Empties a work folder of all but some files; an error where it cannot: a checkpoint would be gone on with."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path not in kept:
            path.unlink()


def _is_left_empty(work: Path) -> bool:
    """Whether a folder holds nothing but what a killed run had begun to write."""
    return work.is_dir() and all(file.name.endswith(ASIDE) for file in work.iterdir())


def _tokens_at(checkpoint: Path | None) -> int:
    if checkpoint is None:
        return 0
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state["num_input_tokens_seen"])


def _record(run: _Run, result: AdaptResult) -> dict[str, Any]:
    return {
        "model": run.name,
        "texts": [asdict(source) for source in run.sources],
        "joint_task": str(run.task.task.path) if run.task else None,
        "counts": run.counts
        | {"pieces": result.pieces, "split_texts": result.split_texts, "tokens": int(run.pieces.lengths.sum())},
        "settings": asdict(run.settings) | {"max_tokens": run.max_tokens, "bf16": run.bf16},
        "batch": {"processes": run.processes.num_processes, "micro": run.micro, "accumulation": run.accumulate},
        "new_head": result.new_head,
        "head_warmup_steps": run._warmup_steps(),
        "steps": result.steps,
        "tokens_seen": result.tokens_seen,
        "tokens_per_second": round(result.training_tokens / result.training_seconds, 1),
        "seconds": round(result.seconds, 3),
        "identity": run.identity,
    }  # fmt: skip
