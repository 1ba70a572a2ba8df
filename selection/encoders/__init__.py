"""Encoders: text to unit vectors. One protocol, so that everything downstream takes any of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.errors import ModelError

PRECISIONS = ("exact", "bf16")


class Encoder(Protocol):
    """What turns passages and task examples alike into comparable vectors.

    Attributes:
        model: the name it was asked for by.
        slug: its folder's name under STORE/embeddings.
        precision: ``exact`` (the model's float32) or ``bf16``.
        max_tokens: where inputs are cut, special tokens included; None for the model's own limit.
        fingerprint: sha256 over all that shapes its output.
        dim: length of a vector.
    """

    model: str
    slug: str
    precision: str
    max_tokens: int | None
    fingerprint: str
    dim: int

    def encode(self, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
        """Vectors float32 [n, dim] of norm 1, in the order of `texts`."""
        ...


def load_encoder(
    model: str, precision: str = "exact", device: str | None = None, max_tokens: int | None = None
) -> Encoder:
    """The encoder called `model`.

    Args:
        model: a sentence-transformers model: a folder, a hub id, or a short name such as ``all-MiniLM-L6-v2``.
        precision: one of `PRECISIONS`.
        device: ``cpu``, ``cuda``, ``mps``; None lets sentence-transformers choose.
        max_tokens: cut inputs to so many tokens: faster, and blind to the rest of a passage.

    Raises:
        ModelError: no such model here or on the hub, unsafe weights, unknown precision.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    from selection.encoders.transformer import TransformerEncoder

    return TransformerEncoder(model, precision, device, max_tokens)
