"""Arrow files that may be deleted at any time: one record batch, what it was made of, and a hash of its content.

What a store keeps beside its embeddings, so that it is not computed twice, is kept so. Such a file is believed only as
far as its hash: where a disk or a person changed it, it counts as missing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from selection.files import atomic_write

SHA256 = "sha256"

About = dict[str, str]


def write_kept(path: Path, batch: pa.RecordBatch, about: About) -> None:
    """Writes columns of numbers, or of lists of numbers, none of them null, and what they were made of.

    Raises:
        NearkinError: the disk is full, or the folder may not be written to.
    """
    batch = batch.replace_schema_metadata({**about, SHA256: _digest(batch, about)})
    with atomic_write(path) as aside, pa.ipc.new_file(str(aside), batch.schema) as writer:
        writer.write_batch(batch)


def read_kept(path: Path, check: bool = True) -> tuple[pa.RecordBatch, About] | None:
    """The columns, memory-mapped, and what they were made of; None where no whole such file is.

    Args:
        check: whether to compare the hash, which reads all of it.

    Raises:
        OSError: it is there and cannot be read, which says nothing of what is in it.
    """
    if not path.exists():
        return None
    try:
        with pa.memory_map(str(path)) as source:
            try:
                batch = pa.ipc.open_file(source).get_batch(0)
            except OSError:  # which is also what Arrow says of a damaged header
                return None
        about = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
        digest = about.pop(SHA256, None)
        whole = not check or digest == _digest(batch, about)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowSerializationError, ValueError):
        return None
    return (batch, about) if whole else None


def _digest(batch: pa.RecordBatch, about: About) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for column in batch.columns:
        if pa.types.is_large_list(column.type):
            digest.update(np.ascontiguousarray(column.offsets.to_numpy()).data)
            column = column.values
        elif pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        digest.update(np.ascontiguousarray(column.to_numpy()).data)
    return digest.hexdigest()
