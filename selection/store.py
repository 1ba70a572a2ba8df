"""Store: the folder on disk. It knows what was made from what, and hands out nothing that has changed since.

::

    STORE/manifest.json                      corpora, shards, encoders, indexes, each file with rows and sha256
    STORE/corpus/<name>/part-00000.parquet   only for converted sources; <name>~ where it was read again
    STORE/corpus/.<name>.unfinished/         what a killed build has read of it; may be deleted
    STORE/corpus/<name>/keep-00000.arrow     only where rows of a file that stays where it is were left out
    STORE/encoders/<encoder>/                only where an encoder is fitted to the corpus: int8, static
    STORE/embeddings/<encoder>/part-00000.arrow
    STORE/shares/<encoder>/                  only until a build takes in what other machines embedded
    STORE/cascade/<encoder>/part-00000.arrow  only where a cascade had passages encoded in full; may be deleted
    STORE/tasks/<encoder>/                   vectors of tasks' texts, so that each is encoded once; may be deleted
    STORE/ngrams/<buckets>/                  the corpus's hashed n-grams; may be deleted
    STORE/index/<encoder>-<kind>/faiss.index + manifest.json
                                             faiss-00001.index and so on where the corpus takes more than one block

The manifest is written whole (aside, synced, renamed), always after the files that it names. A file is hashed before
it is first used and again whenever its size or time of change differ from when it was last found right; those are
remembered in ``.checked.json``, which may be deleted at any time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from selection.corpus import Corpus
from selection.errors import NearkinError, StoreError, explain_os_error
from selection.files import ASIDE, atomic_write, locked, sha256_of_file, sweep, write_json
from selection.manifest import CorpusEntry, FileEntry, Manifest
from selection.unfinished import unfinished_folder
from selection.wording import join

log = logging.getLogger(__name__)

FORMAT = 1
SAVING = 20


class Store:
    """A store folder.

    Args:
        path: the folder.
        create: make it where it does not exist, or is empty.

    Raises:
        StoreError: no store there (and not `create`), a folder of something else, or a manifest that is damaged.
    """

    def __init__(self, path: Path | str, create: bool = False) -> None:
        self.path = Path(path)
        manifest = self.path / "manifest.json"
        if manifest.exists():
            self.manifest = _read_manifest(manifest)
        elif not create:
            raise StoreError(f"{self.path} is not a store (no manifest.json there): make one with `nearkin build`")
        elif self.path.exists() and (not self.path.is_dir() or not all(_is_ours(p) for p in self.path.iterdir())):
            raise StoreError(f"{self.path} exists and is not a store: name a new folder")
        else:
            self.manifest = Manifest()
        self._checked: dict[str, list[Any]] = _read_cache(self.path / ".checked.json")
        self._news = False
        self._settled: list[CorpusEntry] | None = None
        self._told = False
        self._saved, self._save_took = time.monotonic(), 0.0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the store for writing, and clears away what a killed run left.

        Raises:
            StoreError: another process is writing to it.
        """
        busy = f"another process is writing to {self.path} (a build, or a cascade): wait for it, or stop it"
        with locked(self.path / ".lock", busy, StoreError):
            manifest = self.path / "manifest.json"
            if manifest.exists():
                self.manifest = _read_manifest(manifest)
            sweep(self.path)
            yield

    def take_pending(self) -> None:
        """Counts the corpora that await their embeddings as the store's, for a build; `save` keeps them apart.

        So that who reads the store meanwhile, or after a dry run, finds it as it was.
        """
        self._settled = list(self.manifest.corpora)
        newer = {corpus.name: corpus for corpus in self.manifest.pending}
        self.manifest.corpora = [newer.pop(corpus.name, corpus) for corpus in self._settled] + list(newer.values())
        self.manifest.pending = []

    def settle(self) -> None:
        """What `take_pending` took is the store's from the next `save` on."""
        self._settled = None

    @property
    def answering(self) -> set[str]:
        """Fingerprints of the texts that readers see while a build is at corpora that await their embeddings."""
        return {shard.text for corpus in self._settled or [] for shard in corpus.shards}

    def corpus_folder(self, name: str) -> Path:
        """Where a corpus that is read now is written: not over files that readers have until the build settles."""
        return self.path / "corpus" / (f"{name}~" if name in _folders(self._settled or []) else name)

    def clear_corpora(self) -> None:
        """Removes the folders of its corpora from which nothing is read any more, and those of readings given up."""
        used = _folders(self.manifest.corpora)
        for corpus in self.manifest.corpora:
            for name in (corpus.name, f"{corpus.name}~"):
                shutil.rmtree(unfinished_folder(self.path / "corpus" / name), ignore_errors=True)
                if name not in used:
                    shutil.rmtree(self.path / "corpus" / name, ignore_errors=True)

    def save(self) -> None:
        """Writes the manifest."""
        manifest = self.manifest
        if self._settled is not None:
            pending = [corpus for corpus in manifest.corpora if corpus not in self._settled]
            manifest = replace(manifest, corpora=self._settled, pending=pending)
        begun = time.monotonic()
        write_json(self.path / "manifest.json", {"format": FORMAT, **vars(manifest)})
        self.save_checked()
        self._saved = time.monotonic()
        self._save_took = self._saved - begun

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Saves at the end, whatever happens; where that fails too, what happened before is what is told."""
        try:
            yield
        except BaseException:
            with suppress(OSError, NearkinError):
                self.save()
            raise
        self.save()

    def save_now_and_then(self, seconds: float) -> None:
        """`save`, once so many seconds have passed since the last time, and `SAVING` times what that took."""
        if time.monotonic() - self._saved >= max(seconds, SAVING * self._save_took):
            self.save()

    def save_checked(self) -> None:
        """Remembers which files were found right, where the store can be written to."""
        if not self._news:
            return
        try:
            with atomic_write(self.path / ".checked.json") as aside:
                aside.write_text(json.dumps(self._checked, sort_keys=True) + "\n", encoding="utf-8")
        except (OSError, NearkinError):  # a read-only store is checked anew each time
            return
        self._news = False

    def check_corpora(self) -> None:
        """Raises StoreError where a file that passages are read from is missing or has changed."""
        if self.manifest.pending and not self._told:
            self._told = True
            known = {corpus.name for corpus in self.manifest.corpora}
            news = (f"what is new of {c.name}" if c.name in known else c.name for c in self.manifest.pending)
            log.warning("left out, since not embedded yet: %s (`nearkin build %s` goes on)", join(news), self.path)
        for corpus in self.manifest.corpora:
            for file in corpus.in_use:
                again = f"run `nearkin build {self.path}` to read it again"
                self.check(file, f"{again}; if it has moved, with --corpus {corpus.name}=PATH and its options")

    @property
    def corpus(self) -> Corpus:
        """All passages, in doc_id order."""
        shards = [(c.name, c.spec["column"], s) for c in self.manifest.corpora for s in c.shards]
        return Corpus(self.path, shards)

    def relative(self, path: Path) -> str:
        """How the manifest names `path`."""
        full, root = Path(os.path.abspath(path)), Path(os.path.abspath(self.path))  # noqa: PTH100
        # Links are not followed: a hub cache keeps d.parquet as a link to a blob without a name.
        return full.relative_to(root).as_posix() if full.is_relative_to(root) else str(full)

    def entry(self, path: Path, rows: int) -> FileEntry:
        """The manifest's entry for a file that was just written or scanned."""
        digest = self._hash(path)
        return FileEntry(self.relative(path), rows, digest)

    def source(self, path: Path) -> FileEntry:
        """The entry of a file that is about to be read, its rows not known yet; hashed unless it looks untouched."""
        stat, checked = path.stat(), self._checked.get(self.relative(path), [])
        if checked[:2] == [stat.st_size, stat.st_mtime_ns]:
            return FileEntry(self.relative(path), -1, checked[2])
        return self.entry(path, -1)

    def hashed(self, path: Path, rows: int, sha256: str) -> FileEntry:
        """As `entry`, of a file that was just hashed."""
        stat, entry = path.stat(), FileEntry(self.relative(path), rows, sha256)
        self._remember(entry.path, [stat.st_size, stat.st_mtime_ns, sha256])
        return entry

    def checked_as(self, entry: FileEntry) -> list[Any]:
        """What this store remembers of a file that it wrote or found right, for `adopt` in another process."""
        return self._checked[entry.path]

    def adopt(self, entry: FileEntry, checked: list[Any]) -> None:
        """Remembers a file that another process of the same build wrote."""
        self._remember(entry.path, checked)

    def _remember(self, path: str, checked: list[Any]) -> None:
        self._news |= self._checked.get(path) != checked
        self._checked[path] = checked

    def is_whole(self, entry: FileEntry, reread: bool = False) -> bool:
        """Whether a file is there with the manifest's sha256 (`reread`: hash it even if it looks untouched)."""
        path = self.path / entry.path
        if not path.is_file():
            return False
        stat = path.stat()
        if not reread and self._checked.get(entry.path) == [stat.st_size, stat.st_mtime_ns, entry.sha256]:
            return True
        return self._hash(path) == entry.sha256

    def _hash(self, path: Path) -> str:
        """Hashes a file, and remembers it as it was before, so that an edit meanwhile is noticed at the next use."""
        stat = path.stat()
        digest = sha256_of_file(path)
        self._remember(self.relative(path), [stat.st_size, stat.st_mtime_ns, digest])
        return digest

    def check(self, entry: FileEntry, remedy: str) -> Path:
        """The path of a file, once it is known to be what the manifest says.

        Raises:
            StoreError: it is missing or differs; the sentence ends with `remedy`.
        """
        path = self.path / entry.path
        if not path.is_file():
            raise StoreError(f"{path} is missing: {remedy}")
        if not self.is_whole(entry):
            raise StoreError(f"{path} is not what the manifest recorded (changed or damaged): {remedy}")
        return path


def _folders(corpora: list[CorpusEntry]) -> set[str]:
    """Names of the folders under STORE/corpus that passages are read from."""
    paths = (Path(file.path).parts for corpus in corpora for file in corpus.in_use)
    return {parts[1] for parts in paths if parts[0] == "corpus"}


_OURS = {".lock", ".checked.json", "corpus"}


def _is_ours(path: Path) -> bool:
    """Whether a folder with this in it may be a store that was never finished."""
    return path.name in _OURS or path.name.endswith(ASIDE)


def _read_cache(path: Path) -> dict[str, list[Any]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _read_manifest(path: Path) -> Manifest:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise explain_os_error(error, f"reading {path}") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: remove the store and build it again") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise StoreError(f"{path} is not a store manifest of format {FORMAT}: build the store with this version")
    value.pop("format")
    try:
        return Manifest.from_json(value)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: remove the store and build it again") from error
