"""Encoding speed and what it costs in recall: the build's embedding stage beside its peers, same texts, same run.

Rounds alternate, so that a machine that slows down slows all; ratios are those of the medians. nearkin's figures are of
the whole stage: reading shards, tokenizing, encoding, float16, writing, syncing and hashing the files. int8 and the
static encoder are fitted to other passages of the same corpus than those that are measured. Static paths, a hundred
times faster, are timed on more passages. Peak memory is that of a process of its own for each path.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.choices import COMPILED, PATHS
from benchmarks.processes import alone, megabytes
from benchmarks.results import Row, alternate
from selection.choosing import Wanted, choose_encoder
from selection.devices import check_devices, search_devices, suit_cuda
from selection.embedding import embed
from selection.encoders import STATIC, Encoder, load
from selection.encoders.recall import RECALL_AT, neighbour_recall
from selection.encoders.transformer import TransformerEncoder
from selection.errors import NearkinError
from selection.ingest import CorpusSpec, ingest
from selection.memory import peak_memory
from selection.models import DEFAULT_ENCODER, quiet_libraries, resolve_model
from selection.store import Store
from selection.stored import spec_of
from selection.tokens import count_tokens

PLAIN = "sentence-transformers encode"
HALF = "sentence-transformers encode, fp16"
DISTILLED = "model2vec, as it distils"
MEANS = "model2vec, plain means"
PACKAGES = {
    "skeletoken": "model2vec[distill]",
    "optimum.intel": "optimum-intel",
    "optimum.onnxruntime": "optimum-onnx",
}
STATIC_TIMES = 16
Vectors = npt.NDArray[np.float32]


@dataclass
class _Path:
    """One way to encode.

    Attributes:
        run: is timed, over `passages` passages.
        vectors: gives those of the sample.
        fit: seconds of what is done once a store.
        runs_model: whether the whole model runs over each passage, on the device that is measured.
        half: whether it runs in half precision, on a GPU.
    """

    run: Callable[[], object]
    vectors: Callable[[], Vectors]
    passages: int
    fit: float = 0.0
    runs_model: bool = True
    half: bool = False


def throughput(
    corpus: Path | str,
    *,
    passages: int = 1024,
    rounds: int = 3,
    text_column: str = "text",
    encoder: str = DEFAULT_ENCODER,
    paths: tuple[str, ...] = PATHS,
    device: str | None = None,
    min_recall: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measures each path.

    Args:
        corpus: a corpus as ``--corpus`` takes it; `passages` of it are drawn by a fixed seed.
        rounds: timed rounds after a warm-up; each runs every path once.
        paths: which of nearkin's `PATHS`; those whose libraries are missing are left out with a note.
        min_recall: what int8 must reach; the first candidate that does is measured.

    Returns:
        One row a path: ``path``, ``passages_s``, ``tokens_s`` (medians), ``ratio`` to sentence-transformers,
        ``of_ceiling`` (model FLOP/s over the matrix peak measured in this run: float32's, but for paths in half
        precision on a GPU, where it is bfloat16's; None for static paths),
        ``memory_mb``, ``recall_50``, ``recall_20``, ``cosine``, ``cosine_min`` (with the exact vectors), ``fit_s``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        bench = _Bench(Path(scratch), str(corpus), text_column, passages, encoder, device)
        found = bench.ways(paths, min_recall, say)
        exact = found[PLAIN].vectors()
        vectors = {name: path.vectors() for name, path in found.items()}
        ceiling = {half: matrix_ceiling(bench.device, half) for half in {False, bench.device != "cpu"}}
        work = bench.flops()
        for path in found.values():
            path.run()  # warm
        median, _ = alternate({name: path.run for name, path in found.items()}, rounds, say)
        memory = {name: bench.memory(name) for name in found}
    base = found[PLAIN].passages / median[PLAIN]
    rows = []
    for name, path in found.items():
        speed = path.passages / median[name]
        rows.append(
            {
                "path": name,
                "passages_s": speed,
                "tokens_s": speed * bench.tokens,
                "ratio": speed / base,
                "of_ceiling": speed * work / ceiling[path.half] if path.runs_model else None,
                "memory_mb": memory[name],
                **_likeness(vectors[name], exact),
                "fit_s": path.fit,
            }
        )
    return rows


def _likeness(vectors: Vectors, exact: Vectors) -> Row:
    """What of a row tells how like the exact vectors those of a path are."""
    same = vectors.shape == exact.shape  # model2vec leaves 256 principal components
    cosines = (vectors * exact).sum(axis=1) if same else None
    return {
        "recall_50": neighbour_recall(vectors, exact, RECALL_AT),
        "recall_20": neighbour_recall(vectors, exact, 20),
        "cosine": None if cosines is None else float(cosines.mean()),
        "cosine_min": None if cosines is None else float(cosines.min()),
    }


def matrix_ceiling(device: str, half: bool) -> float:
    """FLOP/s of a matrix product, in float32 or bfloat16, the best of several."""
    import torch

    rows, width = (2048, 1536) if device == "cpu" else (16_384, 8192)
    dtype = torch.bfloat16 if half else torch.float32
    a, b = torch.randn(rows, width, device=device, dtype=dtype), torch.randn(width, width, device=device, dtype=dtype)
    best = np.inf
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(a, b)[-1, -1].item()  # which waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * rows * width * width / best


class _Bench:
    """The texts, and each path over them."""

    def __init__(
        self, scratch: Path, corpus: str, column: str, passages: int, encoder: str, device: str | None
    ) -> None:
        from sentence_transformers import SentenceTransformer

        quiet_libraries()
        check_devices(device)
        if len(search_devices(device)) > 1 and device is not None:
            raise NearkinError(f"--device {device}: paths are compared on one device")
        suit_cuda()  # for the peers too
        self.scratch, self.encoder = scratch, encoder
        self.model = SentenceTransformer(str(resolve_model(encoder)), device=device)
        self.device = str(self.model.device)
        texts, self.others = _split(scratch, corpus, column, passages)
        self.texts: pa.Array = texts
        self.strings: list[str] = texts.to_pylist()
        more = pq.read_table(self.others)["text"].slice(0, (STATIC_TIMES - 1) * len(texts)).combine_chunks()
        self.many = pa.concat_arrays([texts, more])
        longest = int(self.model.max_seq_length or 512)
        self.lengths = np.minimum(count_tokens(texts, encoder) + 2, longest)
        self.tokens = float(self.lengths.mean())

    def ways(self, paths: tuple[str, ...], min_recall: float, say: Callable[[str], None]) -> dict[str, _Path]:
        """sentence-transformers' way, nearkin's `paths`, and those of peers that are installed, by name."""
        found = {PLAIN: self.plain()}
        if self.device.startswith("cuda"):
            found[HALF] = self.plain(half=True)
        for name in paths:
            try:
                say(f"preparing {name}")
                found[f"nearkin, {name}"] = self.nearkin(name, min_recall, say)
            except NearkinError as error:
                say(f"left out: {name}: {error}")
        for name, build, needs in (
            (DISTILLED, partial(self.model2vec, DISTILLED), "skeletoken"),
            (MEANS, partial(self.model2vec, MEANS), "skeletoken"),
            ("sentence-transformers, OpenVINO", partial(self.backend, "openvino"), "optimum.intel"),
            ("sentence-transformers, ONNX", partial(self.backend, "onnx"), "optimum.onnxruntime"),
        ):
            if _installed(needs):
                found[name] = build()
            else:
                say(f"left out: {name}: {PACKAGES[needs]} is not installed")
        return found

    def flops(self) -> float:
        """Of a passage: two a weight and token, and attention's products."""
        import torch

        config = self.model[0].auto_model.config
        linear = [m for n, m in self.model[0].named_modules() if isinstance(m, torch.nn.Linear) and "pooler" not in n]
        weights = sum(m.weight.numel() for m in linear)
        attention = 4 * config.num_hidden_layers * config.hidden_size * float((self.lengths**2).mean())
        return float(2 * weights * self.tokens + attention)

    def plain(self, half: bool = False) -> _Path:
        from sentence_transformers import SentenceTransformer

        model = self.model
        if half:  # in place, so of a model of its own
            model = SentenceTransformer(str(resolve_model(self.encoder)), device=self.device).half()
        return self._library(model, half)

    def backend(self, name: str) -> _Path:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(resolve_model(self.encoder)), backend=name)
        return replace(self._library(model), runs_model=self.device == "cpu")  # where both of these run

    def _library(self, model: Any, half: bool = False) -> _Path:
        """sentence-transformers' own way to encode with a model."""
        run = partial(model.encode, self.strings, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return _Path(run, lambda: np.asarray(run(), dtype=np.float32), len(self.strings), half=half)

    def nearkin(self, name: str, min_recall: float, say: Callable[[str], None]) -> _Path:
        """The build's embedding stage, with an encoder that was chosen and fitted on other passages."""
        store = _store(self.scratch / "fitting", self.others)
        static, compiled = name == "static", name == COMPILED
        if compiled and not self.device.startswith("cuda"):
            raise NearkinError("a build compiles an encoder on CUDA alone")
        wanted = Wanted(
            STATIC + self.encoder if static else self.encoder,
            None if static else "bf16" if compiled else name,
            device=self.device,
            min_recall=min_recall,
        )
        start = time.perf_counter()
        with store.lock():
            chosen = choose_encoder(store, wanted, say).encoder
            store.save()
        if compiled and not (isinstance(chosen, TransformerEncoder) and chosen.compile()):
            raise NearkinError("torch cannot compile this model here")
        fit = time.perf_counter() - start if static or compiled or name == "int8" else 0.0
        texts = self.many if static else self.texts
        path = self.scratch / f"{name}.parquet"
        pq.write_table(pa.table({"text": texts}), path)
        target = _store(self.scratch / f"store-{name}", path)
        return _Path(
            partial(_embed_anew, target, chosen),
            lambda: chosen.encode(self.texts),
            len(texts),
            fit,
            runs_model=not static and (name != "int8" or self.device == "cpu"),
            half=self.device != "cpu" and (compiled or name == "bf16"),
        )

    def model2vec(self, name: str) -> _Path:
        """Its own distillation from the same model."""
        model = _model2vec(name, self.encoder, self.device)
        strings = self.many.to_pylist()
        return _Path(
            lambda: model.encode(strings, max_length=254),
            lambda: _unit(model.encode(self.strings, max_length=254)),
            len(strings),
            runs_model=False,
        )

    def memory(self, name: str) -> float | None:
        """Peak MB of a process that does nothing but load this path and run it once over the sample."""
        return megabytes(alone(_peak, name, self.scratch, self.encoder, self.device))


def _peak(name: str, scratch: Path, encoder: str, device: str) -> int | None:
    """One path in this process; returns its peak memory in bytes."""
    quiet_libraries()
    if name.startswith("nearkin, "):
        kind = name.removeprefix("nearkin, ")
        target = Store(scratch / f"store-{kind}")
        [(slug, entry)] = target.manifest.encoders.items()
        folder = scratch / "fitting" / "encoders" / slug
        chosen = load(spec_of(entry), device, entry.settings["engine"], folder if folder.exists() else None)
        if kind == COMPILED and not (isinstance(chosen, TransformerEncoder) and chosen.compile()):
            return None
        _embed_anew(target, chosen)
        return peak_memory()
    strings = pq.read_table(scratch / "sample.parquet")["text"].to_pylist()
    if name in (DISTILLED, MEANS):
        _model2vec(name, encoder, device).encode(strings, max_length=254)
        return peak_memory()
    from sentence_transformers import SentenceTransformer

    backend = {"sentence-transformers, OpenVINO": "openvino", "sentence-transformers, ONNX": "onnx"}.get(name, "torch")
    model = SentenceTransformer(str(resolve_model(encoder)), device=device, backend=backend)
    (model.half() if name == HALF else model).encode(strings, batch_size=32)
    return peak_memory()


def _model2vec(name: str, encoder: str, device: str) -> Any:
    """With its defaults (256 principal components, weights by frequency) or without both: plain means of all of it."""
    from model2vec.distill import distill_from_model
    from transformers import AutoModel, AutoTokenizer

    folder = str(resolve_model(encoder))
    settings = {"pca_dims": None, "sif_coefficient": None} if name == MEANS else {}
    with contextlib.redirect_stderr(io.StringIO()):  # it draws bars whoever looks
        model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        return distill_from_model(model, tokenizer, device=device, **settings)


def _unit(vectors: npt.NDArray[np.floating[Any]]) -> Vectors:
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.asarray(vectors / norms, dtype=np.float32)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _split(scratch: Path, corpus: str, column: str, passages: int) -> tuple[pa.Array, Path]:
    """(`passages` texts of the corpus, a file of up to 20,000 others)."""
    store = Store(scratch / "whole", create=True)
    with store.lock():
        store.manifest.corpora = [ingest(store, CorpusSpec("corpus", corpus, column))]
    size = len(store.corpus)
    order = np.random.default_rng(0).permutation(size)[: passages + 20_000]
    if size < 2 * passages:
        raise NearkinError(f"{corpus} has {size:,} passages: name at most half as many with --passages")
    sample, others = (store.corpus.take(np.sort(ids), ["text"]) for ids in (order[:passages], order[passages:]))
    pq.write_table(sample, scratch / "sample.parquet")
    pq.write_table(others, scratch / "others.parquet")
    return sample["text"].combine_chunks(), scratch / "others.parquet"


def _store(folder: Path, texts: Path) -> Store:
    store = Store(folder, create=True)
    with store.lock():
        if not store.manifest.corpora:
            store.manifest.corpora = [ingest(store, CorpusSpec("sample", str(texts)))]
            store.save()
    return store


def _embed_anew(store: Store, model: Encoder) -> None:
    with store.lock():  # which reads the manifest again
        store.manifest.encoders.clear()
        shutil.rmtree(store.path / "embeddings", ignore_errors=True)  # a build would take in what is there
        embed(store, model)
