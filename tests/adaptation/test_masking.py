from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import adaptation.texts
from adaptation.loading import load_tokenizer
from adaptation.masking import IGNORED, Epoch, Masker, Pieces, generator, padded
from adaptation.texts import blocks, open_pieces, tokenise
from selection.models import resolve_model


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_tokenizer(resolve_model("all-MiniLM-L6-v2"), masks=True)


@pytest.fixture
def pieces(tmp_path: Path, sentences: list[str], tokenizer: object) -> Callable[[int, bool], object]:
    def make(max_tokens: int, words: bool) -> object:
        texts = pa.chunked_array([sentences], pa.large_string())
        tokenise(texts, tokenizer, max_tokens, words, tmp_path / "pieces.arrow")
        return open_pieces(tmp_path / "pieces.arrow")

    return make


@pytest.mark.parametrize("words", [False, True])
def test_pieces_do_not_depend_on_the_blocks_they_are_cut_in(pieces, monkeypatch, words) -> None:
    whole = pieces(16, words).data.table.to_pylist()
    monkeypatch.setattr(adaptation.texts, "BLOCK_BYTES", 700)
    monkeypatch.setattr(adaptation.texts, "BLOCK_ROWS", 9)
    assert pieces(16, words).data.table.to_pylist() == whole
    assert len({row["text_row"] for row in whole}) > 300


def test_a_block_of_texts_is_bounded_by_rows_and_by_bytes(monkeypatch) -> None:
    monkeypatch.setattr(adaptation.texts, "BLOCK_BYTES", 10)
    monkeypatch.setattr(adaptation.texts, "BLOCK_ROWS", 3)
    texts = pa.chunked_array([["a" * n for n in (4, 6, 1)], ["b" * n for n in (30, 1, 1, 1, 1)]], pa.large_string())
    found = [(block.start, block.stop) for block in blocks(texts)]
    assert found == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8)]
    assert list(blocks(texts[:0])) == []


def test_15_percent_of_tokens_are_chosen_and_split_80_10_10(pieces, tokenizer) -> None:
    data = Pieces(pieces(64, False))
    masker = Masker.of(tokenizer, 0.15, 0, Epoch())
    chosen = masked = kept = maskable = 0
    for number in range(20):
        masker.epoch.number = number
        batch = data.__getitems__(list(range(len(data))))
        plain = padded(batch[1]["input_ids"], 0)
        out = masker(batch)
        at = out["labels"] != IGNORED
        assert torch.equal(out["labels"][at], plain[at])
        assert torch.equal(out["input_ids"][~at], plain[~at])
        special = torch.isin(plain, torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id, 0]))
        assert not (at & special).any()
        maskable += int((~special).sum())
        chosen += int(at.sum())
        masked += int((out["input_ids"][at] == tokenizer.mask_token_id).sum())
        kept += int((out["input_ids"][at] == plain[at]).sum())
    assert chosen > 20_000
    assert chosen / maskable == pytest.approx(0.15, abs=0.005)
    assert masked / chosen == pytest.approx(0.8, abs=0.01)
    assert kept / chosen == pytest.approx(0.1, abs=0.01)


def test_masks_change_with_the_epoch_and_repeat_with_the_seed(pieces, tokenizer) -> None:
    batch = Pieces(pieces(64, False)).__getitems__(list(range(50)))
    labels = [
        Masker.of(tokenizer, 0.15, seed, Epoch(epoch))(batch)["labels"] for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert torch.equal(labels[0], Masker.of(tokenizer, 0.15, 0, Epoch(0))(batch)["labels"])
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


def test_whole_words_are_chosen_at_the_asked_share(pieces, tokenizer) -> None:
    data = Pieces(pieces(64, True))
    masker = Masker.of(tokenizer, 0.15, 0, Epoch())
    words_chosen, words_seen, several = 0, 0, 0
    for number in range(10):
        masker.epoch.number = number
        batch = data.__getitems__(list(range(len(data))))
        words = padded(batch[1]["words"], -1).numpy()
        at = (masker(batch)["labels"] != IGNORED).numpy()
        for row_words, row_at in zip(words, at, strict=True):
            for word in np.unique(row_words[row_words >= 0]):
                tokens = row_at[row_words == word]
                assert tokens.all() or not tokens.any()
                several += len(tokens) > 1 and bool(tokens.all())
                words_chosen += bool(tokens.all())
                words_seen += 1
            assert not row_at[row_words == -1].any()
    assert several > 100
    assert words_chosen / words_seen == pytest.approx(0.15, abs=0.01)


def test_long_texts_are_split_without_loss(pieces, tokenizer, sentences) -> None:
    data = pieces(16, False)
    assert Pieces(data).lengths.max() <= 16
    rows = np.asarray(data["text_row"])
    for number in range(0, 50):
        ids = [i for row in np.flatnonzero(rows == number) for i in data[int(row)]["input_ids"][1:-1]]
        assert ids == tokenizer(sentences[number], add_special_tokens=False)["input_ids"]


def test_words_far_behind_the_beginning_of_a_text_cost_no_more_draws(tokenizer, monkeypatch) -> None:
    masker, sizes, rand = Masker.of(tokenizer, 0.5, 0, Epoch()), [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda shape, **others: sizes.append(tuple(shape)) or rand(shape, **others))
    ids, real = torch.full((3, 6), 5000), torch.ones(3, 6, dtype=torch.bool)
    words = torch.tensor([[-1, 0, 1, 1, 2, -1], [-1, 700_000, 700_001, 700_001, 700_002, -1], [-1] * 6])
    labels = [masker.mask(ids, real, words, generator(seed))[1] != IGNORED for seed in range(40)]
    assert set(sizes) == {(3, 4), (3, 6)}
    chosen = torch.stack(labels)
    assert torch.equal(chosen[:, :2, 2], chosen[:, :2, 3])
    assert not chosen[:, :, [0, 5]].any()
    assert not chosen[:, 2].any()
    assert not torch.equal(chosen[:, 0], chosen[:, 1])
    assert chosen[:, :2, 1:5].float().mean() == pytest.approx(0.5, abs=0.1)


def test_generators_differ_by_every_part() -> None:
    draws = {
        float(torch.rand(1, generator=generator(*parts))) for parts in ((0, 1), (1, 0), (0, 0), (0, -1), (0, 1, 0))
    }
    assert len(draws) == 5
