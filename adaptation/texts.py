"""The text that a masked LM is trained on: read, collapsed, held out, and cut into pieces of tokens.

Everything up to the tokenizer is Arrow, and in memory, some three times over while copies are collapsed. The pieces lie
in a memory-mapped Arrow file, so training holds no text. A text longer than the model's input is split into pieces
rather than cut off, since the end of a passage teaches as much as its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selection.errors import InputError
from selection.guard import normalise
from selection.reading import is_blank, read_table, texts_of
from selection.task import read_task

AUGMENTATION_FILE = "augmentation.parquet"
MOST_HELD_OUT = 1000
BLOCK = 65_536
PIECE_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("length", pa.int32()), ("text_row", pa.int64())])
WORD_FIELD = pa.field("words", pa.list_(pa.int32()))


@dataclass(frozen=True)
class Source:
    """One input as it was read: its path, what it is (``file``, ``task`` or ``set``) and how many texts it gave."""

    path: str
    kind: str
    texts: int


@dataclass(frozen=True)
class TrainingText:
    """Texts to train on and texts held out, none of them in both.

    Attributes:
        train: distinct texts in reading order (large_string).
        held_out: distinct texts the model is measured on, never trained on (large_string).
        sources: what was read, in the order given.
        duplicates: texts dropped because the same text stood earlier.
        withheld: texts dropped because they are dev or test texts of a task among the sources, or held-out ones.
    """

    train: pa.ChunkedArray
    held_out: pa.ChunkedArray
    sources: list[Source]
    duplicates: int
    withheld: int

    def counts(self) -> dict[str, int]:
        """How many texts: ``train``, ``held_out``, ``duplicates``, ``withheld``."""
        counts = {"train": len(self.train), "held_out": len(self.held_out)}
        return counts | {"duplicates": self.duplicates, "withheld": self.withheld}


def read_training_text(
    paths: Sequence[Path | str], *, held_out_file: Path | None, held_out: float, seed: int, guarded: bool = True
) -> TrainingText:
    """Reads files, task folders and augmentation folders into one column of distinct texts.

    Of a task folder only the train split is read; a text that is also one of its dev or test texts, from whichever
    source, is left out, case, spacing and punctuation aside as by the guard of sets.

    Args:
        paths: text, csv, jsonl, parquet or arrow files with a ``text`` column; task folders; augmentation folders.
        held_out_file: texts to measure on; those among the training texts are taken out of them.
        held_out: without such a file, the share of distinct texts held out (at least 1, at most `MOST_HELD_OUT`).
        seed: chooses which.
        guarded: whether dev and test texts are left out; held-out ones always are.

    Raises:
        InputError: nothing to read, a folder that is neither a task nor a set, no text left to train on.
    """
    if not paths:
        raise InputError("no training text given: name a file, a task folder or an augmentation folder with --text")
    columns, sources, forbidden = [], [], [pa.array([], pa.large_string())]
    for path in map(Path, paths):
        kind, texts, evaluated = _read_source(path)
        columns.append(texts)
        forbidden += evaluated if guarded else []
        sources.append(Source(str(path), kind, len(texts)))
    everything = _chunks(columns)
    distinct = pa.chunked_array([everything.unique()])
    allowed = distinct.filter(pc.invert(pc.is_in(_compared(distinct), _compared(_chunks(forbidden)).unique())))
    if held_out_file is not None:
        measured = pa.chunked_array([_texts_of_file(held_out_file).unique()])
        train = allowed.filter(pc.invert(pc.is_in(_compared(allowed), _compared(measured).unique())))
    else:
        train, measured = _hold_out(allowed, held_out, seed)
    if len(train) == 0:
        raise InputError(f"{join_paths(paths)}: no text is left to train on once held-out, dev and test texts are out")
    taken = 0 if held_out_file is None else len(allowed) - len(train)
    return TrainingText(train, measured, sources, len(everything) - len(distinct), len(distinct) - len(allowed) + taken)


def _compared(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """The guard's form of each, a block at a time, so that what is folded on the way stays small."""
    blocks = [texts.slice(start, BLOCK) for start in range(0, len(texts), BLOCK)]
    return pa.chunked_array([normalise(block) for block in blocks], pa.large_string())


