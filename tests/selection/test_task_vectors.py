"""A task's texts are encoded once a store; what is kept is used only while it is whole and of the same encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selection import task_vectors
from selection.store import Store
from selection.task import read_task
from selection.task_vectors import encode_task


def test_vectors_are_kept_and_checked(store: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, task = Store(store), read_task(task_folder)
    first = encode_task(opened, "tiny-encoder", task)
    (kept,) = (store / "tasks" / "tiny-encoder").glob("*.arrow")
    with monkeypatch.context() as patch:
        patch.setattr(task_vectors, "stored_encoder", None)  # not needed any more
        assert np.array_equal(encode_task(opened, "tiny-encoder", task), first)
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    kept.write_bytes(bytes(damaged))
    assert np.array_equal(encode_task(opened, "tiny-encoder", task), first)
    opened.manifest.encoders["tiny-encoder"].fingerprint = "another"
    assert task_vectors._read(kept, len(first), first.shape[1], "another") is None


def test_a_store_that_cannot_be_written_to_is_encoded_for_anew(store: Path, task_folder: Path) -> None:
    (store / "tasks").write_text("in the way")
    assert len(encode_task(Store(store), "tiny-encoder", read_task(task_folder))) == 40
