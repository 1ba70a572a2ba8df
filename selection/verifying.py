"""Verify: is a store whole and current, and what repairs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selection.embedding import Embeddings
from selection.index.blocks import UNFINISHED
from selection.slugs import build_flags
from selection.store import Store


def verify(store: Path | str) -> Iterator[tuple[str, str | None]]:
    """Reads every file of a store again, and compares each stage with the one before it.

    Yields:
        (file or stage, None) where it is whole and current, (file or stage, what is wrong and the command that
        repairs it) where not.

    Raises:
        StoreError: no store, or its manifest is damaged.
    """
    opened = Store(store)
    settled = list(opened.manifest.corpora)
    opened.take_pending()
    several = len(opened.manifest.encoders) > 1
    wanted = opened.corpus.fingerprints
    files = {file.path: file for corpus in [*settled, *opened.manifest.corpora] for file in corpus.in_use}
    for file in files.values():
        good = opened.is_whole(file, reread=True)
        yield file.path, None if good else f"changed or missing: `nearkin build {store}` reads it again"
    for slug, entry in opened.manifest.encoders.items():
        if entry.settings.get("tried"):
            continue  # by a dry run; no build has taken it
        rebuild = f"`nearkin build {store}{build_flags(entry) if several else ''}`"
        for file in entry.files:
            good = opened.is_whole(file, reread=True)
            yield file.path, None if good else f"damaged or missing: {rebuild} fits it again and embeds all anew"
        for file in entry.shards.values():
            good = opened.is_whole(file, reread=True)
            yield file.path, None if good else f"damaged or missing: {rebuild} embeds it again"
        missing = len(wanted - set(entry.shards))
        if missing:
            yield f"embeddings/{slug}", f"{missing} shards are not embedded yet: {rebuild} goes on"
            continue
        indexes = [i for n, i in opened.manifest.indexes.items() if i.encoder == slug and not n.endswith(UNFINISHED)]
        reindex = f"`nearkin index {store}{f' --encoder {slug}' if several else ''}`"
        if not indexes and entry.settings.get("index", "stream") != "stream":
            yield f"index/{slug}", f"there is no index: {reindex} makes it"
        for index_entry in indexes:
            again = f"{reindex[:-1]} --kind {index_entry.kind}`"
            if index_entry.embeddings != Embeddings(opened, slug).fingerprint or not index_entry.settings:
                yield f"index/{slug}-{index_entry.kind}", f"older than the embeddings: {again} brings it up to date"
                continue
            for block in index_entry.blocks:
                good = opened.is_whole(block.file, reread=True)
                yield block.file.path, None if good else f"damaged or missing: {again} makes it again"
    opened.save_checked()
