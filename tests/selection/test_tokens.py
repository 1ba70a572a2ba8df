"""Tokens by array arithmetic are the tokenizers library's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from selection import choosing
from selection import tokens as tokens_module
from selection.encoders import load_encoder
from selection.errors import ModelError
from selection.models import resolve_model
from selection.tokens import ArrayTokenizer, Ragged, count_tokens, load_tokenizer, split_words

MODEL = "all-MiniLM-L6-v2"
# White space of all kinds, control characters, accents apart and composed, CJK, special tokens, a word too long.
AWKWARD = [
    "",
    " ",
    "\n\t ",
    "a\x0bb\x0cc\x00d",
    "naïve näıve é",
    "東京 タワー\u3000x\u00a0y",
    "[MASK]x[SEP] [CLS]",
    "a" * 250,
]
PIECES = [*AWKWARD, "the", "The", "protein-ligand", "ΑΣ Σ", "x\u0301", "3.14", "�", "\u200b", "\u2028", "don't"]


@pytest.fixture(scope="module")
def tokenizer() -> ArrayTokenizer:
    return ArrayTokenizer(MODEL)


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(ragged.values, ragged.offsets[1:-1])]


def library(texts: list[str]) -> list[list[int]]:
    return [e.ids for e in load_tokenizer(MODEL).encode_batch(texts, add_special_tokens=False)]


def test_real_passages(passages: pa.Table, tokenizer: ArrayTokenizer) -> None:
    assert tokenizer.by_words
    texts = passages["text"]
    assert rows_of(tokenizer(texts)) == library(texts.to_pylist())
    np.testing.assert_array_equal(count_tokens(texts, MODEL), tokenizer(texts).lengths)
    sliced = pa.array(texts.to_pylist()).slice(7, 20)  # whose buffers begin before it
    assert rows_of(tokenizer(sliced)) == library(sliced.to_pylist())


@settings(max_examples=200)
@given(st.lists(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=6), max_size=5))
def test_any_text(pieces: list[list[str]]) -> None:
    texts = [" ".join(row) for row in pieces] + ["".join(row) for row in pieces]
    got = ArrayTokenizer(MODEL)(pa.array(texts, pa.large_string()))
    assert (rows_of(got) if texts else []) == library(texts)


def test_forgotten_words_are_tokenized_again(
    passages: pa.Table, tokenizer: ArrayTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "CACHE_WORDS", 50)
    small = ArrayTokenizer(MODEL)
    for start in range(0, 600, 100):
        texts = passages["text"].slice(start, 100)
        assert rows_of(small(texts)) == rows_of(tokenizer(texts))
    assert len(small._words) <= 50


def test_special_tokens_and_cut_are_the_models_own(passages: pa.Table, tokenizer: ArrayTokenizer) -> None:
    from transformers import AutoTokenizer

    texts = [*passages["text"].slice(0, 50).to_pylist(), "", "word " * 400]
    own = AutoTokenizer.from_pretrained(resolve_model(MODEL))(texts, truncation=True, max_length=64)["input_ids"]
    assert rows_of(tokenizer.with_specials(tokenizer(pa.array(texts)), 64)) == own


def test_slices_join_to_the_whole(
    passages: pa.Table, tokenizer: ArrayTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = passages["text"]
    whole = tokenizer.with_specials(tokenizer(texts), 40)
    monkeypatch.setattr(tokens_module, "SLICE", 64)
    assert rows_of(tokenizer.model_inputs(texts, 40)) == rows_of(whole)
    assert len(tokenizer.model_inputs(texts.slice(0, 0), 40)) == 0


@pytest.fixture(scope="module")
def byte_level(passages: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with a byte-level BPE tokenizer."""
    folder = shutil.copytree(resolve_model(MODEL), tmp_path_factory.mktemp("models") / "bpe")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        passages["text"].to_pylist(),
        trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False),
    )
    (folder / "tokenizer.json").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.mark.parametrize("kind", ["word-piece", "byte-level"])
