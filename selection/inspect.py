"""Judging an augmentation set without training: what is in it, how near the task it is, how diverse; `inspect`.

Measures, each with its source: the task examples that brought something (coverage); KL reduction, how much nearer than
the corpus the set's hashed n-grams are to the task's (DSIR, Xie et al. 2023, section 4); mean cosine and Vendi score of
its embeddings (Friedman and Dieng 2023; `selection.diversity`); what it shares with other sets (Jaccard).

Cost: one pass over the set's text and its embeddings, 12 s for 100,000 passages of 100 MB on one thread; and, the first
time in a store, one pass over the whole corpus for its n-grams, which are kept there. Memory, whatever the corpus:
8,192 passages; the set's numbers, about 40 bytes a passage (8 more where sets of different stores are compared); 8
bytes a distinct word; and what the n-gram hasher remembers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selection.diversity import diversity
from selection.embedding import Embeddings
from selection.encoders import CASCADE, STATIC, model_of_cascade, slug_of
from selection.errors import InputError, NearkinError, StoreError
from selection.files import TextFingerprint
from selection.filling import AUGMENTATION, BLOCK
from selection.guard import normalise
from selection.hashes import text_hashes
from selection.histogram import Histogram
from selection.inspection import GROUPS, SHOWN, Coverage, Example, Inspection, Ints, Part, Shared
from selection.ngrams import BUCKETS, NgramHasher, corpus_counts, kl_divergence, text_counts
from selection.store import Store
from selection.task import Task, read_task
from selection.tokens import count_tokens, split_words

log = logging.getLogger(__name__)

NUMBERS = ["doc_id", "score", "rank", "query_id"]
PROBES = 64


def inspect(
    path: Path | str,
    *,
    others: Sequence[Path | str] = (),
    store: Path | str | None = None,
    task: Path | str | None = None,
    examples: int = 20,
    seed: int = 0,
    report: Callable[[str], None] = log.info,
) -> Inspection:
    """Measures a set; what cannot be measured is left out, with the reason in `Inspection.left_out`.

    Args:
        path: its folder, as `select` wrote it.
        others: sets to compare it with; measured against this one's store and task.
        store, task: where they are now, if they are no longer where the manifest says. A task whose training texts are
            others than then is not used.
        examples: how many passages to show, from the best, the middle and the last ranks.
        seed: which ones.
        report: told what takes long.

    Raises:
        InputError: no set there, a damaged or an empty one; no task at `task`.
        StoreError: no store at `store`.
    """
    start = time.perf_counter()
    if examples < 0:
        raise InputError("--examples must be 0 or more")
    opened = _Set.open(path)
    compared = [_Set.open(other) for other in others]
    against = _Against(opened.manifest, store, task, report)
    found = _measure(opened, against, examples, seed)
    shared = []
    for other in compared:
        report(f"comparing with {other.path}")
        shared.append(_shared(opened, other, found.of_store, _measure(other, against, 0, seed)))
    if against.store is not None:
        against.store.save_checked()
    return replace(found, others=shared, seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class _Set:
    """A set on disk: its manifest, and the columns of its table that are numbers."""

    path: Path
    manifest: dict[str, Any]
    numbers: pa.Table

    @classmethod
    def open(cls, path: Path | str) -> _Set:
        path = Path(path)
        for name in ("augmentation.parquet", "manifest.json"):
            if not (path / name).is_file():
                raise InputError(f"{path} is not an augmentation set (no {name} there): make one with `nearkin select`")
        manifest = _read_manifest(path / "manifest.json")
        try:
            file = pq.ParquetFile(path / "augmentation.parquet")
            if missing := [name for name in AUGMENTATION.names if name not in file.schema_arrow.names]:
                raise InputError(f"{path / 'augmentation.parquet'} has no column {missing[0]}: select the set again")
            numbers = file.read(columns=NUMBERS).select(NUMBERS)
            numbers = numbers.cast(pa.schema([AUGMENTATION.field(name) for name in NUMBERS]))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path) from error
        if numbers.num_rows == 0:
            raise InputError(f"{path / 'augmentation.parquet'} holds no passages: select the set again")
        if numbers.num_rows != manifest["passages"]:
            raise InputError(
                f"{path}: augmentation.parquet holds {numbers.num_rows:,} passages where manifest.json says "
                f"{manifest['passages']:,}: select the set again"
            )
        return cls(path, manifest, numbers)

    def blocks(self) -> Iterator[pa.RecordBatch]:
        """All rows, `BLOCK` at a time."""
        try:
            with pq.ParquetFile(self.path / "augmentation.parquet") as file:
                for batch in file.iter_batches(BLOCK):
                    batch.validate(full=True)
                    yield batch.select(AUGMENTATION.names).cast(AUGMENTATION)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path) from error

    def number(self, name: str) -> Ints:
        return np.asarray(self.numbers[name].to_numpy(), dtype=np.int64)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """NaN where a passage has none."""
        return np.asarray(self.numbers["score"].cast(pa.float64()).to_numpy())

    def text_hashes(self) -> npt.NDArray[np.uint64]:
        """A 64-bit hash of each distinct text, as the guard compares texts; sorted."""
        parts = [text_hashes(normalise(block["text"])) for block in self.blocks()]
        return np.unique(np.concatenate(parts))


def _damaged(path: Path) -> InputError:
    return InputError(f"{path / 'augmentation.parquet'} is damaged or cut short: copy it or select the set again")


def _read_manifest(path: Path) -> dict[str, Any]:
    kinds = {"store": str, "task": str, "method": str, "tokenizer": str, "passages": int, "tokens": int, "queries": int}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: copy it or select the set again") from error
    for name, kind in {**kinds, "parameters": dict}.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(name), kind):
            raise InputError(f"{path} is not the manifest of an augmentation set (no {name}): select the set again")
    return dict(manifest)


class _Against:
    """The store and the task that sets are held against, or why they are not there."""

    def __init__(
        self,
        manifest: dict[str, Any],
        store: Path | str | None,
        task: Path | str | None,
        report: Callable[[str], None],
    ) -> None:
        self._report, self._encoder = report, manifest["parameters"].get("encoder")
        self.store: Store | None = None
        self.task: Task | None = None
        self.no_store = self.no_task = ""
        try:
            self.store = Store(manifest["store"] if store is None else store)
        except NearkinError:
            if store is not None:
                raise
            self.no_store = f"the store {manifest['store']} is not there, or cannot be read: name it with --store"
        try:
            self.task = read_task(manifest["task"] if task is None else task)
        except NearkinError:
            if task is not None:
                raise
            self.no_task = f"the task {manifest['task']} is not there, or cannot be read: name it with --task"
        told = manifest.get("task_texts")  # not by earlier versions
        if self.task is not None and told not in (None, TextFingerprint.of(self.task.train_texts)):
            self.no_task = (
                f"the training texts of {self.task.path} are not those that the set was selected for: name the task as "
                "it was with --task, or select the set again"
            )
            self.task = None

    @cached_property
    def embeddings(self) -> tuple[Embeddings, str]:
        """The vectors of the encoder that the set was selected by, and its name; else of the store's first."""
        store = self._need_store()
        slugs, wanted = store.manifest.in_use, self._encoder
        if not slugs:
            raise StoreError(f"{store.path} has no embeddings: run `nearkin build {store.path}`")
        if (model := model_of_cascade(wanted)) is not None:
            static = [slug for slug in slugs if store.manifest.encoders[slug].model.startswith(STATIC)]
            wanted = static[0] if wanted == CASCADE and static else slug_of(STATIC + model)
        slug = slugs[0] if wanted is None else wanted
        return Embeddings(store, slug), slug

    def _need_store(self) -> Store:
        if self.store is None:
            raise StoreError(self.no_store)
        return self.store

    @cached_property
    def counts(self) -> tuple[Ints, Ints]:
        """Of the task's training texts and of the whole corpus, how often each hashed n-gram occurs."""
        store = self._need_store()
        if self.task is None:
            raise InputError(self.no_task)
        self._report(f"n-grams of the {len(store.corpus):,} passages of {store.path}: cut the first time, then kept")
        return text_counts(self.task.train_texts), corpus_counts(store)

    def check_origin(self, opened: _Set, probes: pa.Table) -> None:
        """Raises StoreError where the set's doc_ids are not those of this store's passages.

        Args:
            probes: some rows of the set, which are compared with the store's.
        """
        store = self._need_store()
        elsewhere = f"its passages are not those of {store.path} by doc_id (curated, or another or changed store)"
        if opened.number("doc_id").max() >= len(store.corpus) or opened.number("doc_id").min() < 0:
            raise StoreError(elsewhere)
        try:
            rows = store.corpus.take(probes["doc_id"].to_numpy())
        except (pa.ArrowException, OSError, InputError, IndexError) as error:
            raise StoreError(f"{store.path} cannot be read: run `nearkin verify {store.path}`") from error
        if not all(rows[name].equals(probes[name]) for name in ("id", "source", "text")):
            raise StoreError(elsewhere)


