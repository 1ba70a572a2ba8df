"""Build: ingest corpora, embed them, index the embeddings; says first what it will cost, and resumes when killed."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selection.choosing import Choice, Wanted, check_wanted, choose_encoder
from selection.devices import check_devices, first_device
from selection.embedding import EmbeddingPlan, Embeddings, embed, forget_old, plan_embedding
from selection.encoders import STATIC, model_of_cascade
from selection.encoders.recall import MIN_RECALL
from selection.errors import InputError, NearkinError, StoreError
from selection.files import require_space
from selection.index import load_faiss
from selection.index.build import missing_bytes
from selection.index.plan import IndexPlan, IndexWanted, plan_index
from selection.indexing import make_index
from selection.ingest import CorpusSpec, ingest, new_files
from selection.manifest import CorpusEntry
from selection.memory import peak_memory, release_memory
from selection.slugs import check_version
from selection.store import Store
from selection.stored import by_slug, drop_untaken, remember_tried
from selection.unfinished import LEFT
from selection.wording import human_bytes, human_seconds
from selection.workers import work_of

log = logging.getLogger(__name__)

KEPT = "kept"
CUT_WORTH_SAYING = 0.01


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do, and what it is expected to take.

    Attributes:
        corpora: what was ingested.
        choice: the encoder, with the mean tokens of a passage and the seconds that a trial predicts.
        settings: the encoder's, where the store has it.
        embedding: what is to be embedded, and what is there already.
        index: which index.
        disk_bytes: new bytes on disk.
        queries: for how many task examples the index is planned.
        memory: predicted peak of this process in bytes; None where the system does not tell.
    """

    corpora: list[CorpusEntry]
    choice: Choice
    settings: dict[str, Any]
    embedding: EmbeddingPlan
    index: IndexPlan
    disk_bytes: int
    memory: int | None
    queries: int

    @property
    def seconds(self) -> float | None:
        return self.choice.seconds

    def lines(self) -> list[str]:
        """The plan for a person."""
        rows = [corpus_line(corpus) for corpus in self.corpora]
        encoder, embedding = self.choice.encoder, self.embedding
        recall = f", recall {self.settings['recall']:.3f}" if "recall" in self.settings else ""
        how = f"{encoder.precision} in {encoder.engine}{recall}"
        rows.append(f"encoder {encoder.slug}: {how}, {encoder.dim} dimensions, float16")
        todo = f"{embedding.passages:,} of {embedding.passages + embedding.reused:,} passages to embed"
        if self.choice.tokens is not None and self.seconds is not None:
            tokens = self.choice.tokens * embedding.passages
            todo += (
                f", about {tokens:,.0f} tokens, {human_seconds(self.seconds)} ({tokens / self.seconds:,.0f} tokens/s)"
            )
        rows.append(f"encode  {todo}")
        if self.choice.cut >= CUT_WORTH_SAYING:
            share = f"{self.choice.cut:.0%} of them are as long as the encoder reads, or longer"
            rows.append(f"        {share}: what is behind is not searched; --chunk cuts long passages")
        rows.append(f"index   {self.index.line(self.queries)}")
        memory = "" if self.memory is None else f"; memory at most about {human_bytes(self.memory)}"
        rows.append(f"disk    {human_bytes(self.disk_bytes)} more{memory}")
        return rows


def corpus_line(corpus: CorpusEntry) -> str:
    """What was read of a corpus, for a person."""
    left = [f"{n} {what}" for n, what in ((corpus.blank, "blank"), (corpus.filtered, "left out by --where")) if n]
    return (
        f"corpus  {corpus.name}: {corpus.passages:,} passages, {human_bytes(corpus.text_bytes)} of text, "
        f"{len(corpus.shards)} shards" + (f" ({', '.join(left)})" if left else "")
    )


@dataclass
class BuildResult:
    """What a build did.

    Attributes:
        seconds: by stage: ``ingest``, ``encoder`` (choosing and fitting it), ``embed``, ``index``.
        memory: the peak of this process in bytes; None where the system does not tell.
    """

    plan: BuildPlan
    done: bool
    seconds: dict[str, float] = field(default_factory=dict)
    memory: int | None = None

    def against_plan(self) -> str:
        """Prediction and fact, for a person."""
        parts = []
        if self.plan.seconds is not None:
            took = human_seconds(self.seconds["embed"])
            parts.append(f"embedding predicted {human_seconds(self.plan.seconds)}, took {took}")
        if self.plan.memory is not None and self.memory is not None:
            parts.append(f"memory predicted {human_bytes(self.plan.memory)}, was {human_bytes(self.memory)}")
        return "; ".join(parts)


