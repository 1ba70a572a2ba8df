"""Embedding files that no manifest lists: those of shares, and of a build that was killed before it saved.

::

    STORE/shares/<encoder>/<text>-<encoder>-<sha256>.arrow    parts of fingerprints, and the hash of the file

A share's file says in its name what it is and what it should hold, so that listing a folder tells what is there, and a
file is believed only as far as its hash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from selection.errors import StoreError
from selection.files import sha256_of_file
from selection.manifest import EncoderEntry
from selection.store import Store
from selection.vector_files import made_of, read_vectors

log = logging.getLogger(__name__)

TEXT, ENCODER, HASH = 32, 16, 64  # digits
HASHING = 8
SAVE_EVERY_SECONDS = 10.0
DAY = 86_400


def shares_of(store: Store, slug: str) -> Path:
    """The folder of an encoder's shares."""
    return store.path / "shares" / slug


def shared_slugs(store: Store) -> list[str]:
    """Encoders that have a folder of shares."""
    return sorted(path.name for path in (store.path / "shares").glob("*") if path.is_dir())


def share_path(store: Store, slug: str, encoder: str, text: str) -> Path:
    """Where a share writes the vectors of a text; `finish_share` gives the file its name."""
    return shares_of(store, slug) / f"{text[:TEXT]}-{encoder[:ENCODER]}.arrow"


def finish_share(path: Path, sha256: str) -> None:
    """Names a share's file by what it holds."""
    path.replace(path.with_name(f"{path.stem}-{sha256}.arrow"))


def has_shares(store: Store, slug: str) -> bool:
    """Whether a share by this encoder has finished anything that no build has taken in."""
    return any(_digest(path) for path in shares_of(store, slug).glob("*.arrow"))


def strays(store: Store, slug: str, encoder: str) -> dict[str, list[Path]]:
    """Unlisted files by the encoder of this fingerprint, by the first digits of their text's."""
    entry = store.manifest.encoders.get(slug)
    listed = {file.path for file in entry.shards.values()} if entry else set()
    found: dict[str, list[Path]] = {}
    for path in sorted((store.path / "embeddings" / slug).glob("part-*.arrow")):
        about = None if store.relative(path) in listed else made_of(path)
        if about is not None and about[1] == encoder:
            found.setdefault(about[0][:TEXT], []).append(path)
    for path in sorted(shares_of(store, slug).glob(f"*-{encoder[:ENCODER]}-*.arrow")):
        if _digest(path):
            found.setdefault(path.stem[:TEXT], []).append(path)
    return found


def take_in(store: Store, entry: EncoderEntry, slug: str) -> None:
    """Enters those of the texts that are wanted, in corpus order; what is damaged is removed.

    Files are hashed several at once, and the manifest is saved now and then, so that a build that is killed meanwhile
    need not hash all of them again.
    """
    found = strays(store, slug, entry.fingerprint)
    wanted = {s.text: s.rows for s in store.corpus.shards if s.text not in entry.shards and s.text[:TEXT] in found}
    parts = [path for paths in found.values() for path in paths if path.name.startswith("part-")]
    numbers = free_numbers(entry, parts)
    folder = store.path / "embeddings" / slug
    folder.mkdir(parents=True, exist_ok=True)
    paths = [(text, path) for text in wanted for path in found[text[:TEXT]]]
    threads = ThreadPoolExecutor(min(HASHING, os.cpu_count() or 1), "hash")
    try:
        digests = threads.map(sha256_of_file, [path for _, path in paths])
        with tqdm(total=len(paths), desc="taking in", unit=" files", disable=None, leave=False) as bar:
            for (text, path), digest in zip(paths, digests, strict=True):
                bar.update()
                if text in entry.shards:
                    continue
                if not _holds(path, text, entry, wanted[text]) or _digest(path) not in ("", digest):
                    log.warning("%s is damaged: its passages are embedded again", path)
                    path.unlink()
                    continue
                if not path.name.startswith("part-"):
                    path = path.replace(folder / f"part-{next(numbers):05d}.arrow")
                entry.shards[text] = store.hashed(path, wanted[text], digest)
                store.save_now_and_then(SAVE_EVERY_SECONDS)
    finally:
        threads.shutdown(cancel_futures=True)


def clear_strays(store: Store, entry: EncoderEntry, slug: str) -> None:
    """Removes what no manifest lists; shares by another version or prompt stay, and one that is still written to."""
    listed = {store.path / file.path for file in entry.shards.values()}
    for path in (store.path / "embeddings" / slug).glob("part-*.arrow"):
        if path not in listed:
            path.unlink()
    for path in shares_of(store, slug).glob(f"*-{entry.fingerprint[:ENCODER]}*.arrow"):
        with contextlib.suppress(FileNotFoundError):
            if _digest(path) or time.time() - path.stat().st_mtime > DAY:
                path.unlink()


def free_numbers(entry: EncoderEntry, others: list[Path] | None = None) -> Iterator[int]:
    """Numbers of files that are not taken, upwards."""
    names = [Path(file.path) for file in entry.shards.values()] + (others or [])
    used = {int(path.stem.removeprefix("part-")) for path in names}
    number = 0
    while True:
        if number not in used:
            yield number
        number += 1


def _digest(path: Path) -> str:
    """The hash that a finished share says in its name; empty for others."""
    digest = path.stem.rpartition("-")[2]
    return digest if len(digest) == HASH else ""


def _holds(path: Path, text: str, entry: EncoderEntry, rows: int) -> bool:
    """Whether a file is of that text by that encoder, and has so many vectors."""
    try:
        return len(read_vectors(path, text, entry.fingerprint, entry.dim, "")) == rows
    except (StoreError, ValueError):  # damaged, of something else, or of other dimensions
        return False
