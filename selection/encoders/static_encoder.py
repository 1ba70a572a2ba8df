"""The static encoder behind the one protocol: ``static:<model>``, for corpora that the model itself is too slow for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from selection.encoders import STATIC, EncoderSpec, full_name
from selection.encoders.engine import Tick, no_tick
from selection.encoders.recall import told, worth
from selection.encoders.static import StaticModel, distil, fit_static
from selection.encoders.transformer import TransformerEncoder, prompted
from selection.errors import ModelError
from selection.files import fingerprint, sha256_of_file
from selection.models import model_fingerprint, resolve_model
from selection.tokens import ArrayTokenizer, Ragged

HELD, MOST_HELD = 8, 1024  # one sampled passage in so many says what the fit is worth, up to so many


class StaticEncoder:
    """See `selection.encoders.Encoder`.

    Args:
        spec: with the model's name behind ``static:``.
        folder: what `fit` wrote.
    """

    engine = "numpy"

    def __init__(self, spec: EncoderSpec, folder: Path) -> None:
        teacher = resolve_model(spec.teacher)
        self.model = STATIC + full_name(spec.teacher)
        self.precision, self.max_tokens, self.prompt = spec.precision, spec.max_tokens, spec.prompt
        self.slug = spec.slug
        self._static = StaticModel.load(folder)
        self._tokenizer = ArrayTokenizer(spec.teacher)
        files = [sha256_of_file(path) for path in sorted(folder.iterdir())]
        parts = [model_fingerprint(teacher), "static", str(spec.max_tokens), *files, *prompted(spec.prompt)]
        self.fingerprint = fingerprint(*parts)
        self.dim = self._static.dim

    def prepare(self, texts: pa.Array | pa.ChunkedArray) -> Any:
        return self._tokenizer(texts)

    def run(self, prepared: Any, tick: Tick = no_tick) -> npt.NDArray[np.float32]:
        return self._static.vectors(prepared, tick)

    def encode(self, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
        return self.run(self.prepare(texts))


def fit(
    teacher: TransformerEncoder, texts: pa.ChunkedArray, report: Callable[[str], None]
) -> tuple[StaticModel, dict[str, float | int]]:
    """(a static encoder fitted to `teacher` on texts of a corpus, what it is worth, for the manifest).

    Args:
        texts: a sample in random order; one in `HELD`, at most `MOST_HELD`, are held out and measured on.
    """
    if teacher.engine == "sentence-transformers":
        raise ModelError(f"{teacher.model} has a pipeline of its own kind, which no static encoder can be fitted to")
    tokenizer = ArrayTokenizer(teacher.model)
    tokens = tokenizer(texts)
    with tqdm(total=len(texts), desc="sampling", unit=" passages", disable=None) as bar:
        vectors = teacher.run(teacher.prepare(texts), lambda rows: bar.update(len(rows)))

    def alone(ids: Ragged) -> npt.NDArray[np.float32]:
        return teacher.run(tokenizer.with_specials(ids, teacher.limit))

    held = min(len(texts) // HELD, MOST_HELD)
    shown, hidden = np.arange(held, len(texts)), np.arange(held)
    limit = teacher.limit - tokenizer.special_tokens
    model = fit_static(
        tokens.take(shown),
        vectors[shown],
        distil(alone, tokenizer.vocabulary_size),
        limit=limit,
        progress=lambda stage: report(f"static  {stage}"),
    )
    found = worth(model.vectors(tokens.take(hidden)), vectors[hidden])
    report(f"static  {told(found)}")
    return model, found
