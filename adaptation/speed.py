"""How fast this machine trains a model: a few forward and backward passes of a copy, on real text; nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adaptation.loading import load_classifier, load_masked_lm, load_tokenizer
from adaptation.settings import AdaptSettings, FinetuneSettings
from adaptation.tasks import LabelledTask, metric_of

if TYPE_CHECKING:
    import torch

ENOUGH = 0.5  # seconds that a pass must take to be believed


@dataclass(frozen=True)
class Speed:
    """Seconds of a forward and backward pass a token, and of an optimiser's step."""

    token: float
    step: float


def masked_lm_speed(folder: Path, texts: pa.ChunkedArray, limit: int, bf16: str, most: int) -> Speed:
    """How fast a copy of the model is trained on `texts` as a masked LM; nothing is kept.

    Args:
        folder: see `transformer_folder`.
        texts: some of what it will be trained on.
        limit: longest piece in tokens.
        bf16: ``auto``, ``on`` or ``off``.
        most: pieces of the largest pass.
    """
    import torch

    from adaptation.masking import Epoch, Masker, passing_pieces
    from adaptation.precision import use_bf16
    from adaptation.training import MaskedRows, masked_loss, processes

    network, _ = load_masked_lm(folder)
    rounded = use_bf16(bf16)
    tokenizer, device = load_tokenizer(folder, masks=True), processes().device
    network.to(device).train()
    masker, rows = Masker.of(tokenizer, AdaptSettings.mlm_probability, 0, Epoch()), MaskedRows(network)
    with passing_pieces(texts, tokenizer, limit) as pieces:

        def loss_of(chosen: list[int]) -> torch.Tensor:
            inputs = {name: tensor.to(device) for name, tensor in masker(pieces.__getitems__(chosen)).items()}
            labels = inputs.pop("labels")
            with torch.autocast(device.type, torch.bfloat16, enabled=rounded), rows.of(labels):
                return masked_loss(network(**inputs).logits, labels)

        # Rows of like length stand together in training too; spread over all lengths they are the text's mean.
        return _speed(network, loss_of, pieces.lengths, np.argsort(pieces.lengths, kind="stable"), most)


def classifier_speed(folder: Path, task: LabelledTask, settings: FinetuneSettings) -> Speed:
    """How fast a copy of the model is trained on `task` as a classifier; nothing is kept."""
    import torch

    from adaptation.classifier import Finetuning
    from adaptation.precision import use_bf16
    from adaptation.training import processes

    run = Finetuning(folder, task, settings, metric_of(task.task.name), use_bf16(settings.bf16), lambda s: None)
    pieces, device = run.splits["train"], processes().device
    network = load_classifier(folder, task.labels, settings.dropout).to(device).train()

    def loss_of(chosen: list[int]) -> torch.Tensor:
        inputs = {name: tensor.to(device) for name, tensor in run.collate(pieces.__getitems__(chosen)).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=run.bf16):
            return network(**inputs).loss  # type: ignore[no-any-return]

    # Whole batches at random, as in training: what is padding depends on how many rows stand together.
    order = np.random.default_rng(0).permutation(len(pieces))
    return _speed(network, loss_of, pieces.lengths, order, run.per_device, run.per_device)


def _speed(
    network: torch.nn.Module,
    loss_of: Callable[[list[int]], torch.Tensor],
    lengths: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    most: int,
    first: int = 2,
) -> Speed:
    """Passes over `first` rows, then twice as many each time, until one takes `ENOUGH` or there are `most`.

    The last one counts.

    Rows that stand together in `order` are passed together.
    """
    import torch

    from adaptation.attention import suit_cpu

    optimizer = torch.optim.AdamW(network.parameters())
    count, most = min(first, len(order)), min(most, len(order))
    suit_cpu(network)

    def timed(work: Callable[[], Any]) -> float:
        _wait()
        began = time.perf_counter()
        work()
        _wait()
        return time.perf_counter() - began

    for _ in range(2):  # the first step of all sets things up
        _backward(loss_of, order[:count].tolist())
        stepped = timed(optimizer.step)
    while True:
        starts = np.linspace(0, len(order) - count, 3).astype(int)
        took = tokens = 0.0
        for start in starts:
            chosen = order[start : start + count]
            took += timed(partial(_backward, loss_of, chosen.tolist()))
            tokens += float(lengths[chosen].sum())
        if took >= 3 * ENOUGH or count >= most:
            return Speed(took / tokens, stepped)
        count = min(2 * count, most)


def _wait() -> None:
    """Until a GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def _backward(loss_of: Callable[[list[int]], torch.Tensor], rows: list[int]) -> None:
    loss_of(rows).backward()  # type: ignore[no-untyped-call]
