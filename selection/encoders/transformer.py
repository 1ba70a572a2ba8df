"""Sentence-transformers models as encoders: their own modules and weights, around this project's tokens and batches.

A window of texts becomes token ids as arrays, identical inputs are dropped, and the rest goes to an engine in batches
of like length. Where that would not give the model's own vectors (a tokenizer or a pipeline of its own kind; a probe
tells), its ``encode`` is called instead. Passages and task examples take the same way with the same prompt, the model's
default one or the one that was asked for, since neighbours are sought among like and like (a symmetric search). Weights
are read from safetensors only and no remote code is run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.devices import free_memory, suit_cuda
from selection.encoders import Encoder, full_name, openvino_engine, slug_of
from selection.encoders.engine import Engine, Tick, no_tick
from selection.encoders.openvino_engine import OpenVinoEngine
from selection.encoders.torch_engine import TorchEngine
from selection.errors import ModelError
from selection.files import fingerprint, sha256_of_file
from selection.models import model_fingerprint, quiet_libraries, resolve_encoder, resolve_model
from selection.tokens import ArrayTokenizer, Ragged

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

AGREES, AGREES_EXACTLY = 0.998, 0.99999  # least cosine of a probe's vectors: of rounded ones, of float32's
MASKED_AWAY = {"exact": 1e-4, "bf16": 0.03}  # most that masks made here may move a probe's vector
PROBE = ("a probe", "Texts of several lengths, one of them cut: 3.14 (naïve)!", "word " * 700, "one " * 11, "on " * 10)


class TransformerEncoder:
    """See `selection.encoders.Encoder`.

    Args:
        device: see `selection.encoders.load_encoder`; OpenVINO takes the CPU.
        engine: ``torch`` or ``openvino``.
        quantized: the .xml of an int8 model made by `selection.encoders.int8`, with precision ``int8``.
        prompt: see `selection.encoders.EncoderSpec`.
    """

    def __init__(
        self,
        model: str,
        precision: str = "exact",
        device: str | None = None,
        max_tokens: int | None = None,
        engine: str = "torch",
        quantized: Path | None = None,
        prompt: str | None = None,
    ) -> None:
        folder = resolve_encoder(model)
        self.model = full_name(model)
        self.precision, self.max_tokens, self.prompt = precision, max_tokens, prompt
        self.slug = slug_of(model, precision, max_tokens)
        parts = [model_fingerprint(folder), precision, str(max_tokens), *prompted(prompt)]
        if quantized is not None:
            parts += [sha256_of_file(quantized), sha256_of_file(quantized.with_suffix(".bin"))]
        self.fingerprint = fingerprint(*parts)
        on_cpu = engine == "openvino" or quantized is not None
        where = ("exact", "cpu") if on_cpu else (precision, device)
        self.pipeline = load_pipeline(model, *where, max_tokens, prompt)
        self.limit = min(int(self.pipeline.max_seq_length or 512), 2**31 - 1)  # some say that they have none
        self._prompt = (self.pipeline.prompts or {}).get(self.pipeline.default_prompt_name or "", "")
        self._tokenizer = _array_tokenizer(self.pipeline, model)
        self._strip = self._tokenizer is not None and not self._tokenizer.by_words
        self.pad = int(getattr(self.pipeline.tokenizer, "pad_token_id", 0) or 0)
        self._engine: Engine | None = None
        if self._tokenizer is not None:
            source = quantized or (openvino_engine.convert(self.pipeline) if engine == "openvino" else None)
            self._engine = (
                TorchEngine(self.pipeline, self.pad) if source is None else OpenVinoEngine(source, precision, self.pad)
            )
            if quantized is None and not self._agrees():
                if on_cpu:
                    raise ModelError(f"OpenVINO does not give {model}'s own vectors: it runs in torch")
                self._engine = None
            elif isinstance(self._engine, TorchEngine) and self.pipeline.device.type == "cuda":
                self.spare_masks()
        elif on_cpu:
            raise ModelError(f"{model} has a pipeline of its own kind: only --precision exact and bf16 in torch run it")
        self.dim = int(self.pipeline.get_embedding_dimension())
        self.engine = self._engine.name if self._engine else "sentence-transformers"
        self.device = "cpu" if on_cpu else str(self.pipeline.device)
        if on_cpu:
            self.pipeline.to("meta")  # the graph has its own copy of the weights

    def compile(self, backend: str | Callable[..., Any] = "inductor") -> bool:
        """Compiles a torch engine for the device, a minute's work; False, and nothing has changed, where it cannot be.

        Args:
            backend: one of torch.compile's.
        """
        if self.compiled or not isinstance(self._engine, TorchEngine):
            return self.compiled
        texts = pa.array(PROBE)
        plain = self.encode(texts)
        try:
            with warnings.catch_warnings():  # that float32 products could be rounded, say
                warnings.simplefilter("ignore")
                self._engine.compile(backend)
                close = float((self.encode(texts) * plain).sum(axis=1).min())
        except RuntimeError as error:  # a Python or a system that torch does not compile on
            log.warning("%s cannot be compiled: %s", self.model, error)
            close = 0.0
        if close < (AGREES if self.precision == "bf16" else AGREES_EXACTLY):
            self.undo_compile()
        return self.compiled

    def give_up(self) -> None:
        """Frees its weights, where processes of their own go on with it; it encodes nothing any more."""
        self.pipeline.to("meta")
        free_memory()

    @property
    def pooling_guessed(self) -> bool:
        """Whether the model says nothing of how tokens become a vector, so that it is by their mean."""
        return not (resolve_model(self.model) / "modules.json").exists()

    @property
    def unused_prompts(self) -> dict[str, str]:
        """Prompts that the model brings, where it takes none of them unasked and none was asked for."""
        named = {name: text for name, text in (self.pipeline.prompts or {}).items() if text}
        return {} if self._prompt or self.prompt is not None else named

    @property
    def compiled(self) -> bool:
        """Whether its engine runs what torch compiled."""
        return isinstance(self._engine, TorchEngine) and self._engine.compiled

    def undo_compile(self) -> None:
        """The engine as it was before `compile`."""
        if isinstance(self._engine, TorchEngine):
            self._engine.undo_compile()

    def prepare(self, texts: pa.Array | pa.ChunkedArray) -> Any:
        if self._engine is None or self._tokenizer is None:
            return texts
        if self._prompt:
            texts = pc.binary_join_element_wise(pa.scalar(self._prompt, texts.type), texts, pa.scalar("", texts.type))
        if self._strip:
            texts = pc.utf8_trim_whitespace(texts)
        return self._tokenizer.model_inputs(texts, self.limit)

    def run(self, prepared: Any, tick: Tick = no_tick) -> npt.NDArray[np.float32]:
        if self._engine is None:
            vectors = self._plain(prepared)
            tick(np.arange(len(vectors)))
        else:
            vectors = self._run_distinct(prepared, tick)
        # Rounded to bfloat16 or int8, a unit vector is off by a thousandth; some pipelines do not normalise at all.
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)

    def encode(self, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
        return self.run(self.prepare(texts))

    def _run_distinct(self, inputs: Ragged, tick: Tick) -> npt.NDArray[np.float32]:
        """Each distinct input once."""
        assert self._engine is not None
        first, which = inputs.distinct()
        copies = np.bincount(which, minlength=len(first))

        def tell(rows: npt.NDArray[np.int64]) -> None:
            tick(np.repeat(first[rows], copies[rows]))

        if len(first) == len(inputs):
            return self._engine.run(inputs, tick)
        return self._engine.run(inputs.take(first), tell)[which]

    def _plain(self, texts: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
        vectors = self.pipeline.encode(texts.to_pylist(), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    def spare_masks(self) -> bool:
        """Has a torch engine make the masks, so that a GPU need not be waited for; False where vectors would change."""
        assert isinstance(self._engine, TorchEngine)
        texts = pa.array(PROBE)
        plain = self.encode(texts)
        self._engine.mask()
        try:
            away = float(np.linalg.norm(self.encode(texts) - plain, axis=1).max())
        except Exception as error:  # a model or a version of transformers that takes no such mask
            log.info("%s takes no mask of each key: %s", self.model, error)
            away = 2.0
        if away > MASKED_AWAY[self.precision]:
            self._engine.undo_mask()
        return self._engine.masked

    def _agrees(self) -> bool:
        """Whether tokens, batches and engine give the model's own vectors of a probe."""
        texts = pa.array(PROBE)
        close = (self.encode(texts) * self._plain(texts)).sum(axis=1).min()
        if close < AGREES:
            log.info("%s: its own encode is used (cosine %.3f with the batched path)", self.model, close)
        return bool(close >= AGREES)


