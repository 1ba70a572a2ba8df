"""Text to token ids, as arrays: what encoders read and what budgets and plans are stated in.

BERT's tokenizers (WordPiece after a split at white space) treat each word by itself, and a corpus has few distinct
words. So texts are cut at white space by array arithmetic over Arrow's own buffer, each distinct word goes through the
tokenizers library once, and the ids of a text are gathered from those of its words: the library's own ids (tested),
many times faster (docs/benchmarks.md), and no Python object a token. Other tokenizers go through the library's batch
call.

Memory: the distinct words seen, at most `CACHE_WORDS` of them or `CACHE_BYTES`, beyond which they are forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from selection.buffers import one, text_buffers
from selection.errors import ModelError
from selection.models import quiet_libraries, resolve_model

SLICE = 2048
HEAD_BYTES = 64  # of a long text for each token that is kept
CACHE_WORDS = 500_000
CACHE_BYTES = 32 << 20

_SPACE = np.zeros(256, dtype=bool)
_SPACE[[ord(c) for c in " \t\n\r"]] = True


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, one after the other: row i is ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
        values: [total], of any dtype.
        offsets: int64 [rows + 1], ascending from 0.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [rows]."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.integer]) -> Ragged:
        """The rows asked for, in that order, repeats allowed."""
        return self.cut(self.offsets[rows], self.lengths[rows])

    def cut(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Ragged:
        """Rows that are the given stretches of `values`."""
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.repeat(starts - offsets[:-1], lengths)
        where += np.arange(len(where))
        return Ragged(self.values[where], offsets)

    def then(self, others: Sequence[Ragged]) -> Ragged:
        """These rows, then those of the others."""
        parts = [self, *others]
        lengths = np.concatenate([part.lengths for part in parts])
        return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))

    def distinct(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """(first row of each distinct content int64 [d], which of those each row is int32 [rows])."""
        as_bytes = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            len(self),
            [None, pa.py_buffer(self.offsets * self.values.itemsize), pa.py_buffer(np.ascontiguousarray(self.values))],
        )
        which = pc.dictionary_encode(as_bytes).indices.to_numpy()
        first = np.full(int(which.max()) + 1 if len(which) else 0, len(which), dtype=np.int64)
        np.minimum.at(first, which, np.arange(len(which)))
        return first, which


@lru_cache(maxsize=4)
def load_tokenizer(model: str) -> Tokenizer:
    """The fast tokenizer of `model`, with neither truncation nor padding.

    Raises:
        ModelError: the model is not to be had, or has none that the tokenizers library can run.
    """
    folder = resolve_model(model)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.exists() else _converted(folder)
    if tokenizer is None:
        raise ModelError(f"model {model} has no tokenizer.json, so its tokens cannot be counted: choose another")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _converted(folder: Path) -> Tokenizer | None:
    """The tokenizer that transformers makes of an older model's vocabulary files; None where it makes no fast one."""
    quiet_libraries()
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError):
        return None
    fast = getattr(found, "backend_tokenizer", None)
    if fast is None or fast.get_vocab_size() <= len(found.all_special_tokens):  # without its files, an empty one
        return None
    return Tokenizer.from_str(fast.to_str())


