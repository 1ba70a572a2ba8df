"""Files that appear whole or not at all, and fingerprints of what is in them.

A file is written aside in its own folder, synced, and renamed, so its final name never holds half of it, whatever
stops the program. Leftovers of a killed run are recognised by their ending and swept by the next writer.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from selection.buffers import text_buffers
from selection.errors import DISK_FULL, NearkinError, explain_os_error
from selection.wording import human_bytes

ASIDE = ".partial"
DAY = 24 * 3600
LONG = 32
_MINE: set[str] = set()
"""Names of what this process is writing aside."""


def _aside(path: Path) -> Path:
    """A name beside `path` that no other process takes; it tells who is at it."""
    return path.with_name(f"{path.name}.{os.getpid()}-{_host()}-{secrets.token_hex(4)}{ASIDE}")


def _host() -> str:
    """This machine or container, in eight hex digits."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a path to write to; on success it becomes `path`, on any error it is removed and `path` is untouched."""
    aside = _aside(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    _MINE.add(aside.name)
    try:
        with explained(path, aside):
            yield aside
        with explained(path):
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.replace(path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what is told
            aside.unlink(missing_ok=True)
        _MINE.discard(aside.name)


def check_replaceable(path: Path, overwrite: bool, holds: str | None = None) -> None:
    """Refuses what `atomic_folder` would refuse, with the same arguments, before long work."""
    if os.path.ismount(path):  # which cannot be renamed over
        raise NearkinError(f"{path} is where a disk is mounted: name a folder within it")
    filled = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if filled and not overwrite:
        raise NearkinError(f"{path} exists already: name another folder, or pass --overwrite to replace it")
    if filled and holds is not None and not (path / holds).is_file():
        raise NearkinError(f"{path} has no {holds}, so it is something else and is not replaced: name another folder")


@contextmanager
def explained(path: Path, aside: Path | None = None) -> Iterator[None]:
    """Says of an OSError that `path` could not be written; given `aside`, only of one met there or of a full disk.

    What fills a file reads others, and theirs are errors of their own.
    """
    try:
        yield
    except OSError as error:
        if aside is not None and error.errno not in DISK_FULL and aside.name not in str(error):
            raise
        raise explain_os_error(error, f"writing {path}") from error


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False, holds: str | None = None) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it becomes `path`, and what was there before is removed.

    Args:
        overwrite: replace a folder that is not empty.
        holds: a file that such a folder must have, so that nothing of another kind is ever replaced.

    Raises:
        NearkinError: `path` exists and is not empty, and may not be replaced.
    """
    check_replaceable(path, overwrite, holds)
    path = Path(os.path.realpath(path))
    if path.exists() or not overwrite:  # else what a killed run has moved away may be all there is
        sweep(path.parent, path.name)
    aside = _aside(path)
    _MINE.add(aside.name)
    try:
        with explained(path):
            aside.mkdir(parents=True)
        with explained(path, aside):
            yield aside
        check_replaceable(path, overwrite, holds)  # another may have been at it meanwhile
        put_folder(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _MINE.discard(aside.name)


def put_folder(folder: Path, path: Path, without: str = "") -> None:
    """Makes a filled folder `path`, all of it on disk; what was there before is removed, and a file `without` of it."""
    before = _aside(path)
    _MINE.add(before.name)
    try:
        with explained(path):
            sync_files(folder)
            if without:
                (folder / without).unlink(missing_ok=True)
            if path.is_dir():
                path.replace(before)
            folder.replace(path)
            _sync_folder(path.parent)
    finally:
        if before.exists() and not path.exists():
            with contextlib.suppress(OSError):
                before.replace(path)
        if path.exists():
            shutil.rmtree(before, ignore_errors=True)
        _MINE.discard(before.name)


def link_or_copy(file: Path, folder: Path) -> None:
    """Puts a file that nobody writes to any more into a folder too, without a copy where the file system can."""
    try:
        os.link(file, folder / file.name)
    except OSError:
        shutil.copy2(file, folder)


def sync_files(folder: Path) -> None:
    """Has every file under a folder on disk."""
    mode = "rb" if os.name == "posix" else "rb+"  # Windows syncs only what may be written
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open(mode) as handle:
                os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, of which dataclasses may be a part, as indented JSON with sorted keys, atomically.

    Each part of a long list or object, such as one shard of many, stands on one line: Python's fast encoder, ten times
    as fast as the other, knows no indentation.
    """
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(_json_pieces(value, "\n"))
        file.write("\n")


_on_one_line = json.JSONEncoder(sort_keys=True, default=vars).encode


def _json_pieces(value: Any, line: str) -> Iterator[str]:
    """JSON in pieces; `line` begins a new line of the depth that has been reached."""
    value = vars(value) if is_dataclass(value) else value
    if not value or not isinstance(value, (dict, list, tuple)):
        yield _on_one_line(value)
        return
    if isinstance(value, dict):
        before, after, parts = "{", "}", [(f"{_on_one_line(str(name))}: ", value[name]) for name in sorted(value)]
    else:
        before, after, parts = "[", "]", [("", part) for part in value]
    inner, many = f"{line} ", len(value) > LONG
    for name, part in parts:
        yield before + inner + name
        yield from (_on_one_line(part),) if many else _json_pieces(part, inner)
        before = ","
    yield line + after


@contextmanager
def locked(file: Path, busy: str, kind: type[NearkinError] = NearkinError) -> Iterator[None]:
    """Holds a lock file, made with its folder; no two processes hold it at once.

    Raises:
        NearkinError: of that kind, with `busy` as its sentence, where another process holds it.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(file), timeout=0)
        lock.acquire()
    except Timeout:
        raise kind(busy) from None
    except OSError as error:
        raise explain_os_error(error, f"locking {file}") from error
    try:
        yield
    finally:
        lock.release()


def sweep(folder: Path, name: str = "") -> None:
    """Removes what a killed run left aside under `folder`; what a running process of this machine is at stays.

    Args:
        name: only what was to become a file or folder of this name, in `folder` itself.
    """
    exactly = re.compile(rf"{re.escape(name)}\.\d+-\w+-\w+{re.escape(ASIDE)}")
    for leftover in folder.glob(f"{glob.escape(name)}.*{ASIDE}") if name else folder.rglob(f"*{ASIDE}"):
        if (name and not exactly.fullmatch(leftover.name)) or _at_work(leftover):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _at_work(aside: Path) -> bool:
    """Whether the process that made this file still runs; one of another machine is believed to for a day."""
    number, host, *_ = [*aside.name.removesuffix(ASIDE).rpartition(".")[2].split("-"), ""]
    if not number.isdigit() or os.name != "posix":
        return False
    if host != _host():
        with contextlib.suppress(OSError):
            return time.time() - aside.stat().st_mtime < DAY
        return False
    if int(number) == os.getpid():
        return aside.name in _MINE
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_once(path: Path) -> str:
    """`sha256_of_file`, once a process as long as the file's size and time of change stay: of gigabytes asked often."""
    stat = path.stat()
    return _known_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _known_sha256(path: Path, size: int, changed: int) -> str:
    return sha256_of_file(path)


class TextFingerprint:
    """sha256 over a column of texts, fed batch by batch; the same texts give the same value however they are cut.

    Lengths and bytes are hashed apart, straight from the Arrow buffers, so that no passage becomes a Python object
    and ``["ab", "c"]`` differs from ``["a", "bc"]``.
    """

    def __init__(self) -> None:
        self._lengths, self._bytes = hashlib.sha256(), hashlib.sha256()

    def update(self, texts: pa.Array | pa.ChunkedArray) -> None:
        for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
            raw, bounds = text_buffers(chunk.cast(pa.large_string()))
            self._lengths.update(np.diff(bounds).astype("<i8").tobytes())
            self._bytes.update(raw.data)

    def value(self) -> str:
        return hashlib.sha256(self._lengths.digest() + self._bytes.digest()).hexdigest()

    @classmethod
    def of(cls, texts: pa.Array | pa.ChunkedArray) -> str:
        """That of one column; of another type than a string's, as it is cast to one."""
        digest = cls()
        digest.update(texts.cast(pa.large_string()))
        return digest.value()


def fingerprint(*parts: str) -> str:
    """sha256 of several strings, order and boundaries included."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def text_bytes(texts: pa.Array | pa.ChunkedArray) -> int:
    """Total UTF-8 bytes of a column of texts."""
    return pc.sum(pc.binary_length(texts)).as_py() or 0


def require_space(folder: Path, size: int) -> None:
    """Raises NearkinError where the disk of `folder` has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise NearkinError(
            f"{folder}: {human_bytes(size)} are needed and the disk has {human_bytes(free)} free: "
            "free some or choose another disk"
        )