def load_pipeline(
    model: str,
    precision: str = "exact",
    device: str | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
) -> SentenceTransformer:
    """The sentence-transformers model, in float32 or bfloat16, in evaluation mode, with `prompt` as its default one.

    Raises:
        ModelError: no such model here or on the hub, unsafe weights, not a sentence encoder.
    """
    quiet_libraries()
    suit_cuda()
    import torch
    from sentence_transformers import SentenceTransformer

    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    folder = resolve_encoder(model)
    kwargs = {"use_safetensors": True, "dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
    try:
        loaded = SentenceTransformer(str(folder), device=device, model_kwargs=kwargs, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"model {model} at {folder} cannot be loaded as a sentence encoder: {reason}") from error
    if max_tokens is not None:
        loaded.max_seq_length = min(max_tokens, loaded.max_seq_length or max_tokens)
    if prompt is not None:
        name = prompt if prompt in (loaded.prompts or {}) else "named"
        loaded.prompts = {"named": prompt, **(loaded.prompts or {})}
        loaded.default_prompt_name = name
    return loaded.eval()


def on_gpu(encoder: Encoder) -> bool:
    """Whether an encoder runs on another device than the CPU."""
    return isinstance(encoder, TransformerEncoder) and encoder.device != "cpu"


def prompted(prompt: str | None) -> list[str]:
    """What a prompt adds to an encoder's fingerprint."""
    return [] if prompt is None else ["prompt", prompt]


def _array_tokenizer(pipeline: SentenceTransformer, model: str) -> ArrayTokenizer | None:
    """The model's tokenizer on arrays; None where its first module is not a transformer over a fast tokenizer."""
    if not (resolve_model(model) / "tokenizer.json").exists() or not hasattr(pipeline[0], "auto_model"):
        return None
    return ArrayTokenizer(model)