class ArrayTokenizer:
    """A tokenizer that takes Arrow and gives arrays; not for several threads at once.

    Args:
        model: a name as `selection.models.resolve_model` takes it.

    Raises:
        ModelError: see `load_tokenizer`.
    """

    def __init__(self, model: str) -> None:
        self._tokenizer = load_tokenizer(model)
        self.by_words = _treats_words_alone(self._tokenizer)
        self.special_tokens = self._tokenizer.num_special_tokens_to_add(False)
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        inner = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        self._prefix = np.array(probe.ids[: inner[0]], np.int32) if inner else np.empty(0, np.int32)
        self._suffix = np.array(probe.ids[inner[-1] + 1 :], np.int32) if inner else np.empty(0, np.int32)
        self._words = pa.array([], pa.large_binary())
        self._ids = Ragged(np.empty(0, np.int32), np.zeros(1, np.int64))

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, texts: pa.Array | pa.ChunkedArray) -> Ragged:
        """Token ids int32 of each text, without special tokens, uncut."""
        if not self.by_words:
            return self._encode(texts)
        words = split_words(texts)
        ids = self._word_ids(words.dictionary)
        tokens = ids.take(words.words.values)
        return Ragged(tokens.values, tokens.offsets[words.words.offsets])

    def count_words(self, words: pa.Array) -> npt.NDArray[np.int64]:
        """Tokens that each of `words` (large_binary, white space behind it) adds to a text, int64.

        Where words are not treated alone, as behind a space; white space of more than that counts a token a byte.
        """
        if self.by_words:
            return self._word_ids(words).lengths
        bare = pc.utf8_trim_whitespace(words.cast(pa.large_string()))
        space: npt.NDArray[np.int64] = pc.binary_length(words).to_numpy() - pc.binary_length(bare).to_numpy()
        nothing, blank = pa.scalar("", bare.type), pa.scalar(" ", bare.type)
        behind = pc.binary_join_element_wise(nothing, bare, blank).cast(pa.large_binary())
        return self._word_ids(behind).lengths + np.maximum(space - 1, 0)

    def model_inputs(self, texts: pa.Array | pa.ChunkedArray, limit: int) -> Ragged:
        """`with_specials` of the texts' tokens, a slice at a time, since a long text has many more than are kept."""
        starts = range(0, max(len(texts), 1), SLICE)
        first, *rest = [self.with_specials(self._first(texts.slice(start, SLICE), limit), limit) for start in starts]
        return first.then(rest)

    def _first(self, texts: pa.Array | pa.ChunkedArray, limit: int) -> Ragged:
        """Token ids of texts, of which those of long ones may end anywhere behind the first `limit`.

        What stands behind white space changes no token before it, or few: a tokenizer that looks further, over what
        follows the cut, is given as many tokens again to do so.
        """
        lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
        long = np.flatnonzero(lengths > HEAD_BYTES * limit)
        if len(long) == 0:
            return self(texts)
        heads = pc.utf8_slice_codeunits(texts.take(pa.array(long)), 0, HEAD_BYTES * limit).to_pylist()
        mask = np.zeros(len(texts), dtype=bool)
        mask[long] = True
        cut = pa.array([_whole_words(head) for head in heads], texts.type)
        tokens = self(pc.replace_with_mask(texts, pa.array(mask), cut))
        few = long[tokens.lengths[long] < 2 * limit]
        if len(few) == 0:
            return tokens
        rows = np.arange(len(texts))
        rows[few] = len(texts) + np.arange(len(few))
        return tokens.then([self(texts.take(pa.array(few)))]).take(rows)

    def with_specials(self, tokens: Ragged, limit: int) -> Ragged:
        """Rows as a model reads them: cut so that with its special tokens around it none is longer than `limit`."""
        before, after = len(self._prefix), len(self._suffix)
        kept = np.minimum(tokens.lengths, max(limit - before - after, 0))
        offsets = np.concatenate([[0], np.cumsum(kept + before + after)])
        values = np.empty(offsets[-1], dtype=np.int32)
        inside = np.ones(len(values), dtype=bool)
        for shift, token in enumerate(self._prefix):
            values[offsets[:-1] + shift], inside[offsets[:-1] + shift] = token, False
        for shift, token in enumerate(self._suffix, start=-after):
            values[offsets[1:] + shift], inside[offsets[1:] + shift] = token, False
        values[inside] = tokens.cut(tokens.offsets[:-1], kept).values
        return Ragged(values, offsets)

    def _word_ids(self, words: pa.Array) -> Ragged:
        """The ids of distinct words: remembered ones looked up, new ones tokenized and remembered."""
        found = pc.index_in(words, value_set=self._words)
        missing = words.filter(found.is_null())
        if len(missing):
            self._ids = self._ids.then([self._encode(missing)])
            self._words = pa.concat_arrays([self._words, missing])
            found = pc.index_in(words, value_set=self._words)
        ids = self._ids.take(found.to_numpy())
        if len(self._words) > CACHE_WORDS or self._words.nbytes > CACHE_BYTES:
            self._forget()
        return ids

    def _forget(self) -> None:
        self._words = pa.array([], pa.large_binary())
        self._ids = Ragged(np.empty(0, np.int32), np.zeros(1, np.int64))

    def _encode(self, texts: pa.Array | pa.ChunkedArray) -> Ragged:
        parts, lengths = [np.empty(0, np.int32)], [np.zeros(1, np.int64)]
        for start in range(0, len(texts), SLICE):
            strings = texts.slice(start, SLICE).cast(pa.large_string()).to_pylist()
            encoded = self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)
            parts += [np.array(e.ids, dtype=np.int32) for e in encoded]
            lengths.append(np.fromiter((len(e) for e in encoded), np.int64, len(encoded)))
        return Ragged(np.concatenate(parts), np.cumsum(np.concatenate(lengths)))


def _whole_words(head: str) -> str:
    """The beginning of a text up to its last white space; empty where it has none."""
    return head[: max(head.rfind(space) for space in " \t\n\r") + 1].rstrip()


@dataclass(frozen=True)
class Words:
    """Texts as words: `dictionary` the distinct ones (large_binary), `words` which of them each text holds."""

    dictionary: pa.Array
    words: Ragged


def split_words(texts: pa.Array | pa.ChunkedArray) -> Words:
    """Cuts texts at space, tab and line ends. A word keeps the white space behind it: no byte is copied."""
    raw, begins, bounds = find_words(texts)
    return distinct_words(raw, begins, np.searchsorted(begins, bounds))


def find_words(
    texts: pa.Array | pa.ChunkedArray,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the words of `split_words` are.

    Returns:
        The texts' bytes, one text behind the other; where each word begins, and the end; where each text begins, and
        the end: int64.
    """
    raw, bounds = text_buffers(one(texts).cast(pa.large_string()))
    space = _SPACE[raw]
    begins = np.empty(len(raw), dtype=bool)
    begins[:1] = True
    np.greater(space[:-1], space[1:], out=begins[1:])
    begins[bounds[:-1][bounds[:-1] < len(raw)]] = True
    return raw, np.append(np.flatnonzero(begins), len(raw)), bounds


def distinct_words(raw: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> Words:
    """The distinct ones of words that begin where `find_words` says; `first` the number of each text's first word."""
    buffers = [None, pa.py_buffer(begins), pa.py_buffer(raw)]
    encoded = pc.dictionary_encode(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(begins) - 1, buffers))
    return Words(encoded.dictionary, Ragged(encoded.indices.to_numpy(), first))


def _treats_words_alone(tokenizer: Tokenizer) -> bool:
    """Whether tokenizing a text is tokenizing each stretch between white space: true of BERT's own pipeline."""
    parts = json.loads(tokenizer.to_str())
    kinds = [(parts.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
    spaced = any(character.isspace() for added in parts["added_tokens"] for character in added["content"])
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not spaced


@lru_cache(maxsize=4)
def _counter(model: str) -> ArrayTokenizer:
    return ArrayTokenizer(model)


def count_tokens(texts: pa.Array | pa.ChunkedArray, model: str) -> npt.NDArray[np.int64]:
    """Tokens of each text by `model`'s tokenizer, special tokens left out; int64 [n]."""
    return _counter(model)(texts).lengths