def _measure(opened: _Set, against: _Against, examples: int, seed: int) -> Inspection:
    doc_ids, left_out = opened.number("doc_id"), {}
    drawn, groups = _draw(opened, examples, seed)
    probes = np.unique(np.linspace(0, len(doc_ids) - 1, PROBES).astype(np.int64))
    text = _Text(opened, np.union1d(drawn, probes))
    kl_corpus = kl_set = cosine = vendi = encoder = None
    of_store = False
    try:
        target, corpus = against.counts
        kl_corpus, kl_set = kl_divergence(target, corpus), kl_divergence(target, text.ngrams)
    except NearkinError as error:
        left_out["KL reduction"] = str(error)
    try:
        against.check_origin(opened, text.rows(probes))
        of_store = True
        embeddings, encoder = against.embeddings
        cosine, vendi = diversity(vectors for _, vectors in embeddings.parts(doc_ids))
    except NearkinError as error:
        left_out["diversity"] = str(error)
    if text.lengths is None:
        left_out["tokens a passage"] = text.no_lengths
    shown, reason = _examples(text.rows(drawn), groups, opened.manifest, against)
    if reason:
        left_out["task examples"] = reason
    return Inspection(
        path=opened.path,
        manifest=opened.manifest,
        passages=len(doc_ids),
        tokens=opened.manifest["tokens"],
        words=text.words,
        unique_words=len(text.distinct),
        text_bytes=sum(part.text_bytes for part in text.parts("source")),
        sources=text.parts("source"),
        methods=text.parts("method"),
        coverage=_coverage(opened),
        scores=text.scores(opened.scores),
        lengths=text.lengths,
        kl_corpus=kl_corpus,
        kl_set=kl_set,
        cosine=cosine,
        vendi=vendi,
        encoder=encoder,
        of_store=of_store,
        examples=shown,
        left_out=left_out,
    )


