"""The text that a masked LM is trained on: read, collapsed, held out, and cut into pieces of tokens.

Everything up to the tokenizer is Arrow, and passes through memory a batch at a time: the distinct texts lie in one
memory-mapped file, until they are cut, and the pieces in another, so training holds no text. A text longer than the
model's input is split into pieces rather than cut off, since the end of a passage teaches as much as its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selection.domains import AUGMENTATION_FILE, domains_of, kind_of_domain
from selection.errors import InputError
from selection.finding import find_files
from selection.guard import normalise
from selection.hashes import Seen, text_hashes
from selection.reading import CALL_IT, COLUMNAR_KINDS, is_blank, kind_of, read_table, texts_of
from selection.task import read_task

MOST_HELD_OUT = 1000
BLOCK_ROWS, BLOCK_BYTES = 1000, 1 << 20
EVALUATION = ("dev", "test")
SCHEMA = pa.schema([("text", pa.large_string())])
PIECE_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("length", pa.int32()), ("text_row", pa.int64())])
WORD_FIELD = pa.field("words", pa.list_(pa.int32()))


@dataclass(frozen=True)
class Source:
    """One input as it was read: its path, its kind (``file``, ``task``, ``set``, ``store``), how many texts it gave."""

    path: str
    kind: str
    texts: int


@dataclass(frozen=True)
class TrainingText:
    """Texts to train on and texts held out, none of them in both.

    Attributes:
        train: distinct texts in reading order (large_string), mapped from a file.
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
    paths: Sequence[Path | str],
    file: Path,
    *,
    held_out_file: Path | None,
    held_out: float,
    seed: int,
    guarded: bool = True,
) -> TrainingText:
    """Reads files, tasks, augmentation sets and stores as one column of distinct texts, which it writes to `file`.

    Of a task folder only the train split is read; a text that is also one of its dev or test texts, from whichever
    source, is left out, case, spacing and punctuation aside as by the guard of sets.

    Memory is a batch, 8 bytes a distinct text (32 for moments) and the texts that are held out or forbidden. That one
    of a billion texts is taken for another, and left out, has a chance of 3 % (`selection.hashes`).

    Args:
        paths: files, folders of Parquet or Arrow files and globs, with a column ``text``; task folders; augmentation
            folders; stores.
        file: an Arrow file to be made, as large as the texts, and there for as long as they are used.
        held_out_file: texts to measure on; those among the training texts are taken out of them.
        held_out: without such a file, the share of distinct texts held out (at least 1, at most `MOST_HELD_OUT`).
        seed: chooses which.
        guarded: whether dev and test texts are left out; held-out ones always are.

    Raises:
        InputError: nothing to read, a folder that is none of these, no text left to train on.
    """
    if not paths:
        raise InputError("no training text given: name a file, a task folder or an augmentation folder with --text")
    inputs = [(Path(path), *_open(Path(path))) for path in paths]
    forbidden, seen = Seen(), Seen()
    for _, _, _, evaluated in inputs if guarded else []:
        forbidden.add(text_hashes(normalise(evaluated)))
    measured = None
    if held_out_file is not None:
        measured = pa.chunked_array([_measured(held_out_file)])
        forbidden.add(text_hashes(normalise(measured)))
    sources, distinct = [], 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for path, kind, batches, _ in inputs:
            read = 0
            for texts in batches:
                texts = texts.filter(pc.invert(is_blank(texts)))
                read += len(texts)
                texts = _unseen(texts, seen)
                distinct += len(texts)
                if len(forbidden):
                    texts = texts.filter(pa.array(~forbidden.has(text_hashes(normalise(texts)))))
                if len(texts):
                    writer.write_batch(pa.record_batch([texts], SCHEMA))
            if read == 0:
                raise InputError(f"{path} has no text")
            sources.append(Source(str(path), kind, read))
    train = pa.ipc.open_file(pa.memory_map(str(file))).read_all()["text"]
    duplicates, withheld = sum(source.texts for source in sources) - distinct, distinct - len(train)
    if measured is None and len(train):
        train, measured = _hold_out(train, held_out, seed)
    if measured is None or len(train) == 0:
        raise InputError(f"{join_paths(paths)}: no text is left to train on once held-out, dev and test texts are out")
    return TrainingText(train, measured, sources, duplicates, withheld)


def join_paths(paths: Sequence[Path | str]) -> str:
    """Paths for a sentence."""
    return ", ".join(str(p) for p in paths)


