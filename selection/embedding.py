"""Streams a corpus through an encoder into embedding shards.

One Arrow IPC file a corpus shard: ``FixedSizeList<float16>[dim]``, unit norm, memory-mapped when read, with the
fingerprints of its text and its encoder in the schema. A shard is embedded only where no whole file of the same text
and encoder exists, so a killed build goes on where it stopped. Batches never cross shards, which is why the resumed
build's bytes are those of an undisturbed one.

Three things go on at once: a shard is read and tokenized, the one before it encoded, the one before that written. So
memory above the encoder's own is three shards (of at most `SHARD_ROWS` passages or `SHARD_BYTES`): text and token ids
of one, token ids and vectors of the next, vectors of the last. Several devices take a process each
(`selection.workers`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from selection.ahead import ahead
from selection.encoders import Encoder
from selection.errors import ModelError, StoreError
from selection.files import atomic_write, fingerprint
from selection.manifest import EncoderEntry, FileEntry
from selection.memory import release_memory
from selection.slugs import build_flags
from selection.store import Store
from selection.strays import SAVE_EVERY_SECONDS, TEXT, clear_strays, free_numbers, strays, take_in
from selection.vector_files import read_vectors, write_vectors

log = logging.getLogger(__name__)

MAPPED_SHARDS = 4096


@dataclass(frozen=True)
class EmbeddingPlan:
    """What is still to do.

    Attributes:
        todo: positions of the corpus shards to embed.
        passages: what those hold.
        reused: passages whose embeddings are there already.
    """

    todo: list[int]
    passages: int
    reused: int


def plan_embedding(store: Store, slug: str, encoder_fingerprint: str, listed: bool = False) -> EmbeddingPlan:
    """Compares the corpus with the embeddings that exist; damaged files count as missing.

    Args:
        listed: only those that the manifest lists, not what a build would take in.
    """
    shards = store.corpus.shards
    entry = store.manifest.encoders.get(slug)
    have = entry.shards if entry and entry.fingerprint == encoder_fingerprint else {}
    found = {} if listed else strays(store, slug, encoder_fingerprint)
    texts = dict.fromkeys(s.text for s in shards)
    whole = {text for text in texts if text[:TEXT] in found or (text in have and store.is_whole(have[text]))}
    todo, seen = [], set(whole)
    for position, shard in enumerate(shards):
        if shard.text not in seen:
            todo.append(position)
            seen.add(shard.text)
    rows = sum(shards[i].rows for i in todo)
    return EmbeddingPlan(todo, rows, sum(s.rows for s in shards) - rows)


Job = tuple[int, Path]  # position of a corpus shard, its embedding file
Finished = Callable[[str, FileEntry], None]
Work = Callable[[Store, Encoder, list[Job], "tqdm[None]", Finished], None]


def embed(store: Store, encoder: Encoder, work: Work | None = None) -> EmbeddingPlan:
    """Brings the store's embeddings by `encoder` up to date; the store must be locked. Returns what was done.

    Args:
        work: what embeds shards; default `embed_here`.
    """
    work = work or embed_here
    entry = _usable_entry(store, encoder)
    folder = store.path / "embeddings" / encoder.slug
    store.save()  # from here on this encoder is the store's, so that a build that is killed goes on with it
    take_in(store, entry, encoder.slug)
    plan = plan_embedding(store, encoder.slug, encoder.fingerprint, listed=True)
    store.save()
    lock = Lock()

    def finished(text: str, file: FileEntry) -> None:
        with lock:
            entry.shards[text] = file
            store.save_now_and_then(SAVE_EVERY_SECONDS)

    with (
        store.saving(),
        tqdm(total=plan.passages, desc="embedding", unit=" passages", unit_scale=True, disable=None) as bar,
    ):
        paths = (folder / f"part-{number:05d}.arrow" for number in free_numbers(entry))
        work(store, encoder, list(zip(plan.todo, paths, strict=False)), bar, finished)
    clear_strays(store, entry, encoder.slug)
    return plan


def forget_old(store: Store, slug: str) -> None:
    """Gives up embeddings of texts that a store held until a build settled; the store must be locked."""
    entry = store.manifest.encoders[slug]
    current = store.corpus.fingerprints
    if not set(entry.shards) <= current:
        entry.shards = {text: file for text, file in entry.shards.items() if text in current}
        store.save()
        clear_strays(store, entry, slug)


def embed_here(store: Store, encoder: Encoder, jobs: list[Job], bar: tqdm[None], finished: Finished) -> None:
    """Embeds shards in this process.

    Args:
        jobs: what to embed.
        finished: told each text's fingerprint and file once it is on disk, from the thread that wrote it.
    """
    corpus = store.corpus

    def write(path: Path, vectors: npt.NDArray[np.float16], text: str) -> None:
        with atomic_write(path) as aside:
            write_vectors(aside, vectors, text, encoder.fingerprint)
        finished(text, store.entry(path, len(vectors)))

    with (
        closing(ahead(lambda job: encoder.prepare(corpus.unchanged_texts(job[0])), jobs)) as prepared,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        written: Future[None] | None = None
        for (position, path), ready in zip(jobs, prepared, strict=True):
            shard = corpus.shards[position]
            vectors = _encode_shard(ready, encoder, shard.rows, bar)
            if written is not None:
                written.result()
            release_memory()
            written = writer.submit(write, path, vectors, shard.text)
        if written is not None:
            written.result()


def _encode_shard(prepared: Any, encoder: Encoder, rows: int, bar: tqdm[None]) -> npt.NDArray[np.float16]:
    """Vectors float16 [rows, dim]."""
    before = bar.n
    vectors = encoder.run(prepared, lambda done: bar.update(len(done))).astype(np.float16)
    if not (np.isfinite(vectors).all() and vectors.any(axis=1).all()):
        raise ModelError(
            f"{encoder.model} gives vectors that are zero or not finite: use another encoder or --precision"
        )
    bar.update(before + rows - bar.n)
    return vectors


def _usable_entry(store: Store, encoder: Encoder) -> EncoderEntry:
    """The encoder's manifest entry, without embeddings of texts or of a version that are gone."""
    entry = store.manifest.encoders.get(encoder.slug)
    if entry is None or entry.fingerprint != encoder.fingerprint:
        if entry is not None and entry.shards:
            log.warning("encoder %s has changed: all of its embeddings are made anew", encoder.slug)
        entry = EncoderEntry.of(encoder)
        entry.settings["engine"] = encoder.engine
    wanted = store.corpus.fingerprints | store.answering
    damaged = {text for text, file in entry.shards.items() if text in wanted and not store.is_whole(file)}
    for text in damaged:  # which else would be taken in as ones that are not listed
        (store.path / entry.shards[text].path).unlink(missing_ok=True)
    entry.shards = {text: file for text, file in entry.shards.items() if text in wanted and text not in damaged}
    entry.model = encoder.model
    entry.settings.pop("tried", None)
    store.manifest.dry_run = None
    store.manifest.encoders[encoder.slug] = entry
    return entry


