"""Vectors of a task's texts, by the encoder that wrote a store's embeddings; encoded once a store, then kept there.

They lie in ``STORE/tasks/<encoder>/``, a file for every `PART` texts, filed by their fingerprint, each with the
fingerprint of its encoder and a hash of its vectors: a run that was stopped goes on with the parts that are not there.
They may be deleted at any time. A read-only store is encoded for anew.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from selection.encoders import Encoder
from selection.errors import NearkinError
from selection.files import TextFingerprint
from selection.kept import read_kept, write_kept
from selection.slugs import check_same
from selection.store import Store
from selection.stored import stored_encoder
from selection.task import Task
from selection.vector_files import column_vectors, vector_column

log = logging.getLogger(__name__)

PART = 8192
TOLD_FROM = 512  # texts whose encoding takes seconds

Vectors = npt.NDArray[np.float32]
Report = Callable[[str], None]


def encode_task(store: Store, slug: str, task: Task, device: str | None = None, report: Report = log.info) -> Vectors:
    """Vectors float32 [n, dim] of a task's training texts; see `encode_texts`."""
    return encode_texts(store, slug, task.train_texts, device, report)


def encode_texts(
    store: Store, slug: str, texts: pa.ChunkedArray, device: str | None = None, report: Report = log.info
) -> Vectors:
    """Vectors float32 [n, dim] of texts (large_string [n]) by the encoder that wrote `slug`.

    Args:
        report: told what is encoded, where that is much; a terminal is shown how far it is.

    Raises:
        StoreError: this machine's encoder of that name is not the one that wrote the embeddings.
    """
    entry = store.manifest.encoders[slug]

    def load() -> Encoder:
        encoder = stored_encoder(store, slug, device)
        check_same(store, slug, encoder)
        return encoder

    return _encoded(store, slug, entry.dim, entry.fingerprint, texts, load, report)


def encode_by(store: Store, encoder: Encoder, texts: pa.ChunkedArray, report: Report = log.info) -> Vectors:
    """As `encode_texts`, by an encoder that need not have embedded the corpus."""
    return _encoded(store, encoder.slug, encoder.dim, encoder.fingerprint, texts, lambda: encoder, report)


def _encoded(
    store: Store,
    slug: str,
    dim: int,
    fingerprint: str,
    texts: pa.ChunkedArray,
    load: Callable[[], Encoder],
    report: Report,
) -> Vectors:
    parts = [texts.slice(start, PART) for start in range(0, len(texts), PART)] or [texts]
    paths = [_path(store, slug, part) for part in parts]
    found = [_read(path, len(part), dim, fingerprint) for path, part in zip(paths, parts, strict=True)]
    missing = [number for number, vectors in enumerate(found) if vectors is None]
    if missing:
        encoder = load()
        count = sum(len(parts[number]) for number in missing)
        if count >= TOLD_FROM:
            report(f"encode  {count:,} texts of the task by {slug}, kept for the next time")
        with tqdm(total=count, desc="encoding the task", unit=" texts", disable=None, leave=False) as bar:
            for number in missing:
                made = encoder.run(encoder.prepare(parts[number]), lambda done: bar.update(len(done)))
                with contextlib.suppress(OSError, NearkinError):  # a read-only store is encoded for anew
                    _write(paths[number], made, fingerprint)
                found[number] = made
    return np.concatenate([vectors for vectors in found if vectors is not None])


def _path(store: Store, slug: str, texts: pa.ChunkedArray) -> Path:
    return store.path / "tasks" / slug / f"{TextFingerprint.of(texts)[:32]}.arrow"


def _write(path: Path, vectors: Vectors, encoder: str) -> None:
    write_kept(path, pa.RecordBatch.from_arrays([vector_column(vectors)], ["embedding"]), {"encoder": encoder})


def _read(path: Path, rows: int, dim: int, encoder: str) -> Vectors | None:
    """What is kept at `path`, if it is whole and of this encoder."""
    kept = None
    with contextlib.suppress(OSError):  # another user's
        kept = read_kept(path)
    if kept is None or kept[1] != {"encoder": encoder}:
        return None
    vectors = column_vectors(kept[0].column(0), dim)
    return vectors if len(vectors) == rows else None
