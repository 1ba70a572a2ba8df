"""What a model's vectors know of a task before any finetuning: F1 of a logistic regression on them.

    python docs/probe.py TASK NAME=MODEL NAME=MODEL ...

Vectors are the mean of a text's last hidden states, and its [CLS], scaled to the train split's spread. The
regression's C is chosen by F1 on dev. Nothing is drawn, so a model has one figure, and two models are compared by a
permutation test over test examples: those of both are swapped at random, 2,000 times.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

from adaptation.finetune import f1
from adaptation.loading import load_tokenizer, transformer_folder
from adaptation.tasks import load_labelled
from selection.models import quiet_libraries

MAX_TOKENS, BATCH, DRAWS = 128, 32, 2000
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
KINDS = ("mean", "cls")

Vectors = dict[str, npt.NDArray[np.float32]]


def vectors_of(model: Any, tokenizer: Any, texts: pa.ChunkedArray) -> Vectors:
    """By kind, float32 [texts, dim]."""
    order = np.argsort(-pc.utf8_length(texts).to_numpy(), kind="stable")
    found: Vectors = {kind: np.zeros((len(texts), model.config.hidden_size), np.float32) for kind in KINDS}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            strings = texts.take(pa.array(rows)).to_pylist()  # which the tokenizer wants
            batch = tokenizer(strings, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            hidden = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state.float()
            real = batch.attention_mask[..., None]
            found["mean"][rows] = ((hidden * real).sum(1) / real.sum(1)).numpy()
            found["cls"][rows] = hidden[:, 0].numpy()
    return found


def predict(
    vectors: dict[str, npt.NDArray[np.float32]], labels: dict[str, npt.NDArray[np.int64]]
) -> tuple[float, npt.NDArray[np.int64]]:
    """(dev F1 of the best regression, its classes of the test examples), by split."""
    scaler = StandardScaler().fit(vectors["train"])
    scaled = {split: scaler.transform(values) for split, values in vectors.items()}
    best = (-1.0, np.empty(0, np.int64))
    for strength in STRENGTHS:
        regression = LogisticRegression(C=strength, max_iter=500).fit(scaled["train"], labels["train"])
        dev = f1(labels["dev"], regression.predict(scaled["dev"]), "macro")
        if dev > best[0]:
            best = (dev, regression.predict(scaled["test"]))
    return best


def p_of(gold: npt.NDArray[np.int64], one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> float:
    """Two-sided, of the difference of two models' F1."""
    draws = np.random.default_rng(0)
    seen, far = abs(f1(gold, one, "macro") - f1(gold, other, "macro")), 0
    for _ in range(DRAWS):
        swap = draws.random(len(gold)) < 0.5
        first, second = np.where(swap, other, one), np.where(swap, one, other)
        far += abs(f1(gold, first, "macro") - f1(gold, second, "macro")) >= seen - 1e-9
    return (far + 1) / (DRAWS + 1)


def main(folder: str, *named: str) -> None:
    quiet_libraries()
    task = load_labelled(folder)
    labels = {split: table["label"].to_numpy() for split, table in task.splits.items()}
    classes: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
    for name, _, model in (one.partition("=") for one in named):
        place = transformer_folder(model)
        network, tokenizer = AutoModel.from_pretrained(place, use_safetensors=True).eval(), load_tokenizer(place)
        by_split = {split: vectors_of(network, tokenizer, table["text"]) for split, table in task.splits.items()}
        for kind in KINDS:
            dev, classes[name, kind] = predict({split: found[kind] for split, found in by_split.items()}, labels)
            test = f1(labels["test"], classes[name, kind], "macro")
            sys.stdout.write(f"{Path(folder).name}, {name}, {kind}: dev {dev:.1f}, test {test:.1f}\n")
            for before, of in [key for key in classes if key[1] == kind and key[0] != name]:
                p = p_of(labels["test"], classes[name, kind], classes[before, of])
                gained = test - f1(labels["test"], classes[before, of], "macro")
                sys.stdout.write(f"    {gained:+.1f} over {before}, p {p:.3f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
