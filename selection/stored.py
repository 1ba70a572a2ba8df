"""Stored: which encoders a store has, what loads them, and what it keeps of those that were tried."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from selection.devices import check_devices, first_device
from selection.encoders import Encoder, EncoderSpec, load, same_model
from selection.encoders.transformer import on_gpu
from selection.errors import StoreError
from selection.manifest import EncoderEntry
from selection.models import DEFAULT_ENCODER
from selection.slugs import encoder_held, open_encoder
from selection.store import Store
from selection.strays import has_shares, shared_slugs
from selection.wording import join

if TYPE_CHECKING:
    from selection.choosing import Wanted


def spec_of(entry: EncoderEntry) -> EncoderSpec:
    """Which encoder an entry is of."""
    return EncoderSpec(entry.model, entry.precision, entry.max_tokens, entry.prompt)


def named_spec(store: Store, wanted: Wanted) -> EncoderSpec:
    """Which encoder is meant, where precision is not ``auto``: as asked, else the store's, else the default one."""
    entries = store.manifest.encoders
    if wanted.any_encoder:
        if store.manifest.in_use:
            return spec_of(entries[open_encoder(store, None)])
        shared = [slug for slug in shared_slugs(store) if has_shares(store, slug)]
        if len(shared) == 1 and shared[0] in entries:
            return spec_of(entries[shared[0]])
        if shared:
            raise StoreError(f"{store.path} has shares by {join(shared)}: name one of them, with --encoder")
    spec = EncoderSpec(wanted.encoder or DEFAULT_ENCODER, wanted.precision or "exact", wanted.max_tokens, wanted.prompt)
    if spec.prompt is not None:
        return spec
    alike = [entry for entry in entries.values() if same_model(spec_of(entry).teacher, spec.teacher)]
    itself = [entry for entry in alike if spec_of(entry).slug == spec.slug]
    return replace(spec, prompt=next((entry.prompt for entry in [*itself, *alike]), None))


def by_slug(store: Store, wanted: Wanted) -> Wanted:
    """The same, where the encoder was named as the store calls it, by what it is."""
    held = encoder_held(store, wanted.encoder)
    if held is None or (wanted.precision, wanted.max_tokens) != (None, None):
        return wanted
    prompt = held.prompt if wanted.prompt is None else wanted.prompt
    return replace(wanted, encoder=held.model, precision=held.precision, max_tokens=held.max_tokens, prompt=prompt)


def stored_encoder(store: Store, slug: str, device: str | None = None) -> Encoder:
    """The encoder that wrote embeddings `slug`.

    Raises:
        StoreError: the model's folder is gone, or what was fitted to the corpus is missing or damaged.
        ModelError: see `load_encoder`.
    """
    check_devices(device)
    entry = store.manifest.encoders[slug]
    model = Path(spec_of(entry).teacher)
    if model.is_absolute() and not model.is_dir():
        raise StoreError(
            f"{store.path} was embedded by the model in {model}, which is not there: where that has moved, "
            f"`nearkin build {store.path} --encoder FOLDER` takes it from its new place and embeds nothing again"
        )
    for file in entry.files:
        store.check(file, f"run `nearkin build {store.path}` to fit this encoder again and embed the corpus by it")
    folder = store.path / "encoders" / slug if entry.files else None
    engine = entry.settings.get("engine", "torch")
    return load(spec_of(entry), first_device(device), engine, folder)


def remember_tried(store: Store, encoder: Encoder) -> None:
    """Keeps the encoder that a dry run chose, and what runs it, for shares; a build may name another."""
    entry = store.manifest.encoders.get(encoder.slug)
    if entry is None or (entry.fingerprint != encoder.fingerprint and not entry.shards):
        settings = {"engine": encoder.engine, "tried": True}
        store.manifest.encoders[encoder.slug] = replace(EncoderEntry.of(encoder), settings=settings)
    store.manifest.dry_run = encoder.slug
    store.save()


def remember_engine(store: Store, slug: str, full: Encoder) -> None:
    """Keeps which engine a trial took for the encoder that a cascade over `slug` ends in; the store must be locked.

    So that every task is answered by the same one, and none waits for another trial.
    """
    settings = store.manifest.encoders[slug].settings
    if not on_gpu(full) and settings.get("cascade_engine") != full.engine:
        settings["cascade_engine"] = full.engine
        store.save()


def drop_untaken(store: Store, slug: str) -> None:
    """Forgets what this build or a dry run tried, and fitted, where `slug` was taken instead and no share goes on."""
    for other, entry in list(store.manifest.encoders.items()):
        tried = entry.files or entry.settings.get("tried")
        if other != slug and tried and not entry.shards and not has_shares(store, other):
            del store.manifest.encoders[other]
            store.save()
            shutil.rmtree(store.path / "encoders" / other, ignore_errors=True)
