"""Files appear whole or not at all, and an error names the file it was met at."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pytest

from selection import files
from selection import store as module
from selection.errors import NearkinError
from selection.files import atomic_folder, atomic_write, sha256_of_file, sweep
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


def test_sweeping_leaves_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here or on another machine; what a killed process or one of long ago left is removed."""

    def left(pid: int, host: str, days: float = 0) -> Path:
        path = tmp_path / f"file.{pid}-{host}-0123abcd.partial"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - days * 86_400,) * 2)
        return path

    dead = int(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, check=True).stdout)
    here = files._host()
    stays = [left(os.getppid(), here), left(dead, "ffffffff", 0.5)]
    goes = [left(dead, here), left(os.getpid(), here), left(dead, "eeeeeeee", 2)]
    with atomic_write(tmp_path / "mine") as aside:
        aside.write_bytes(b"y")
        sweep(tmp_path)
    assert (tmp_path / "mine").read_bytes() == b"y"
    assert all(path.exists() for path in stays)
    assert not any(path.exists() for path in goes)


def test_a_folder_that_cannot_be_renamed_over_is_refused_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    with pytest.raises(NearkinError, match="is where a disk is mounted: name a folder within it"):
        files.check_replaceable(tmp_path / "disk", overwrite=False)


def test_a_folder_behind_a_link_is_written_where_the_link_points(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    with atomic_folder(tmp_path / "out") as aside:
        (aside / "file").write_bytes(b"x")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "scratch" / "file").read_bytes() == b"x"