def join_paths(paths: Sequence[Path | str]) -> str:
    """Paths for a sentence."""
    return ", ".join(str(p) for p in paths)


def _read_source(path: Path) -> tuple[str, pa.ChunkedArray, list[pa.ChunkedArray]]:
    if not path.is_dir():
        return "file", _texts_of_file(path), []
    if (path / AUGMENTATION_FILE).exists():
        return "set", _texts_of_file(path / AUGMENTATION_FILE), []
    if (path / "train.jsonl").exists():
        task = read_task(path)
        return "task", task.train_texts, [task.splits[s]["text"] for s in ("dev", "test") if s in task.splits]
    raise InputError(
        f"{path} is neither a task folder (no train.jsonl) nor an augmentation set (no {AUGMENTATION_FILE})"
    )


def _texts_of_file(path: Path) -> pa.ChunkedArray:
    texts = texts_of(read_table(path, "text"), path)
    texts = texts.filter(pc.invert(is_blank(texts)))
    if len(texts) == 0:
        raise InputError(f"{path} has no text")
    return texts


def _chunks(columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.ChunkedArray:
    chunks = [c for column in columns for c in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    return pa.chunked_array(chunks, pa.large_string())


def _hold_out(texts: pa.ChunkedArray, share: float, seed: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    if len(texts) < 2:
        raise InputError("one distinct text is too few: one must be held out to measure the masked-LM loss on")
    count = min(max(round(share * len(texts)), 1), MOST_HELD_OUT, len(texts) - 1)
    held = np.zeros(len(texts), bool)
    held[np.random.default_rng(seed).permutation(len(texts))[:count]] = True
    return texts.filter(pa.array(~held)), texts.filter(pa.array(held))


def tokenise(texts: pa.ChunkedArray, tokenizer: Any, max_tokens: int, words: bool, file: Path) -> None:
    """Writes `texts` as pieces of at most `max_tokens` tokens to an Arrow file.

    Args:
        texts: large_string column.
        tokenizer: a fast transformers tokenizer.
        max_tokens: longest piece, special tokens included.
        words: also store each token's word number within its text (-1 for special tokens), for whole-word masking.
        file: Arrow stream file to write, columns `PIECE_SCHEMA` and, with `words`, `WORD_FIELD`; see `open_pieces`.
    """
    import datasets

    datasets.disable_progress_bars()

    def cut(batch: dict[str, list[str]], rows: list[int]) -> dict[str, Any]:
        encoded = tokenizer(
            batch["text"],
            truncation=True,
            padding=False,
            max_length=max_tokens,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids = encoded["input_ids"]
        pieces = {
            "input_ids": ids,
            "length": [len(piece) for piece in ids],
            "text_row": np.asarray(rows)[encoded["overflow_to_sample_mapping"]],
        }
        if words:
            # The tokenizer hands out word numbers one piece at a time only.
            pieces["words"] = [[-1 if w is None else w for w in encoded.word_ids(i)] for i in range(len(ids))]
        return pieces

    source = datasets.Dataset(datasets.table.InMemoryTable(pa.table({"text": texts})))
    source.map(
        cut,
        batched=True,
        with_indices=True,
        remove_columns=["text"],
        features=datasets.Features.from_arrow_schema(PIECE_SCHEMA.append(WORD_FIELD) if words else PIECE_SCHEMA),
        cache_file_name=str(file),
        load_from_cache_file=False,
        new_fingerprint=file.stem,
    )


def open_pieces(file: Path) -> Any:
    """The memory-mapped `datasets.Dataset` that `tokenise` wrote."""
    import datasets

    return datasets.Dataset.from_file(str(file))


def lengths_of(pieces: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens of every piece, special tokens included: int64 [pieces]."""
    return pieces.data.column("length").to_numpy().astype(np.int64)  # type: ignore[no-any-return]


def texts_in_pieces(pieces: Any) -> int:
    """How many texts were longer than one piece."""
    counts = np.bincount(pieces.data.column("text_row").to_numpy())
    return int((counts > 1).sum())
