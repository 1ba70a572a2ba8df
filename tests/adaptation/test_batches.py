"""The order of rows: permutations, like lengths together or at random, and what a part of a batch is padded to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptation.batches import LengthGroupedBatches, ShuffledBatches, padding, parts_of_a_batch
from adaptation.classifier import Finetuning
from adaptation.finetune import FinetuneSettings
from adaptation.loading import transformer_folder
from adaptation.masking import Epoch
from adaptation.tasks import load_labelled


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300),
    batch=st.integers(1, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_order_is_a_permutation_with_the_longest_piece_first(lengths, batch, seed, epoch) -> None:
    order = list(LengthGroupedBatches(np.array(lengths), batch, seed, Epoch(epoch)))
    assert sorted(order) == list(range(len(lengths)))
    assert lengths[order[0]] == max(lengths)
    assert order == list(LengthGroupedBatches(np.array(lengths), batch, seed, Epoch(epoch)))


def test_grouping_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 4000)
    order = np.array(list(LengthGroupedBatches(lengths, 16, 0, Epoch())))
    grouped = lengths[order].reshape(-1, 16).max(1).sum() * 16
    assert grouped < 1.1 * lengths.sum()
    assert lengths.reshape(-1, 16).max(1).sum() * 16 > 1.5 * lengths.sum()
    firsts = lengths[order].reshape(-1, 16).max(1)
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.3


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch=st.sampled_from([4, 8, 16]),
    parts=st.sampled_from([1, 2, 4]),
)
def test_shuffled_batches_are_sorted_within_and_padding_is_what_it_is(lengths, batch, parts) -> None:
    order = list(ShuffledBatches(np.array(lengths), batch, 3, Epoch(2)))
    assert sorted(order) == list(range(len(lengths)))
    for start in range(0, len(order), batch):
        step = [lengths[row] for row in order[start : start + batch]]
        assert step == sorted(step, reverse=True)
    order = list(ShuffledBatches(np.array(lengths), batch, 0, Epoch()))
    size, added = batch // parts, 0
    for start in range(0, len(order), size):
        part = [lengths[row] for row in order[start : start + size]]
        added += max(part) * len(part) - sum(part)
    assert padding(np.array(lengths), batch, parts) == pytest.approx(added / -(-len(lengths) // batch))


def test_shuffled_batches_are_drawn_at_random() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 4000)
    spread = {}
    for kind in (ShuffledBatches, LengthGroupedBatches):
        order = np.array(list(kind(lengths, 16, 0, Epoch())))
        spread[kind] = lengths[order].reshape(-1, 16).mean(axis=1).std()
    assert spread[ShuffledBatches] == pytest.approx(lengths.std() / 4, rel=0.15)  # as of 16 independent draws
    assert spread[LengthGroupedBatches] > 3 * spread[ShuffledBatches]
    epochs = [list(ShuffledBatches(lengths, 16, 0, Epoch(number))) for number in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]


def test_batches_are_cut_where_that_saves_more_than_it_costs() -> None:
    draws = np.random.default_rng(0)
    assert parts_of_a_batch(np.full(500, 128), 16) == 1
    assert parts_of_a_batch(np.clip(draws.lognormal(3.8, 0.6, 1700), 8, 128).astype(int), 16) == 2
    assert parts_of_a_batch(draws.integers(5, 500, 100), 16) == 4
    assert parts_of_a_batch(draws.integers(5, 500, 100), 6) == 2  # four parts of six would not be equal


def test_a_batch_in_parts_makes_the_step_of_a_whole_one(tiny_model, marked_task, tmp_path: Path, monkeypatch) -> None:
    """The same weights after two epochs of which the last step is not full."""
    weights = []
    for parts in (1, 4):
        monkeypatch.setattr("adaptation.classifier.parts_of_a_batch", lambda *_, parts=parts: parts)
        settings = FinetuneSettings(epochs=2, learning_rate=1e-3, batch_size=24, max_tokens=24, dropout=0.0)
        task = load_labelled(marked_task)
        run = Finetuning(transformer_folder(tiny_model("bert")), task, settings, "macro", False, lambda line: None)
        assert len(task.splits["train"]) % 24 == 16
        weights.append(run.train(0, tmp_path)[0].state_dict())
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-3, atol=2e-4)
