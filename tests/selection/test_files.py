"""Files appear whole or not at all, and an error names the file it was met at."""

from __future__ import annotations

import errno
import json
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
from selection.files import atomic_folder, atomic_write, sha256_of_file, sweep, write_json
from selection.manifest import FileEntry
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


def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(NearkinError, match="exists already"), atomic_folder(tmp_path / "out") as aside:
        aside.with_name("out").joinpath("theirs").mkdir(parents=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_a_killed_call_left_goes_with_the_next(tmp_path: Path) -> None:
    number = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    left = tmp_path / f"out.{number}-{files._host()}-abcd{files.ASIDE}"
    other = tmp_path / f"output.{number}-{files._host()}-abcd{files.ASIDE}"
    for folder in (left, other):
        folder.mkdir()
    with atomic_folder(tmp_path / "out", overwrite=True):
        assert left.exists()  # it may be what a killed call has moved away, and all there is
    with atomic_folder(tmp_path / "out", overwrite=True):
        assert not left.exists()
    assert other.exists()


def test_an_error_is_told_where_saving_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store", create=True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(ValueError, match="the cause"), store.saving():
        raise ValueError("the cause")
    with pytest.raises(OSError, match="No space"), store.saving():
        pass


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


def test_json_is_indented_and_long_lists_have_a_line_a_part(tmp_path: Path) -> None:
    entry = FileEntry("a \u00fc.parquet", 3, "0" * 64)
    small = {"b": [1, {"x": None, "a": [True, 0.5]}], "a": {}, "c": [], "f": "\n", "e": (1, 2)}
    write_json(tmp_path / "small.json", small)
    assert (tmp_path / "small.json").read_text() == json.dumps(small, indent=1, sort_keys=True) + "\n"
    write_json(tmp_path / "long.json", {"files": [entry] * 500, "shards": {"x": entry}})
    text = (tmp_path / "long.json").read_text()
    assert json.loads(text) == {"files": [vars(entry)] * 500, "shards": {"x": vars(entry)}}
    assert text.count("\n") == 500 + 11  # of an entry three, and a line for each bracket but one and for each name
    assert text.splitlines()[2] == '  {"path": "a \\u00fc.parquet", "rows": 3, "sha256": "' + "0" * 64 + '"},'


def test_a_manifest_is_saved_the_more_seldom_the_longer_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    store, saved = Store(tmp_path / "store", create=True), []

    def slow(path: Path, value: object) -> None:
        saved.append(clock[0])
        clock[0] += 3

    monkeypatch.setattr(module, "write_json", slow)
    for second in range(0, 200, 5):
        clock[0] = max(clock[0], second)
        store.save_now_and_then(10)
    assert saved == [10, 75, 140]  # each sixty seconds after the end of the last, which took three


def test_what_was_checked_is_written_only_where_it_is_news(tmp_path: Path) -> None:
    store, path = Store(tmp_path / "store", create=True), tmp_path / "a.txt"
    path.write_bytes(b"a")
    entry, remembered = store.entry(path, 1), tmp_path / "store" / ".checked.json"
    store.save()
    first = remembered.stat().st_ino
    store.save()
    assert store.is_whole(entry, reread=True)
    store.save_checked()
    assert remembered.stat().st_ino == first
    again = Store(tmp_path / "store")
    path.write_bytes(b"b")
    assert not again.is_whole(entry)
    again.save_checked()
    assert json.loads(remembered.read_text())[str(path)][0] == 1
    assert remembered.stat().st_ino != first


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