def build(
    store: Path | str,
    corpora: Sequence[CorpusSpec] = (),
    *,
    encoder: str | None = None,
    precision: str | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    index: IndexWanted | str | None = None,
    device: str | None = None,
    min_recall: float = MIN_RECALL,
    max_seconds: float | None = None,
    dry_run: bool = False,
    report: Callable[[str], None] = log.info,
) -> BuildResult:
    """Brings a store up to date: new or changed corpora are ingested, missing embeddings made, the index rebuilt.

    Args:
        store: the folder; made where it does not exist.
        corpora: added, or replaced where the name is known; none continues or repairs what the store has.
        encoder: a model, ``static:MODEL``, or ``cascade:MODEL``, which embeds by the static one, so that `query` and
            `select` can find the neighbours of the model itself; default all-MiniLM-L6-v2; where neither it nor
            precision nor max_tokens is given, the store's own.
        precision: ``exact``, ``bf16``, ``int8`` or ``auto``; default exact.
        max_tokens: cut the encoder's input to so many tokens; default the model's own limit.
        prompt: what the encoder is to find before every passage and example, or the name of one of the model's own
            prompts; default what the store has, else the model's default one; needs `encoder`.
        index: what the index shall be, or its kind alone, one of `selection.index.kinds.KINDS`; default the store's
            kind, else ``auto``.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or several with commas between them, a process each.
        min_recall: the least share of exact neighbours that int8 must keep, and whatever ``auto`` chooses.
        max_seconds: with precision ``auto``, take the most exact path whose embedding is predicted to end within it.
        dry_run: stop after the plan: the corpora are read and entered into the store (one that answers already goes on
            without them until a build has embedded them), an encoder that has to be fitted is fitted and kept for the
            build that takes it; nothing is embedded.
        report: takes the plan's lines.

    Raises:
        NearkinError: anything the user can put right; whole shards made so far are kept.
    """
    if max_seconds is not None and precision != "auto":
        raise NearkinError("--max-seconds chooses among precisions: it needs --precision auto")
    if prompt is not None and encoder is None:
        raise NearkinError("--prompt belongs to an encoder: name that too, with --encoder")
    check_devices(device)
    model, full = model_of_cascade(encoder), precision or "exact"
    if model is not None:
        if full not in ("exact", "bf16"):
            raise NearkinError(f"a cascade ends in --precision exact or bf16, not in {full}")
        if max_tokens is not None:
            raise NearkinError("a cascade reads whole passages: leave --max-tokens out")
        encoder, precision = STATIC + model, None
    goal = index if isinstance(index, IndexWanted) else IndexWanted(index or KEPT, min_recall)
    if goal.kind not in (KEPT, "auto", "stream"):
        load_faiss()
    seconds: dict[str, float] = {}
    with _writing(Path(store)) as (opened, answers):
        if not answers:  # nobody's neighbours would be disturbed
            opened.settle()
        _check_named(opened, corpora)
        wanted = by_slug(opened, Wanted(encoder, precision, max_tokens, device, min_recall, max_seconds, prompt))
        wanted = replace(wanted, trying=dry_run)
        check_wanted(opened, wanted)
        with _timed(seconds, "ingest"):
            _ingest_all(opened, corpora)
        with _timed(seconds, "encoder"):
            choice = choose_encoder(opened, wanted, report)
            release_memory()  # what ingestion and the encoders that were not chosen have left
        chosen = choice.encoder
        if encoder is None:
            check_version(opened, chosen)
        if model is not None:
            opened.manifest.encoders[chosen.slug].settings["cascade"] = full
        if goal.kind == KEPT:
            entry = opened.manifest.encoders.get(chosen.slug)
            goal = replace(goal, kind=entry.settings.get("index", "auto") if entry else "auto")
        plan = plan_build(opened, choice, goal, first_device(device))
        for line in plan.lines():
            report(line)
        if dry_run:
            remember_tried(opened, chosen)
            return BuildResult(plan, False, seconds)
        drop_untaken(opened, chosen.slug)
        require_space(opened.path, plan.disk_bytes)
        with _timed(seconds, "embed"):
            embed(opened, chosen, work_of(device, chosen))
            Embeddings(opened, chosen.slug)  # all are there
            opened.settle()
            opened.save()
            opened.clear_corpora()
            forget_old(opened, chosen.slug)
        with _timed(seconds, "index"):
            make_index(opened, chosen.slug, goal, plan.index, report=report, device=first_device(device))
    return BuildResult(plan, True, seconds, peak_memory())


