"""Sentence-transformers models as encoders: their own ``encode``, which sorts by length and pads batch by batch.

Passages and task examples go through the same ``encode`` with the model's default prompt, since neighbours are sought
among like and like (a symmetric search). Weights are read from safetensors only and no remote code is run.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.errors import ModelError
from selection.files import fingerprint
from selection.models import model_fingerprint, quiet_libraries, resolve_model

BATCH = 32


class TransformerEncoder:
    """See `selection.encoders.Encoder`."""

    def __init__(
        self, model: str, precision: str = "exact", device: str | None = None, max_tokens: int | None = None
    ) -> None:
        quiet_libraries()
        import torch
        from sentence_transformers import SentenceTransformer

        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        folder = resolve_model(model)
        kwargs = {"use_safetensors": True, "dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
        try:
            self._model = SentenceTransformer(str(folder), device=device, model_kwargs=kwargs, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"model {model} at {folder} cannot be loaded as a sentence encoder: {reason}") from error
        self._model.eval()
        if max_tokens is not None:
            self._model.max_seq_length = min(max_tokens, self._model.max_seq_length or max_tokens)
        # A local folder is named in full, so that the store finds it from anywhere.
        self.model = str(folder.absolute()) if Path(model).expanduser().is_dir() else model
        self.precision, self.max_tokens = precision, max_tokens
        self.slug = slug_of(model, precision, max_tokens)
        self.fingerprint = fingerprint(model_fingerprint(folder), precision, str(max_tokens))
        probe = self.encode(pa.array(["probe"]))
        self.dim = int(probe.shape[1])

    def encode(self, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
        vectors = self._model.encode(
            texts.to_pylist(),
            batch_size=BATCH,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        vectors = np.asarray(vectors, dtype=np.float32)
        if self.precision != "exact":  # normalised in bfloat16, a unit vector is off by a thousandth
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def slug_of(model: str, precision: str = "exact", max_tokens: int | None = None) -> str:
    """A folder name for an encoder: the last part of its name, then precision and limit where they are not its own."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).expanduser().name) or "encoder"
    name = name if precision == "exact" else f"{name}-{precision}"
    return name if max_tokens is None else f"{name}-{max_tokens}"