class _Text:
    """What one pass over a set's text counts.

    Args:
        opened: the set.
        keep: numbers of rows to keep whole, sorted.
    """

    def __init__(self, opened: _Set, keep: Ints) -> None:
        self.words, self.distinct = 0, np.empty(0, np.uint64)
        self.ngrams = np.zeros(BUCKETS, np.int64)
        self.lengths: Histogram | None = None
        self.no_lengths = ""
        self._keep, self._kept = keep, []
        self._parts, self._methods, lengths = [], [], []
        hasher, is_word, row = NgramHasher(BUCKETS), np.empty(0, bool), 0
        for block in opened.blocks():
            cut = hasher.cut(split_words(block["text"]))
            self.ngrams += np.bincount(hasher.hash(cut).values, minlength=BUCKETS)
            fresh = np.array([name[:1] == b"_" or name.decode()[0].isalnum() for name in cut.names], bool)
            is_word = np.concatenate([np.empty(0, bool) if cut.anew else is_word, fresh])
            self.words += int(is_word[cut.tokens.values].sum())
            hashed = (hashlib.blake2b(cut.names[at], digest_size=8).digest() for at in np.flatnonzero(fresh))
            self.distinct = np.union1d(self.distinct, np.frombuffer(b"".join(hashed), np.uint64))
            if not self.no_lengths:
                try:
                    lengths.append(count_tokens(block["text"], opened.manifest["tokenizer"]).astype(np.int32))
                except NearkinError as error:
                    self.no_lengths = str(error)
            sizes = pc.cast(pc.binary_length(block["text"]), pa.int64())
            part = pa.table({"source": block["source"], "method": block["method"], "bytes": sizes})
            self._parts.append(part.group_by(["source", "method"]).aggregate([("bytes", "sum"), ("bytes", "count")]))
            self._methods.append(block["method"].dictionary_encode())
            low, high = np.searchsorted(keep, [row, row + len(block)])
            self._kept.append(pa.table(block.take(pa.array(keep[low:high] - row))))
            row += len(block)
        if not self.no_lengths:
            tokens = np.concatenate(lengths)
            self.lengths = Histogram.of(tokens, float(np.percentile(tokens, 99, method="higher")))

    def rows(self, numbers: Ints) -> pa.Table:
        """Rows that were kept, in this order."""
        return pa.concat_tables(self._kept).take(pa.array(np.searchsorted(self._keep, numbers)))

    def parts(self, column: str) -> list[Part]:
        """What each value of `column` brought, most passages first."""
        sums = pa.concat_tables(self._parts).group_by(column).aggregate([("bytes_sum", "sum"), ("bytes_count", "sum")])
        rows = [Part(r[column], r["bytes_count_sum"], r["bytes_sum_sum"]) for r in sums.to_pylist()]
        return sorted(rows, key=lambda part: (-part.passages, part.name))

    def scores(self, scores: npt.NDArray[np.float64]) -> dict[str, Histogram]:
        """The scores that each method gave, since those of different methods do not compare."""
        methods = pa.chunked_array(self._methods).unify_dictionaries().combine_chunks()
        codes = methods.indices.to_numpy()
        found = {}
        for code, method in sorted(enumerate(methods.dictionary.to_pylist()), key=lambda item: str(item[1])):
            own = scores[(codes == code) & np.isfinite(scores)]
            if len(own):
                found[method] = Histogram.of(own)
        return found


