"""Encoding speed: the build's embedding stage beside sentence-transformers' own ``encode``, same texts, same run.

Rounds alternate, so that a machine that slows down slows both; the ratio is that of the medians.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.results import Row, alternate
from selection.embedding import embed
from selection.encoders import Encoder, load_encoder
from selection.ingest import CorpusSpec, ingest
from selection.models import DEFAULT_ENCODER, resolve_model
from selection.store import Store
from selection.tokens import count_tokens


def throughput(
    corpus: Path | str,
    *,
    passages: int = 1024,
    rounds: int = 3,
    text_column: str = "text",
    encoder: str = DEFAULT_ENCODER,
    precisions: tuple[str, ...] = ("exact", "bf16"),
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measures passages/s and tokens/s of each path.

    Args:
        corpus: a corpus as ``--corpus`` takes it; `passages` of it are drawn by a fixed seed.
        rounds: timed rounds after a warm-up; each runs every path once.
        precisions: which of nearkin's to time.

    Returns:
        One row a path: ``path``, ``passages_s``, ``tokens_s`` (medians), ``ratio`` to sentence-transformers,
        ``cosine`` (mean, with its vectors).
    """
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as scratch:
        texts = _sample(Path(scratch), str(corpus), text_column, passages)
        tokens = int(np.minimum(count_tokens(texts, encoder) + 2, _longest(encoder)).sum())
        plain = SentenceTransformer(str(resolve_model(encoder)), device=device)
        strings = texts.to_pylist()
        reference = plain.encode(strings, batch_size=32, normalize_embeddings=True)
        paths: dict[str, Callable[[], object]] = {
            "sentence-transformers encode": lambda: plain.encode(strings, batch_size=32, normalize_embeddings=True)
        }
        cosines = {"sentence-transformers encode": 1.0}
        for precision in precisions:
            store, model = _store(Path(scratch), precision), load_encoder(encoder, precision, device)
            name = f"nearkin embed, {precision}"
            cosines[name] = float((model.encode(texts) * reference).sum(axis=1).mean())
            paths[name] = lambda store=store, model=model: _embed_anew(store, model)  # type: ignore[misc]
        median, _ = alternate(paths, rounds, say)
    base = median["sentence-transformers encode"]
    return [
        {
            "path": name,
            "passages_s": len(strings) / taken,
            "tokens_s": tokens / taken,
            "ratio": base / taken,
            "cosine": cosines[name],
        }
        for name, taken in median.items()
    ]


def _longest(encoder: str) -> int:
    from sentence_transformers import SentenceTransformer

    return int(SentenceTransformer(str(resolve_model(encoder)), device="cpu").max_seq_length or 512)


def _sample(scratch: Path, corpus: str, column: str, passages: int) -> pa.Array:
    """`passages` texts of the corpus, also written to SCRATCH/sample.parquet."""
    store = Store(scratch / "whole", create=True)
    with store.lock():
        store.manifest.corpora = [ingest(store, CorpusSpec("corpus", corpus, column))]
    size = len(store.corpus)
    ids = np.sort(np.random.default_rng(0).choice(size, min(passages, size), replace=False))
    table = store.corpus.take(ids, ["text"])
    pq.write_table(table, scratch / "sample.parquet")
    return table["text"].combine_chunks()


def _store(scratch: Path, precision: str) -> Store:
    store = Store(scratch / f"store-{precision}", create=True)
    with store.lock():
        store.manifest.corpora = [ingest(store, CorpusSpec("sample", str(scratch / "sample.parquet")))]
        store.save()
    return store


def _embed_anew(store: Store, model: Encoder) -> None:
    with store.lock():  # which reads the manifest again
        store.manifest.encoders.clear()
        embed(store, model)