def test_of_a_long_text_the_beginning_alone_is_tokenized(
    kind: str, byte_level: str, passages: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ids are those of the whole text, whatever stands in it."""
    chosen = ArrayTokenizer(MODEL if kind == "word-piece" else byte_level)
    assert chosen.by_words == (kind == "word-piece")
    rng = np.random.default_rng(0)
    pieces = np.array([*PIECES, "  ", "\n\n", *" ".join(passages["text"].slice(0, 20).to_pylist()).split()], object)
    texts: list[str | None] = [
        ("" if n % 3 == 0 else " ").join(rng.choice(pieces, size)) for n, size in enumerate(rng.integers(1, 1500, 60))
    ]
    texts += ["", "short", "x" * 5000, "word" + " " * 5000 + "end", "x" * 2000 + " y" * 4000, "東京" * 3000]
    limit = 9
    array = pa.array(texts, pa.large_string())
    whole = chosen.with_specials(chosen(array), limit)
    given: list[int] = []
    plain = ArrayTokenizer.__call__

    def counting(self: ArrayTokenizer, some: pa.Array) -> Ragged:
        given.append(sum(len(text) for text in some.to_pylist()))
        return plain(self, some)

    monkeypatch.setattr(ArrayTokenizer, "__call__", counting)
    assert rows_of(chosen.model_inputs(array, limit)) == rows_of(whole)
    assert sum(given) < 0.6 * sum(len(text or "") for text in texts)
    assert rows_of(chosen.model_inputs(pa.chunked_array([array[:40], array[40:]]), limit)) == rows_of(whole)
    given.clear()
    chosen.model_inputs(pa.array(["some words of a book " * 10_000]), limit)
    assert given == [pytest.approx(64 * limit, abs=20)]


def test_words_keep_their_places() -> None:
    words = split_words(pa.chunked_array([["b a", ""], [" b  a\n", "a"]]))
    names = [w.as_py().decode() for w in words.dictionary.take(pa.array(words.words.values))]
    assert [names[a:b] for a, b in zip(words.words.offsets[:-1], words.words.offsets[1:], strict=True)] == [
        ["b ", "a"],
        [],
        [" ", "b  ", "a\n"],
        ["a"],
    ]


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=12))
def test_distinct_rows(rows: list[list[int]]) -> None:
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    first, which = Ragged(np.array([v for row in rows for v in row], np.int32), offsets).distinct()
    assert len(first) == len({tuple(row) for row in rows})
    assert all(rows[first[w]] == row for w, row in zip(which, rows, strict=True))
    assert all(first[w] <= i for i, w in enumerate(which))


def test_other_tokenizers_go_through_the_library(monkeypatch: pytest.MonkeyPatch, passages: pa.Table) -> None:
    monkeypatch.setattr(tokens_module, "_treats_words_alone", lambda tokenizer: False)
    plain = ArrayTokenizer(MODEL)
    assert not plain.by_words
    texts = passages["text"].slice(0, 30)
    assert rows_of(plain(texts)) == library(texts.to_pylist())


def test_a_trial_says_how_many_texts_are_longer_than_is_read(passages: pa.Table) -> None:
    texts = pa.chunked_array([passages["text"].slice(0, 50).combine_chunks()])
    limit = int(np.median(count_tokens(texts, MODEL))) + 2
    share = float((count_tokens(texts, MODEL) >= limit - 2).mean())
    assert 0 < share < 1
    assert choosing.measure(load_encoder(MODEL, device="cpu", max_tokens=limit), texts)[2] == pytest.approx(share)


def test_a_model_of_vocabulary_files_alone_is_counted_by_those(passages: pa.Table, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(resolve_model(MODEL), tmp_path / "older"))
    vocabulary = sorted((place, token) for token, place in load_tokenizer(MODEL).get_vocab().items())
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for _, token in vocabulary), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    texts = passages["text"].slice(0, 50)
    np.testing.assert_array_equal(count_tokens(texts, str(folder)), count_tokens(texts, MODEL))
    encoder = load_encoder(str(folder), device="cpu")
    assert encoder.engine == "sentence-transformers"
    assert choosing.measure(encoder, texts.slice(0, 9))[0] > 3
    (folder / "vocab.txt").unlink()
    with pytest.raises(ModelError, match="tokens cannot be counted"):
        load_tokenizer.__wrapped__(str(folder))
