"""Encoders: text to unit vectors. One protocol, so that everything downstream takes any of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.encoders.engine import Tick, no_tick
from selection.errors import ModelError
from selection.models import DEFAULT_ENCODER, SHORT_NAMES

PRECISIONS = ("exact", "bf16", "int8")
STATIC = "static:"
CASCADE = "cascade"


class Encoder(Protocol):
    """What turns passages and task examples alike into comparable vectors.

    Attributes:
        model: the name it was asked for by.
        slug: its folder's name under STORE/embeddings.
        precision: one of `PRECISIONS`.
        max_tokens: where inputs are cut, special tokens included; None for the model's own limit.
        prompt: what stands before every text, or the name of one of the model's prompts; None for its default one.
        fingerprint: sha256 over all that shapes its output, but for an engine's rounding of float32.
        dim: length of a vector.
        engine: what runs it.
    """

    model: str
    slug: str
    precision: str
    max_tokens: int | None
    prompt: str | None
    fingerprint: str
    dim: int
    engine: str

    def prepare(self, texts: pa.Array | pa.ChunkedArray) -> Any:
        """What `run` takes: token ids as arrays. May go on in another thread while `run` works."""
        ...

    def run(self, prepared: Any, tick: Tick = no_tick) -> npt.NDArray[np.float32]:
        """Vectors float32 [n, dim] of norm 1, in the order of the texts; `tick` is told which rows are done."""
        ...

    def encode(self, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
        """`run` of `prepare`."""
        ...


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder.

    Attributes:
        model: a sentence-transformers model: a folder, a hub id, or a short name such as ``all-MiniLM-L6-v2``;
            behind ``static:``, the static encoder that is fitted to it.
        precision: one of `PRECISIONS`.
        max_tokens: cut inputs to so many tokens: faster, and blind to the rest of a passage.
        prompt: what stands before every text, passages and examples alike, or the name of one of the model's own
            prompts; None takes the model's default one.
    """

    model: str
    precision: str = "exact"
    max_tokens: int | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ModelError(f"unknown precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}")
        if self.is_static and self.precision != "exact":
            raise ModelError(f"{self.model} has one precision: leave --precision {self.precision} out")

    @property
    def is_static(self) -> bool:
        return self.model.startswith(STATIC)

    @property
    def teacher(self) -> str:
        """The sentence-transformers model behind it."""
        return self.model.removeprefix(STATIC)

    @property
    def is_fitted(self) -> bool:
        """Whether it is made from a sample of the corpus, and kept in the store."""
        return self.is_static or self.precision == "int8"

    @property
    def slug(self) -> str:
        return slug_of(self.model, self.precision, self.max_tokens)


def slug_of(model: str, precision: str = "exact", max_tokens: int | None = None) -> str:
    """A folder name for an encoder: the last part of its name, then precision and limit where they are not its own."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.removeprefix(STATIC)).expanduser().name) or "encoder"
    name = f"static-{name}" if model.startswith(STATIC) else name
    name = name if precision == "exact" else f"{name}-{precision}"
    return name if max_tokens is None else f"{name}-{max_tokens}"


def model_of_cascade(name: str | None) -> str | None:
    """MODEL of ``cascade:MODEL``, the default one of ``cascade`` alone; None for the name of an encoder."""
    if name is None or name.partition(":")[0] != CASCADE:
        return None
    return name.partition(":")[2] or DEFAULT_ENCODER


def full_name(model: str) -> str:
    """A model's name as a store keeps it: a local folder in full, so that it is found from anywhere."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: its folder, however that is spelt, its hub id or its short name."""
    return _one_name(one) == _one_name(other)


def _one_name(model: str) -> str:
    name = model.removeprefix(STATIC)
    folder = Path(name).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else SHORT_NAMES.get(name, name)
    return STATIC + name if model.startswith(STATIC) else name


def load(spec: EncoderSpec, device: str | None = None, engine: str = "torch", fitted: Path | None = None) -> Encoder:
    """The encoder of a spec; see `load_encoder`."""
    from selection.devices import best_device
    from selection.encoders import openvino_engine
    from selection.encoders.transformer import TransformerEncoder

    if spec.is_fitted and fitted is None:
        raise ModelError(f"{spec.slug} is fitted to a corpus: `nearkin build` makes it and keeps it in the store")
    if spec.is_static:
        from selection.encoders.static_encoder import StaticEncoder

        assert fitted is not None
        return StaticEncoder(spec, fitted)
    about = (spec.model, spec.precision)
    if spec.precision == "int8":
        if not openvino_engine.available():
            raise ModelError(f"these embeddings are OpenVINO's int8: {openvino_engine.INSTALL}")
        assert fitted is not None
        model = fitted / "model.xml"
        return TransformerEncoder(*about, "cpu", spec.max_tokens, quantized=model, prompt=spec.prompt)
    if engine == "openvino" and not (openvino_engine.available() and (device or best_device()) == "cpu"):
        engine = "torch"
    return TransformerEncoder(*about, device, spec.max_tokens, engine, prompt=spec.prompt)


def load_encoder(
    model: str,
    precision: str = "exact",
    device: str | None = None,
    max_tokens: int | None = None,
    engine: str = "torch",
    fitted: Path | None = None,
    prompt: str | None = None,
) -> Encoder:
    """The encoder called `model`.

    Args:
        model, precision, max_tokens, prompt: see `EncoderSpec`.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None lets sentence-transformers choose.
        engine: ``torch`` or ``openvino``; ``torch`` where the latter is not installed or the device is no CPU.
        fitted: the folder of what was fitted to a corpus, where that is the kind of encoder.

    Raises:
        ModelError: no such model here or on the hub, unsafe weights, unknown precision, a library that is missing.
    """
    return load(EncoderSpec(model, precision, max_tokens, prompt), device, engine, fitted)
