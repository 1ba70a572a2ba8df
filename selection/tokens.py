"""Counting tokens, in parallel and without truncation: what budgets and plans are stated in."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from selection.errors import ModelError
from selection.models import resolve_model

SLICE = 4096


@lru_cache(maxsize=4)
def load_tokenizer(model: str) -> Tokenizer:
    """The fast tokenizer of `model`, with neither truncation nor padding.

    Raises:
        ModelError: the model is not to be had, or has no tokenizer.json.
    """
    path = resolve_model(model) / "tokenizer.json"
    if not path.exists():
        raise ModelError(f"model {model} has no tokenizer.json, so its tokens cannot be counted: choose another")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_tokens(texts: pa.Array | pa.ChunkedArray, model: str) -> npt.NDArray[np.int64]:
    """Tokens of each text by `model`'s tokenizer, special tokens left out; int64 [n]."""
    tokenizer = load_tokenizer(model)
    counts = np.empty(len(texts), dtype=np.int64)
    for start in range(0, len(texts), SLICE):
        encoded = tokenizer.encode_batch_fast(texts.slice(start, SLICE).to_pylist(), add_special_tokens=False)
        counts[start : start + len(encoded)] = np.fromiter((len(e) for e in encoded), np.int64, len(encoded))
    return counts