def _coverage(opened: _Set) -> Coverage | None:
    query_ids = opened.number("query_id")
    query_ids = query_ids[query_ids >= 0]
    if len(query_ids) == 0:
        return None
    brought = np.bincount(query_ids, minlength=opened.manifest["queries"])
    return Coverage(len(brought), int((brought > 0).sum()), brought)


def _draw(opened: _Set, count: int, seed: int) -> tuple[Ints, list[str]]:
    """Numbers of rows to show and the group of each, from the first, the middle and the last tenth by rank.

    Of small sets the thirds; where there are no scores, from all alike.
    """
    random, scores, size = np.random.default_rng(seed), opened.scores, opened.numbers.num_rows
    count = min(count, size)
    if np.isnan(scores).all():
        return np.sort(random.choice(size, count, replace=False)), ["drawn"] * count
    order = np.lexsort((opened.number("doc_id"), -np.nan_to_num(scores), opened.number("rank")))
    drawn, groups = [], []
    for number, (group, third) in enumerate(zip(GROUPS, np.array_split(order, 3), strict=True)):
        wanted = (count + 2 - number) // 3
        width = min(len(third), max(wanted, size // 10))
        start = (0, (len(third) - width) // 2, len(third) - width)[number]
        drawn.append(third[start + np.sort(random.choice(width, wanted, replace=False))])
        groups += [group] * wanted
    return np.concatenate(drawn), groups


def _examples(
    rows: pa.Table, groups: Sequence[str], manifest: dict[str, Any], against: _Against
) -> tuple[list[Example], str]:
    """The rows as examples with their queries, and why queries are left out, if they are."""
    reason = ""
    if against.task is None:
        reason = against.no_task
    elif len(against.task.train_texts) != manifest["queries"]:
        now = len(against.task.train_texts)
        reason = f"{against.task.path} has {now:,} examples and had {manifest['queries']:,} when the set was selected"
    found = []
    for group, row in zip(groups, rows.to_pylist(), strict=True):
        text, number = row.pop("text"), row["query_id"]
        asked = against.task.train_texts if against.task is not None and not reason and number >= 0 else None
        query = asked[number].as_py() if asked is not None and number < len(asked) else None
        row.pop("doc_id")
        found.append(Example(group=group, text=text[:SHOWN], characters=len(text), query=query, **row))
    return found, reason if any(example.query_id >= 0 for example in found) else ""


def _shared(opened: _Set, other: _Set, of_store: bool, measured: Inspection) -> Shared:
    """What two sets hold in common: by doc_id where both are of the same store, else by text."""
    by = "doc_id" if of_store and measured.of_store else "text"
    first, second = (
        np.unique(one.number("doc_id")) if by == "doc_id" else one.text_hashes() for one in (opened, other)
    )
    both = len(np.intersect1d(first, second, assume_unique=True))
    return Shared(measured, both, both / (len(first) + len(second) - both), by)
