"""Batches of pieces, masked anew each time they are seen (dynamic masking, RoBERTa section 4.1).

Which tokens are masked, and in which order pieces come, is drawn from (seed, epoch, first piece of the batch) and not
from a generator that runs along. A stopped and resumed run therefore sees the batches an undisturbed one sees, though
the loader had fetched ahead when it stopped; with several processes no two batches share their draws.

transformers' own collator is not used: its whole-word option draws for every token and then widens to the word, so
more than the asked share is masked, and it gives up the 80/10/10 rule.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from adaptation.texts import open_pieces, tokenise

IGNORED = -100
HELD_OUT_EPOCH = -1


def generator(*parts: int) -> torch.Generator:
    """A generator whose draws depend on `parts` alone."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass
class Epoch:
    """The epoch under way, shared by the sampler and the collator of one run."""

    number: int = 0


class Pieces(Dataset[Any]):
    """A `datasets.Dataset` that hands a batch over as one Arrow table, with the row numbers asked for."""

    def __init__(self, pieces: Any) -> None:
        self._pieces = pieces.with_format("arrow")

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every piece, special tokens included: int64 [pieces]."""
        lengths: npt.NDArray[np.int64] = self._pieces.data.column("length").to_numpy().astype(np.int64)
        return lengths

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitems__(self, rows: list[int]) -> tuple[list[int], pa.Table]:
        return rows, self._pieces[rows]

    def __getitem__(self, row: int) -> tuple[list[int], pa.Table]:
        return self.__getitems__([row])


@contextmanager
def passing_pieces(texts: pa.ChunkedArray, tokenizer: Any, max_tokens: int) -> Iterator[Pieces]:
    """Texts as pieces, whose file is there within; see `adaptation.texts.tokenise`."""
    with tempfile.TemporaryDirectory(prefix="nearkin-") as scratch:
        file = Path(scratch) / "pieces.arrow"
        tokenise(texts, tokenizer, max_tokens, False, file)
        yield Pieces(open_pieces(file))


def padded(column: pa.ChunkedArray, fill: int) -> torch.Tensor:
    """A list<int32> column as one int64 tensor [rows, longest], shorter rows filled on the right with `fill`."""
    lists = column.combine_chunks()
    lengths = lists.value_lengths().to_numpy()
    matrix = np.full((len(lengths), int(lengths.max())), fill, np.int64)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy()
    return torch.from_numpy(matrix)


@dataclass(frozen=True)
class Masker:
    """Turns a batch of pieces into masked inputs and labels.

    Of the maskable tokens a share `probability` is chosen (with a ``words`` column: of the words, and all tokens of
    a chosen word); of the chosen, 80 % become the mask token, 10 % a random token, 10 % stay (BERT section 3.1).

    Attributes:
        mask_id, pad_id, vocabulary: the tokenizer's.
        special: int64 [n], ids never masked (start, end, padding, mask; an unknown token may be masked).
        probability: share of tokens or words to predict.
        seed, epoch: draw the masks, together with the batch's first row.
    """

    mask_id: int
    pad_id: int
    vocabulary: int
    special: torch.Tensor
    probability: float
    seed: int
    epoch: Epoch = field(default_factory=Epoch)

    @classmethod
    def of(cls, tokenizer: Any, probability: float, seed: int, epoch: Epoch) -> Masker:
        """A masker with the ids of `tokenizer`."""
        special = sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
        pad = tokenizer.pad_token_id
        return cls(
            tokenizer.mask_token_id,
            0 if pad is None else pad,
            len(tokenizer),
            torch.tensor(special),
            probability,
            seed,
            epoch,
        )

    def __call__(self, batch: tuple[list[int], pa.Table]) -> dict[str, torch.Tensor]:
        """``input_ids``, ``attention_mask``, ``labels``: int64 [rows, longest]; labels `IGNORED` where not chosen."""
        rows, table = batch
        ids = padded(table["input_ids"], self.pad_id)
        attention = padded_lengths(table["length"], ids.shape[1])
        words = padded(table["words"], -1) if "words" in table.column_names else None
        inputs, labels = self.mask(ids, attention.bool(), words, generator(self.seed, self.epoch.number, rows[0]))
        return {"input_ids": inputs, "attention_mask": attention, "labels": labels}

    def mask(
        self, ids: torch.Tensor, real: torch.Tensor, words: torch.Tensor | None, draws: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masked inputs and labels.

        Args:
            ids: int64 [rows, tokens].
            real: bool [rows, tokens], False where padding.
            words: int64 [rows, tokens], word number or -1; None masks token by token.
            draws: the generator to use.
        """
        maskable = real & ~torch.isin(ids, self.special)
        if words is None:
            chosen = torch.rand(ids.shape, generator=draws) < self.probability
        else:
            of_word = words >= 0
            # Numbers run through the whole text, and a piece may stand far behind its beginning.
            first = torch.where(of_word, words, words.max()).amin(1, keepdim=True)
            numbers = torch.where(of_word, words - first, -1)
            by_word = torch.rand((len(ids), int(numbers.max()) + 2), generator=draws) < self.probability
            chosen = by_word.gather(1, numbers + 1)
            maskable &= of_word
        chosen &= maskable
        labels = torch.where(chosen, ids, IGNORED)
        fate = torch.rand(ids.shape, generator=draws)
        inputs = torch.where(chosen & (fate < 0.8), self.mask_id, ids)
        others = torch.randint(self.vocabulary, ids.shape, generator=draws)
        return torch.where(chosen & (fate >= 0.9), others, inputs), labels


def padded_lengths(lengths: pa.ChunkedArray, width: int) -> torch.Tensor:
    """The attention mask of rows of these lengths: int64 [rows, width]."""
    return torch.from_numpy((np.arange(width) < lengths.to_numpy()[:, None]).astype(np.int64))
