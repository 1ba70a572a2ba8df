"""Files appear whole or not at all, and an error names the file it was met at."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pytest

from selection import store as module
from selection.errors import NearkinError
from selection.files import atomic_folder, atomic_write, sha256_of_file
from selection.store import Store

Atomic = Callable[[Path], AbstractContextManager[Path]]


@pytest.mark.parametrize("atomic", [atomic_write, atomic_folder])
def test_an_error_of_a_source_is_not_blamed_on_the_target(atomic: Atomic, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"source\.txt"), atomic(tmp_path / "target"):
        (tmp_path / "source.txt").read_bytes()
    with pytest.raises(NearkinError, match=r"no space left while writing .*target"), atomic(tmp_path / "target"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(NearkinError, match=r"failed while writing .*target"), atomic(tmp_path / "target") as aside:
        (aside / "nowhere" / "file").write_bytes(b"x")
    with pytest.raises(NearkinError, match=r"failed while writing .*target"), atomic(tmp_path / "target") as aside:
        pa.OSFile(str(aside / "nowhere" / "file"), "wb")
    (tmp_path / "taken").write_bytes(b"a file where a folder should be")
    with pytest.raises(NearkinError, match=r"failed while writing .*taken"), atomic(tmp_path / "taken" / "target"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_file_edited_while_it_is_hashed_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def editing(path: Path) -> str:
        digest = sha256_of_file(path)
        path.write_bytes(b"after")
        os.utime(path, ns=(0, 1))
        return digest

    store, path = Store(tmp_path / "store", create=True), tmp_path / "source.txt"
    path.write_bytes(b"before")
    with monkeypatch.context() as patch:
        patch.setattr(module, "sha256_of_file", editing)
        entry = store.entry(path, 1)
    assert entry.sha256 != sha256_of_file(path)
    assert not store.is_whole(entry)
