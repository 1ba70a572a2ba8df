"""The order of rows: permutations, like lengths together or at random."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import get_length_grouped_indices

from adaptation.batches import LengthGroupedBatches, ShuffledBatches, length_grouped
from adaptation.masking import Epoch, generator


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


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=300), batch=st.integers(1, 40), seed=st.integers(0, 9))
def test_grouping_by_arrays_is_that_of_transformers(lengths, batch, seed) -> None:
    expected = get_length_grouped_indices(lengths, batch, generator=generator(seed))
    assert length_grouped(np.array(lengths), batch, generator(seed)).tolist() == expected


def test_grouping_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 4000)
    order = np.array(list(LengthGroupedBatches(lengths, 16, 0, Epoch())))
    grouped = lengths[order].reshape(-1, 16).max(1).sum() * 16
    assert grouped < 1.1 * lengths.sum()
    assert lengths.reshape(-1, 16).max(1).sum() * 16 > 1.5 * lengths.sum()
    firsts = lengths[order].reshape(-1, 16).max(1)
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.3


def test_shuffled_batches_are_drawn_at_random() -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 4000)
    spread = {}
    for kind in (ShuffledBatches, LengthGroupedBatches):
        order = np.array(list(kind(lengths, 16, 0, Epoch())))
        assert sorted(order) == list(range(4000))
        spread[kind] = lengths[order].reshape(-1, 16).mean(axis=1).std()
    assert spread[ShuffledBatches] == pytest.approx(lengths.std() / 4, rel=0.15)  # as of 16 independent draws
    assert spread[LengthGroupedBatches] > 3 * spread[ShuffledBatches]
    epochs = [list(ShuffledBatches(lengths, 16, 0, Epoch(number))) for number in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