def collect(
    store: Path | str, corpora: Sequence[CorpusSpec] = (), *, report: Callable[[str], None] = log.info
) -> list[CorpusEntry]:
    """A build without its embeddings (``build --encoder none``): enough for methods that read text alone.

    What is new is the store's at once, so that those methods see it; where neighbours could be asked for, they cannot
    until a build has embedded it, which is said.

    Raises:
        NearkinError: anything the user can put right.
    """
    with _writing(Path(store)) as (opened, answered):
        opened.settle()
        _check_named(opened, corpora)
        _ingest_all(opened, corpora)
        opened.save()
        opened.clear_corpora()
        if answered and not _answers(opened):
            log.warning("neighbours are found again once `nearkin build %s` has embedded what is new", store)
    for corpus in opened.manifest.corpora:
        report(corpus_line(corpus))
    return opened.manifest.corpora


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[tuple[Store, bool]]:
    """Yields the store, locked, as builds see it, and whether neighbours could be asked of it so far.

    One that is made for this is removed again where it fails before the store holds anything.
    """
    existed, mine = path.exists(), False
    store = Store(path, create=True)
    try:
        with store.lock():
            mine = not existed  # and not of another build that began a moment before
            answered = _answers(store)
            store.take_pending()
            yield store, answered
    finally:
        if mine:
            _forget(path)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begun


def _answers(store: Store) -> bool:
    """Whether neighbours can be asked for: some encoder has embedded all that the store holds."""
    texts = store.corpus.fingerprints
    return bool(texts) and any(entry.covers(texts) for entry in store.manifest.encoders.values())


def _check_named(store: Store, corpora: Sequence[CorpusSpec]) -> None:
    if len({c.name for c in corpora}) < len(corpora):
        raise InputError("two corpora have the same name: give each --corpus a name of its own")
    if not store.manifest.corpora and not corpora:
        raise StoreError(f"{store.path} holds no corpus yet: name one with --corpus NAME=PATH")


def _forget(path: Path) -> None:
    """Removes a store that failed before it held anything, not even some of a corpus."""
    if path.is_dir() and not (path / "manifest.json").exists() and not any((path / "corpus").glob(LEFT)):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)


def _ingest_all(store: Store, corpora: Sequence[CorpusSpec]) -> None:
    """Reads the named corpora, and known ones whose files changed or became more; each is recorded once it is read."""
    specs = {spec.name: spec for spec in corpora}
    for entry in store.manifest.corpora:
        there = [f for f in entry.sources if (store.path / f.path).exists()]
        whole = all(store.is_whole(f) for f in [*there, *entry.in_use])
        gained = [] if entry.name in specs else new_files(entry, store)
        if gained:
            log.warning("corpus %s has gained %d files, as %s: they are read too", entry.name, len(gained), gained[0])
        if entry.name not in specs and (not whole or gained):
            kept = {key: value for key, value in entry.spec.items() if key != "column"}
            specs[entry.name] = CorpusSpec(entry.name, **kept)
    for name, spec in specs.items():
        entry = ingest(store, spec)
        known = [c.name for c in store.manifest.corpora]
        if name in known:
            old = store.manifest.corpora[known.index(name)]
            before = {shard.text for shard in old.shards}
            gone = len(before - {shard.text for shard in entry.shards})
            # Where it only has more files, its last shard has only gained text.
            grown = entry.spec == old.spec and old.sources and entry.sources[: len(old.sources)] == old.sources
            if gone and not grown:
                log.warning(
                    "corpus %s is not what it was: the text of %d of its %d shards has changed", name, gone, len(before)
                )
            store.manifest.corpora[known.index(name)] = entry
        else:
            store.manifest.corpora.append(entry)
        store.save()


def plan_build(store: Store, choice: Choice, index: IndexWanted, device: str | None = None) -> BuildPlan:
    """The plan for what the manifest's corpora need."""
    encoder = choice.encoder
    embedding = plan_embedding(store, encoder.slug, encoder.fingerprint)
    rows = embedding.passages + embedding.reused
    entry = store.manifest.encoders.get(encoder.slug)
    listed = entry is not None and entry.covers(store.corpus.fingerprints)
    there = Embeddings(store, encoder.slug) if listed and not embedding.todo else None
    chosen = plan_index(rows, encoder.dim, index, store.path, there, device=device)
    missing = chosen.bytes if there is None else missing_bytes(store, encoder.slug, chosen)
    disk = embedding.passages * encoder.dim * 2 + missing
    memory = peak_memory()
    if memory is not None:
        memory += _working_bytes(store, embedding, encoder.dim) if embedding.todo else 0
        memory = max(memory, chosen.memory or 0)
    settings = entry.settings if entry else {}
    return BuildPlan(store.manifest.corpora, choice, settings, embedding, chosen, disk, memory, index.queries)


def _working_bytes(store: Store, embedding: EmbeddingPlan, dim: int) -> int:
    """What embedding holds above the encoder at most: three of the largest shards as text, tokens and vectors."""
    corpus = store.corpus
    shards = [corpus.shards[position] for position in embedding.todo]
    rows, text = max(s.rows for s in shards), max(s.text_bytes for s in shards)
    return 3 * (3 * text + rows * dim * 6)
