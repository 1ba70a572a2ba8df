"""One embedding file: Arrow IPC, ``FixedSizeList<float16>[dim]``, naming the text and the encoder it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.errors import StoreError


def vector_column(vectors: npt.NDArray[np.floating]) -> pa.Array:
    """Vectors [rows, dim] as a column ``FixedSizeList[dim]``, without a copy where they lie in one piece."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def column_vectors(column: pa.Array, dim: int) -> npt.NDArray[Any]:
    """Such a column as an array [rows, dim], without a copy."""
    return np.asarray(column.flatten().to_numpy(zero_copy_only=True)).reshape(-1, dim)


def write_vectors(path: Path, vectors: npt.NDArray[np.float16], text: str, encoder: str) -> None:
    """Writes one embedding file, float16 [rows, dim], with the fingerprints of its text and encoder."""
    column = vector_column(vectors)
    schema = pa.schema(
        [pa.field("embedding", column.type, nullable=False)], metadata={"text": text, "encoder": encoder}
    )
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))


def read_vectors(path: Path, text: str, encoder: str, dim: int, remedy: str) -> npt.NDArray[np.float16]:
    """One embedding file as a memory-mapped float16 [rows, dim], if it is of this text and encoder.

    Raises:
        StoreError: it is not.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path} is damaged: {remedy}") from error
    if batch.schema.metadata != {b"text": text.encode(), b"encoder": encoder.encode()}:
        raise StoreError(f"{path} was made from another text or encoder: {remedy}")
    return column_vectors(batch.column(0), dim)


def made_of(path: Path) -> tuple[str, str] | None:
    """Fingerprints of the text and the encoder that a file names; None where it is no whole such file."""
    try:
        about = pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None
    return (about[b"text"].decode(), about[b"encoder"].decode()) if about.keys() >= {b"text", b"encoder"} else None