class Embeddings:
    """An encoder's vectors of the whole corpus, shard by shard, memory-mapped.

    Args:
        store: the store.
        slug: the encoder's folder name.

    Raises:
        StoreError: that encoder wrote nothing here, or not all of what the corpus now holds.
    """

    def __init__(self, store: Store, slug: str) -> None:
        entry = store.manifest.encoders.get(slug)
        if entry is None:
            have = ", ".join(store.manifest.encoders) or "none"
            raise StoreError(
                f"{store.path} has no embeddings by {slug} (it has: {have}): "
                f"run `nearkin build {store.path}` with that --encoder"
            )
        self._store, self._entry = store, entry
        shards = store.corpus.shards
        if missing := sum(s.text not in entry.shards for s in shards):
            flags = build_flags(entry) if len(store.manifest.encoders) > 1 else ""
            raise StoreError(
                f"{store.path}: {missing} of {len(shards)} shards are not embedded by {slug}: "
                f"run `nearkin build {store.path}{flags}` to finish"
            )
        self._mapped: dict[int, npt.NDArray[np.float16]] = {}
        self._files: list[FileEntry] = [entry.shards[s.text] for s in shards]
        self._texts = [s.text for s in shards]
        self.dim, self.rows = entry.dim, sum(f.rows for f in self._files)
        self.offsets = np.concatenate([[0], np.cumsum([f.rows for f in self._files])]).astype(np.int64)
        self.fingerprint = self.fingerprint_of(0, len(shards))

    def __len__(self) -> int:
        return self.rows

    @property
    def shards(self) -> int:
        return len(self._files)

    def fingerprint_of(self, start: int, stop: int) -> str:
        """Of the shards from `start` to `stop`: it changes with their encoder, their texts and their order."""
        return fingerprint(self._entry.fingerprint, *self._texts[start:stop])

    def __iter__(self) -> Iterator[npt.NDArray[np.float16]]:
        """float16 [rows of a shard, dim], in doc_id order.

        Raises:
            StoreError: a file is missing or damaged, or was made from another text or encoder.
        """
        return (self.shard(number) for number in range(len(self._files)))

    def shard(self, number: int) -> npt.NDArray[np.float16]:
        """float16 [rows, dim] of one shard, mapped once; raises as iteration does."""
        vectors = self._mapped.get(number)
        if vectors is None:
            remedy = f"run `nearkin build {self._store.path}` to make it again"
            path = self._store.check(self._files[number], remedy)
            vectors = read_vectors(path, self._texts[number], self._entry.fingerprint, self.dim, remedy)
            if len(self._mapped) >= MAPPED_SHARDS:
                self._mapped.clear()
            self._mapped[number] = vectors
        return vectors

    def parts(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float16]]]:
        """Vectors of doc_ids `rows`, in any order, by shard: (positions in `rows`, float16 [positions, dim])."""
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self.offsets)
        for number in np.flatnonzero(np.diff(bounds)):
            positions = order[bounds[number] : bounds[number + 1]]
            yield positions, self.shard(int(number))[rows[positions] - self.offsets[number]]

    def sample(self, count: int, shards: int = 64, seed: int = 0) -> npt.NDArray[np.float16]:
        """At most about `count` vectors float16 [any, dim], in equal runs from at most so many shards."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self._files))[:shards])
        run = -(-count // len(chosen))
        # Copies: a view would hold its file mapped, and a process may map only so many.
        taken = np.empty((sum(min(run, self._files[number].rows) for number in chosen), self.dim), np.float16)
        at = 0
        for number in chosen:
            part = self.shard(int(number))[:run]
            taken[at : at + len(part)] = part
            at += len(part)
        return taken

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Vectors float32 [len(rows), dim] of doc_ids `rows`, in any order."""
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for positions, found in self.parts(rows):
            vectors[positions] = found
        return vectors
