"""Which of a store's encoders is meant: by its slug, by its model, or because it is the only one."""

from __future__ import annotations

import shlex
from pathlib import Path

from selection.encoders import Encoder, same_model, slug_of
from selection.errors import StoreError
from selection.manifest import EncoderEntry
from selection.store import Store


def open_encoder(store: Store, encoder: str | None) -> str:
    """The slug of the store's encoder: the named one, or the only one.

    Raises:
        StoreError: the store has no embeddings, or was written by another encoder, or has several and none is named.
    """
    have = store.manifest.in_use
    if not have:
        raise StoreError(f"{store.path} has no embeddings yet: run `nearkin build {store.path}`")
    if encoder is None:
        if len(have) > 1:
            raise StoreError(f"{store.path} has embeddings by {', '.join(have)}: choose one with --encoder")
        return have[0]
    if encoder in store.manifest.encoders:
        return encoder
    if (slug := slug_held(store, encoder)) is not None:
        return slug
    alike = slug_of(encoder)  # by name, of another folder
    told = [f"{one} ({store.manifest.encoders[one].model})" if one == alike else one for one in have]
    raise StoreError(
        f"{store.path} was written by {', '.join(told)}, not by {encoder}: "
        f"name that one, or run `nearkin build {store.path} --encoder {encoder}` first"
    )


def slug_held(store: Store, model: str, precision: str = "exact") -> str | None:
    """The slug of the store's encoder of this very model, not of one with the same last name; None where none is."""
    slug = slug_of(model, precision)
    entry = store.manifest.encoders.get(slug)
    return slug if entry is not None and same_model(entry.model, model) else None


def encoder_held(store: Store, slug: str | None) -> EncoderEntry | None:
    """What the store calls `slug`, unless a folder of that name is there, which is a model; None where nothing is."""
    return None if slug is None or Path(slug).exists() else store.manifest.encoders.get(slug)


def build_flags(encoder: EncoderEntry | Encoder) -> str:
    """How `nearkin build` names this encoder, with a space before."""
    precision = "" if encoder.precision == "exact" else f" --precision {encoder.precision}"
    limit = "" if encoder.max_tokens is None else f" --max-tokens {encoder.max_tokens}"
    prompt = "" if encoder.prompt is None else f" --prompt {shlex.quote(encoder.prompt)}"
    return f" --encoder {encoder.model}{precision}{limit}{prompt}"


def check_version(store: Store, encoder: Encoder) -> None:
    """Raises StoreError where embeddings would give way to those of another version of their model."""
    entry = store.manifest.encoders.get(encoder.slug)
    if entry is not None and entry.shards and entry.fingerprint != encoder.fingerprint:
        raise StoreError(
            f"{store.path} was embedded by another version of {entry.model} than the one here: use that one, or embed "
            f"everything anew by `nearkin build {store.path}{build_flags(entry)}`"
        )


def check_same(store: Store, slug: str, encoder: Encoder) -> None:
    """Raises StoreError where `encoder` is another version of the one that wrote `slug`."""
    entry = store.manifest.encoders[slug]
    if encoder.fingerprint != entry.fingerprint:
        raise StoreError(
            f"{store.path} was embedded by another version of {entry.model}: "
            f"use that one, or run `nearkin build {store.path}` to embed it anew"
        )


def check_slug(store: Store, slug: str, model: str, fingerprint: str | None = None) -> None:
    """Raises StoreError where another model of the same last name has embeddings as `slug`, which would be lost.

    Args:
        fingerprint: the encoder's; where it is the entry's, a model was only moved.
    """
    entry = store.manifest.encoders.get(slug)
    if entry is None or not entry.shards or entry.fingerprint == fingerprint or same_model(entry.model, model):
        return
    raise StoreError(
        f"{store.path} has embeddings {slug} by {entry.model}, and those by {model} would take their place: "
        "give the folder of one of the two models another name, or build another store"
    )