def _open(path: Path) -> tuple[str, Iterator[pa.LargeStringArray], pa.ChunkedArray]:
    """(what it is, its texts, those of its dev and test)."""
    kind, nothing = kind_of_domain(path), pa.chunked_array([], pa.large_string())
    if kind == "task":
        task = read_task(path)
        columns = [task.splits[split]["text"].chunks for split in EVALUATION if split in task.splits]
        return kind, iter(task.train_texts.chunks), pa.chunked_array(chain.from_iterable(columns), pa.large_string())
    if kind == "file" and path.is_dir() and not _has_tables(path):
        raise InputError(
            f"{path} is neither a task folder (no train.jsonl) nor an augmentation set (no {AUGMENTATION_FILE}), "
            "a store or a folder of Parquet"
        )
    texts = chain.from_iterable(batches for _, batches in domains_of("text", str(path), "text", CALL_IT))
    return kind, texts, nothing


def _has_tables(folder: Path) -> bool:
    """Whether Parquet or Arrow files are in it; other folders hold text of all sorts, a model's vocabulary say."""
    with suppress(InputError):
        return kind_of(find_files(str(folder), True)[0]) in COLUMNAR_KINDS
    return False


def _measured(path: Path) -> pa.Array:
    """The distinct texts of a file."""
    texts = texts_of(read_table(path, "text"), path)
    texts = texts.filter(pc.invert(is_blank(texts)))
    if len(texts) == 0:
        raise InputError(f"{path} has no text")
    return texts.unique()


def _unseen(texts: pa.LargeStringArray, seen: Seen) -> pa.LargeStringArray:
    """Those that stood nowhere before, which `seen` remembers."""
    hashes = text_hashes(texts, spaces=True)
    new = ~seen.repeated(hashes)
    seen.add(hashes[new])
    return texts.filter(pa.array(new))


def _hold_out(texts: pa.ChunkedArray, share: float, seed: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    if len(texts) < 2:
        raise InputError("one distinct text is too few: one must be held out to measure the masked-LM loss on")
    count = min(max(round(share * len(texts)), 1), MOST_HELD_OUT, len(texts) - 1)
    held = np.sort(np.random.default_rng(seed).permutation(len(texts))[:count])
    between = zip([-1, *held], [*held, len(texts)], strict=True)
    train = [texts.slice(low + 1, high - low - 1).chunks for low, high in between]  # which copies nothing
    # One by one, since take would put all chunks together first.
    measured = pa.concat_arrays(list(chain.from_iterable(texts.slice(row, 1).chunks for row in held)))
    return pa.chunked_array(chain.from_iterable(train), pa.large_string()), pa.chunked_array([measured])


def tokenise(texts: pa.ChunkedArray, tokenizer: Any, max_tokens: int, words: bool, file: Path) -> None:
    """Writes `texts` as pieces of at most `max_tokens` tokens to an Arrow file.

    Args:
        texts: large_string column.
        tokenizer: a fast transformers tokenizer.
        max_tokens: longest piece, special tokens included.
        words: also store each token's word number within its text (-1 for special tokens), for whole-word masking.
        file: Arrow stream file to write, columns `PIECE_SCHEMA` and, with `words`, `WORD_FIELD`; see `open_pieces`.
    """
    schema = PIECE_SCHEMA.append(WORD_FIELD) if words else PIECE_SCHEMA
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for block in blocks(texts):
            encoded = encoded_pieces(texts[block], tokenizer, max_tokens)
            ids = pa.array(encoded["input_ids"], pa.list_(pa.int32()))
            rows = block.start + np.asarray(encoded["overflow_to_sample_mapping"], np.int64)
            columns = [ids, ids.value_lengths(), pa.array(rows)]
            if words:
                # The tokenizer hands out word numbers one piece at a time only.
                numbers = [[-1 if w is None else w for w in encoded.word_ids(i)] for i in range(len(ids))]
                columns.append(pa.array(numbers, WORD_FIELD.type))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def blocks(texts: pa.ChunkedArray) -> Iterator[slice]:
    """Rows for one call of a tokenizer, which takes a hundred times the memory of their text; or one row of more."""
    ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False))
    start = 0
    while start < len(texts):
        before = int(ends[start - 1]) if start else 0
        full = int(np.searchsorted(ends, before + BLOCK_BYTES, "right"))
        stop = max(min(full, start + BLOCK_ROWS), start + 1)
        yield slice(start, stop)
        start = stop


def encoded_pieces(texts: pa.ChunkedArray, tokenizer: Any, max_tokens: int) -> Any:
    """The tokenizer's answer for texts cut into pieces: ``input_ids`` a piece, ``overflow_to_sample_mapping``."""
    return tokenizer(
        texts.to_pylist(),
        truncation=True,
        padding=False,
        max_length=max_tokens,
        return_overflowing_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )


def open_pieces(file: Path) -> Any:
    """The memory-mapped `datasets.Dataset` that `tokenise` wrote."""
    import datasets

    return datasets.Dataset.from_file(str(file))


def texts_in_pieces(pieces: Any) -> int:
    """How many texts were longer than one piece."""
    counts = np.bincount(pieces.data.column("text_row").to_numpy())
    return int((counts > 1).sum())
