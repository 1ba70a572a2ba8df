from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adaptation.head import bias_to_frequency, token_counts
from adaptation.loading import load_masked_lm, load_tokenizer
from adaptation.texts import open_pieces, tokenise


def test_counts_are_those_of_the_pieces(tmp_path, tiny_model, sentences) -> None:
    import pyarrow as pa

    tokenizer = load_tokenizer(Path(tiny_model("bert")))
    tokenise(
        pa.chunked_array([pa.array(sentences[:60], pa.large_string())]), tokenizer, 16, False, tmp_path / "p.arrow"
    )
    pieces = open_pieces(tmp_path / "p.arrow")
    every = np.concatenate([np.asarray(ids) for ids in pieces["input_ids"]])
    assert np.array_equal(token_counts(pieces, len(tokenizer)), np.bincount(every, minlength=len(tokenizer)))


@pytest.mark.parametrize("kind", ["bert", "bert-encoder", "roberta"])
def test_a_head_without_context_guesses_by_frequency(tiny_model, kind) -> None:
    model, _ = load_masked_lm(Path(tiny_model(kind)))
    counts = np.random.default_rng(0).integers(0, 50, model.config.vocab_size)
    assert bias_to_frequency(model, counts, torch.tensor([3, 7]))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        shares = torch.softmax(model.eval()(torch.tensor([[5, 6, 8]])).logits[0], -1)
    expected = counts.astype(float)
    expected[[3, 7]] = 0
    expected = (expected + 1) / (expected + 1).sum()
    assert np.allclose(shares.numpy(), np.tile(expected, (3, 1)), atol=1e-7)
