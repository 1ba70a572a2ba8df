"""Pieces of documents: no longer than asked for by the tokenizer itself, nothing lost, cut where a plain loop cuts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from selection.chunking import Chunker
from selection.tokens import load_tokenizer

MODEL = "all-MiniLM-L6-v2"
SHORTENED = {"al", "ca", "cf", "dr", "fig", "figs", "eq", "mr", "ref", "refs", "resp", "sec", "st", "vs", "e.g", "i.e"}


def pieces_of(texts: list[str], most: int, model: str = MODEL) -> list[list[str]]:
    pieces, parents = Chunker(most, model).pieces(pa.array(texts, pa.large_string()))
    return [
        [p for p, of in zip(pieces.to_pylist(), parents.tolist(), strict=True) if of == i] for i in range(len(texts))
    ]


def lengths(texts: list[str], model: str = MODEL) -> list[int]:
    return [len(e) for e in load_tokenizer(model).encode_batch(texts, add_special_tokens=False)]


def ends_sentence(words: list[str], at: int) -> bool:
    """Whether a sentence ends before word `at`."""
    bare = words[at - 1].rstrip().rstrip("\"'”’»)]")
    core = bare[:-1].lstrip("\"'“‘«([")
    shortened = bare.endswith(".") and (core.lower() in SHORTENED or (len(core) == 1 and core.isalpha()))
    follows = words[at].lstrip("\"'“‘«([")[:1] if at < len(words) else ""
    new_line = "\n" in words[at - 1] and not follows.islower()
    return (bare[-1:] in {".", "!", "?", "…"} and not shortened) or new_line


def len_of(text: str) -> int:
    return lengths([text])[0]


def plain(text: str, most: int) -> list[str]:
    """The same pieces by a loop over words, the tokenizers library asked about each."""
    words = re.findall(r"[^ \t\n\r]+[ \t\n\r]*", text)
    counts = lengths(words)
    pieces, at = [], 0
    while at < len(words):
        left, end = sum(counts[at:]), at
        if left > most:
            room = min(most, left - most // 4)
            while sum(counts[at : end + 1]) <= room:
                end += 1
            end = max(end, at + 1)
            places = [p for p in range(at + 1, end + 1) if sum(counts[at:p]) >= most / 4 and ends_sentence(words, p)]
            blank = [
                p for p in range(at + 1, end + 1) if sum(counts[at:p]) >= most / 2 and words[p - 1].count("\n") > 1
            ]
            end = (blank or places or [end])[-1]
        else:
            end = len(words)
        pieces.append("".join(words[at:end]).strip())
        at = end
    return pieces


@pytest.fixture(scope="module")
def documents(passages: pa.Table) -> list[str]:
    """Of 1 to 12 docstrings each, lines and paragraphs as they were."""
    texts, at, found = passages["text"].to_pylist(), 0, []
    for size in range(1, 13):
        found.append("\n\n".join(texts[at : at + size]))
        at += size
    return found


@pytest.mark.parametrize("most", [12, 48, 200])
def test_a_plain_loop_cuts_real_documents_alike(documents: list[str], most: int) -> None:
    short = [" ".join(w for w in text.split(" ") if len(w) <= most) for text in documents]  # no word is cut
    assert pieces_of(short, most) == [plain(text, most) for text in short]


@pytest.mark.parametrize("most", [1, 7, 48])
def test_no_piece_is_too_long_and_nothing_is_lost(documents: list[str], most: int) -> None:
    texts = [*documents, "a" * 3000, "东京很大，人很多。" * 50, "x" * 70 + " y", "\n \n b. " + "https://a.bc/" * 40]
    for text, pieces in zip(texts, pieces_of(texts, most), strict=True):
        assert max(lengths(pieces)) <= most
        assert "".join("".join(pieces).split()) == "".join(text.split())


@settings(max_examples=100)
@given(st.lists(st.text(max_size=60), max_size=4), st.integers(2, 12))
def test_any_text(texts: list[str], most: int) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    for text, pieces in zip(texts, pieces_of(texts, most), strict=True):
        for piece, count in zip(pieces, lengths(pieces), strict=True):
            single = sum(length > 0 for length in lengths(list(piece))) == 1  # of three tokens, as Hangul has
            assert piece
            assert count <= most or single
        assert "".join("".join(pieces).split()) == "".join(text.split())


def test_a_tokenizer_that_joins_words_keeps_the_limit(documents: list[str], tmp_path: Path) -> None:
    """Byte-level BPE as GPT's, one that knows no words at all, and SentencePiece's way: sums of words do not tell."""
    bpe = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    unigram = trainers.UnigramTrainer(vocab_size=600, show_progress=False, unk_token="?", special_tokens=["?"])
    for name in ("gpt", "joins", "pieces"):
        tokenizer = Tokenizer(models.Unigram() if name == "pieces" else models.BPE())
        if name == "gpt":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if name == "pieces":
            tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trained = [text[:500] for text in documents[:6]] if name == "joins" else documents[:6]
        tokenizer.train_from_iterator(trained, unigram if name == "pieces" else bpe)
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").touch()
        texts = [*documents, "0123456789" * 20, "㏂" * 60]
        for text, pieces in zip(texts, pieces_of(texts, 32, str(tmp_path / name)), strict=True):
            counts = lengths(pieces, str(tmp_path / name))
            assert max(counts) <= 32
            assert "".join("".join(pieces).split()) == "".join(text.split())
            assert (
                name != "gpt" or text not in documents or len(pieces) < 4 or np.mean(counts) > 18
            )  # and limits are used


def test_where_pieces_end() -> None:
    one, two = "The parser reads one sentence at a time.", "It then builds a tree of the words."
    assert pieces_of([f"{one} {two}"], 12) == [[one, two]]
    lower = "genes were cut out and spliced back again. we saw it by smith et al. and dr. jones in fig. 3 too."
    assert pieces_of([lower], 26) == [[lower[: lower.index("we saw") - 1], lower[lower.index("we saw") :]]]
    wrapped = "a line that goes on\nand on and on\nand on until. Here it\nends, or so they say it."
    assert pieces_of([wrapped], 16) == [[wrapped[: wrapped.index("Here") - 1], wrapped[wrapped.index("Here") :]]]
    paragraphs = "one two three four five six. seven eight\n\nnine ten. eleven twelve thirteen fourteen"
    assert pieces_of([paragraphs], 12) == [paragraphs.split("\n\n")]
    crumb = " ".join(["word"] * 33)
    assert [len(piece.split()) for piece in pieces_of([crumb], 32)[0]] == [25, 8]


def test_where_pieces_end_in_other_scripts() -> None:
    one, two = "Свет погас, и стало\nтихо в доме до\nутра.", "Потом\nони ушли."
    assert pieces_of([f"{one} {two}"], len_of(one) + 3) == [[one, two]]
    for text in ("「こんにちは。」と言った。" * 3, "他说：“好。”然后走了。" * 3):
        pieces = pieces_of([text], 14)[0]
        assert len(pieces) > 1
        assert not [piece for piece in pieces if piece[0] in "」”"]
    hindi = "यह घर है। वह पेड़ है। "
    assert {piece[-1] for piece in pieces_of([hindi * 3], len_of(hindi))[0]} == {"।"}


def test_blank_and_absent_texts_have_no_piece() -> None:
    assert pieces_of(["", " \n ", "a", "\u3000"], 8) == [[], [], ["a"], []]
    for empty in (pa.array([], pa.large_string()), pa.chunked_array([], pa.large_string())):
        pieces, parents = Chunker(8).pieces(empty)
        assert (len(pieces), len(parents)) == (0, 0)
    chunked = pa.chunked_array([["a b"], ["c d", "e"]], pa.string()).slice(1)
    assert Chunker(1).pieces(chunked)[0].to_pylist() == ["c", "d", "e"]
