"""Share: one machine's part of a build's embedding, where several machines write to one store.

::

    nearkin build STORE --corpus papers=papers.parquet --dry-run     # once: reads the corpus, fits what is to be fitted
    nearkin build STORE --share 3/8                                  # the third of eight machines
    nearkin build STORE                                              # once all are done: takes their files in

A share takes consecutive shards, about as much text as any other, so that no machine reads what lies between its own,
and writes its files aside (`selection.strays`), under names that say what they
hold. It holds no lock and does not touch the manifest, so shares need not know of one another: what a build finds there
of a text that it needs, by the encoder that it has, it takes in. One that is killed goes on where it stopped, and what
a share never did the build does itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from selection.choosing import Wanted, check_wanted, choose_encoder
from selection.devices import devices_of
from selection.embedding import embed_here, plan_embedding
from selection.encoders import Encoder, model_of_cascade, same_model
from selection.errors import NearkinError, StoreError
from selection.files import require_space
from selection.manifest import FileEntry
from selection.slugs import build_flags, check_same, check_slug, check_version
from selection.store import Store
from selection.stored import by_slug, named_spec, stored_encoder
from selection.strays import finish_share, share_path
from selection.wording import human_seconds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShareResult:
    """What a share did.

    Attributes:
        passages, reused: embedded now, and there already.
        build: the command that takes all shares in.
    """

    passages: int
    reused: int
    seconds: float
    build: str


def share_of(text_bytes: list[int], number: int, of: int) -> range:
    """Positions of the `number`-th of `of` runs of consecutive shards, each with about as many bytes of text.

    A shard belongs to where its middle falls, so runs neither overlap nor leave anything out, whoever asks.
    """
    sizes = np.array(text_bytes, dtype=np.int64)
    ends = np.cumsum(sizes)
    run = (ends - sizes / 2) * of // max(int(sizes.sum()), 1)
    return range(int(np.searchsorted(run, number - 1)), int(np.searchsorted(run, number - 1, side="right")))


def embed_share(
    store: Path | str,
    number: int,
    of: int,
    *,
    encoder: str | None = None,
    precision: str | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    device: str | None = None,
    report: Callable[[str], None] = log.info,
) -> ShareResult:
    """Embeds the `number`-th of `of` parts, from 1, of what a store's corpora need; else as `selection.building.build`.

    Raises:
        NearkinError: the store holds no corpus, the encoder has not been fitted yet, a file changed, the disk is full.
    """
    if not 1 <= number <= of:
        raise NearkinError(f"{number} of {of} is no share: the third of eight is 3 of 8")
    if model_of_cascade(encoder) is not None:
        raise NearkinError("a cascade embeds by static vectors, in minutes: let one machine do it, without --share")
    if prompt is not None and encoder is None:
        raise NearkinError("--prompt belongs to an encoder: name that too, with --encoder")
    if precision == "auto":
        raise NearkinError("--share needs one precision on every machine: name the one that `--dry-run` chose")
    if len(devices_of(device)) > 1:
        raise NearkinError("a share is for one device: give each GPU its own, by --device cuda:0 and so on")
    opened = Store(store)
    opened.take_pending()
    if not opened.manifest.corpora:
        raise StoreError(
            f"{opened.path} holds no corpus yet: `nearkin build {opened.path} --corpus NAME=PATH --dry-run` reads it"
        )
    wanted = by_slug(opened, Wanted(encoder, precision, max_tokens, device, prompt=prompt))
    if wanted.any_encoder and opened.manifest.dry_run in opened.manifest.encoders:
        wanted = by_slug(opened, replace(wanted, encoder=opened.manifest.dry_run))
    chosen, seconds = _encoder_of(opened, wanted, encoder is None, report)
    plan = plan_embedding(opened, chosen.slug, chosen.fingerprint)
    shards, mine = opened.corpus.shards, _mine(opened, chosen, number, of)
    todo = [at for at in plan.todo if at in mine]
    rows = sum(shards[at].rows for at in todo)
    about = "" if seconds is None else f", about {human_seconds(seconds * rows / max(plan.passages, 1))}"
    report(f"share   {number} of {of}: {rows:,} passages to embed by {chosen.slug}{about}")
    require_space(opened.path, rows * chosen.dim * 2)
    jobs = [(at, share_path(opened, chosen.slug, chosen.fingerprint, shards[at].text)) for at in todo]

    def finished(text: str, file: FileEntry) -> None:
        finish_share(share_path(opened, chosen.slug, chosen.fingerprint, text), file.sha256)

    begun = time.perf_counter()
    with tqdm(total=rows, desc="embedding", unit=" passages", unit_scale=True, disable=None) as bar:
        embed_here(opened, chosen, jobs, bar, finished)
    reused = sum(shards[at].rows for at in mine) - rows
    build = f"nearkin build {opened.path}{build_flags(chosen)}"
    return ShareResult(rows, reused, time.perf_counter() - begun, build)


def _encoder_of(
    store: Store, wanted: Wanted, unnamed: bool, report: Callable[[str], None]
) -> tuple[Encoder, float | None]:
    """The encoder that all shares take, and the seconds that a trial predicts for all passages, where one was made."""
    check_wanted(store, wanted)
    spec = named_spec(store, wanted)
    check_slug(store, spec.slug, spec.model)
    if spec.is_fitted:
        entry = store.manifest.encoders.get(spec.slug)
        if entry is None or not entry.files:
            raise StoreError(
                f"{spec.slug} is fitted to the corpus, by one machine for all: "
                f"`nearkin build {store.path} --encoder … --dry-run` does that first"
            )
        if (spec.prompt, True) != (entry.prompt, same_model(entry.model, spec.model)):
            raise StoreError(f"{spec.slug} was fitted with another model or prompt:{build_flags(entry)} names it")
        chosen = stored_encoder(store, spec.slug, wanted.device)
        check_same(store, spec.slug, chosen)
        return chosen, None
    choice = choose_encoder(store, wanted, report)
    if unnamed:
        check_version(store, choice.encoder)
    return choice.encoder, choice.seconds


def _mine(store: Store, encoder: Encoder, number: int, of: int) -> set[int]:
    """Positions of a share's shards, of those that the store has not taken in.

    They are the same for every share until a build takes some in, and there is no tail for the last of them.
    """
    entry = store.manifest.encoders.get(encoder.slug)
    there = entry.shards if entry is not None and entry.fingerprint == encoder.fingerprint else {}
    shards = store.corpus.shards
    missing = [at for at, shard in enumerate(shards) if shard.text not in there]
    run = share_of([shards[at].text_bytes for at in missing], number, of)
    return {missing[place] for place in run}
