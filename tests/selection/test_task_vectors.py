"""A task's texts are encoded once a store; what is kept is used only while it is whole and of the same encoder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from selection import task_vectors
from selection.encoders import Encoder
from selection.encoders.engine import Tick
from selection.store import Store
from selection.stored import stored_encoder
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


def test_a_stopped_encoding_goes_on_with_the_parts_it_lacks(
    store: Path, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, task = Store(store), read_task(task_folder)
    whole = encode_task(opened, "tiny-encoder", task)
    shutil.rmtree(store / "tasks")
    monkeypatch.setattr(task_vectors, "PART", 16)
    taken: list[int] = []

    def stopping(store: Store, slug: str, device: str | None = None) -> Encoder:
        encoder = stored_encoder(store, slug, device)
        run = encoder.run

        def run_some(prepared: Any, tick: Tick) -> npt.NDArray[np.float32]:
            if len(taken) == 1:
                taken.append(0)
                raise KeyboardInterrupt
            taken.append(len(prepared))
            return run(prepared, tick)

        monkeypatch.setattr(encoder, "run", run_some)
        return encoder

    monkeypatch.setattr(task_vectors, "stored_encoder", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode_task(opened, "tiny-encoder", task)
    np.testing.assert_allclose(encode_task(opened, "tiny-encoder", task), whole, atol=1e-6)
    assert taken == [16, 0, 16, 8]
