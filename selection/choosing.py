"""Chooses the encoder of a build by trying it on passages of the corpus, and makes those that are fitted to a corpus.

Flags of a processor promise what only a trial tells (bfloat16 is slower than float32 on some that have it), so torch
and OpenVINO each encode for two seconds and the faster goes on. ``--precision auto`` goes down this ladder and says
what a step costs in recall: exact, bf16, int8, and, where a time limit leaves nothing else, the static encoder. Without
a limit it takes the fastest step whose measured recall is enough and whose fitting pays for itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from selection.devices import best_device, devices_of, first_device
from selection.encoders import (
    STATIC,
    Encoder,
    EncoderSpec,
    int8,
    load,
    openvino_engine,
    static_encoder,
)
from selection.encoders.recall import MIN_RECALL, RECALL_AT, neighbour_recall
from selection.encoders.transformer import TransformerEncoder, load_pipeline, on_gpu
from selection.errors import ModelError, StoreError
from selection.files import atomic_folder
from selection.manifest import EncoderEntry
from selection.memory import release_memory
from selection.models import DEFAULT_ENCODER
from selection.slugs import check_slug, check_version, open_encoder
from selection.store import Store
from selection.stored import named_spec, spec_of
from selection.tokens import Ragged, count_tokens
from selection.wording import human_seconds

log = logging.getLogger(__name__)

Report = Callable[[str], None]

TRIAL_FROM = 2000
TRIAL_SECONDS = 2.0
TRIAL_PASSAGES = 1024
GPU_TRIAL_PASSAGES = 16_384  # fewer leave a GPU waiting for its next batch
COMPILE_FROM = 300.0  # seconds of encoding from which compiling, about a minute, may pay
INT8_PASSAGES = 2048
STATIC_PASSAGES = 16_384
SAMPLED_SHARDS = 16
FIT_FROM = 256
FITTING_SECONDS = 120.0
FASTER = 0.95  # of the seconds, from which on a trial is believed to show a difference
LASTING = ("auto", "cascade", "cascade_engine", "index", "tried")  # what an entry says that no fitting changes


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None where nothing was.

    Attributes:
        encoder, precision, max_tokens, prompt: see `EncoderSpec`; precision may be ``auto``; without a prompt the one
            that the store has of that model goes on.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or several with commas between them.
        min_recall: the least share of exact neighbours, in [0, 1], that int8 and bf16 chosen by ``auto`` must keep.
        max_seconds: for ``auto``, within which the embedding should end.
        trying: whether nothing of the store may give way yet.
    """

    encoder: str | None = None
    precision: str | None = None
    max_tokens: int | None = None
    device: str | None = None
    min_recall: float = MIN_RECALL
    max_seconds: float | None = None
    prompt: str | None = None
    trying: bool = False

    @property
    def any_encoder(self) -> bool:
        """Whether nothing was said of which encoder."""
        return (self.encoder, self.precision, self.max_tokens) == (None, None, None)


@dataclass(frozen=True)
class Choice:
    """An encoder and what a trial of it showed.

    Attributes:
        tokens: mean tokens of a passage as the encoder reads it, from a sample; None where nothing was tried.
        seconds: predicted for all passages to be embedded; None likewise.
        cut: the share of that sample of which the encoder reads the beginning alone, being longer than it takes.
    """

    encoder: Encoder
    tokens: float | None = None
    seconds: float | None = None
    cut: float = 0.0


def choose_encoder(store: Store, wanted: Wanted, report: Report = log.info) -> Choice:
    """The encoder asked for, fitted where it has to be; where nothing is said of it, the store's own.

    Raises:
        NearkinError: no such model, a library that is missing, a recall that is not reached; another model of that
            name has embeddings here.
    """
    chooser = _Chooser(store, wanted, report)
    choice = chooser.choose()
    check_slug(store, choice.encoder.slug, choice.encoder.model, choice.encoder.fingerprint)
    if isinstance(choice.encoder, TransformerEncoder) and choice.encoder.pooling_guessed:
        report(f"pooling {choice.encoder.model} has no modules.json, which would say it: the mean of its tokens")
    if isinstance(choice.encoder, TransformerEncoder) and (prompts := choice.encoder.unused_prompts):
        which = ", ".join(f"{name} {text!r}" for name, text in sorted(prompts.items()))
        report(f"prompt  none; {choice.encoder.model} has {which}: --prompt NAME puts one before every text")
    return chooser.compiled(choice)


def check_wanted(store: Store, wanted: Wanted) -> None:
    """Raises NearkinError where what is asked for cannot be had, before a long ingestion rather than after it."""
    if wanted.any_encoder and store.manifest.in_use:
        open_encoder(store, None)
        return
    spec = named_spec(store, replace(wanted, precision=None) if wanted.precision == "auto" else wanted)
    if spec.precision == "int8" and not int8.available():
        raise ModelError(f"--precision int8 needs OpenVINO and NNCF: {openvino_engine.INSTALL}")
    load_pipeline(spec.teacher, "bf16", "cpu")  # in which a large model takes half the memory


def full_encoder(store: Store, slug: str, device: str | None = None, report: Report = log.info) -> Encoder:
    """The encoder that a cascade over static embeddings `slug` ends in: that model, in the precision the build said.

    Raises:
        ModelError: see `load_encoder`.
    """
    entry = store.manifest.encoders[slug]
    spec = EncoderSpec(spec_of(entry).teacher, entry.settings.get("cascade", "exact"), prompt=entry.prompt)
    chooser, engine = _Chooser(store, Wanted(device=device), report), entry.settings.get("cascade_engine")
    if engine is None and chooser.on_cpu:
        return chooser._fastest(spec).encoder
    return load(spec, chooser.device, engine or "torch")


class _Chooser:
    def __init__(self, store: Store, wanted: Wanted, report: Report) -> None:
        self.store, self.wanted, self.report = store, wanted, report
        self.device = first_device(wanted.device)
        self.on_cpu = (self.device or best_device()) == "cpu"
        self._gpus = sum(name != "cpu" for name in devices_of(wanted.device)) or 1
        self._drawn: dict[int, pa.ChunkedArray] = {}

    def choose(self) -> Choice:
        if self.wanted.precision == "auto":
            model, entries = self.wanted.encoder or DEFAULT_ENCODER, self.store.manifest.encoders
            before = [e for e in entries.values() if e.settings.get("auto") == [model, self.wanted.max_tokens]]
            before = [e for e in before if self.wanted.prompt in (None, e.prompt) and not e.settings.get("tried")]
            if before and (self.wanted.max_seconds is None or self._is_incomplete(before[0])):
                return self._named(spec_of(before[0]))
            return self._auto(named_spec(self.store, replace(self.wanted, precision="exact")))
        return self._named(named_spec(self.store, self.wanted))

    def _is_incomplete(self, entry: EncoderEntry) -> bool:
        """Whether a build with this encoder was stopped, or the corpus has grown since."""
        return not entry.covers(self.store.corpus.fingerprints)

    def _named(self, spec: EncoderSpec) -> Choice:
        return self._fitted(spec) if spec.is_fitted else self._fastest(spec)

    def _passages(self, encoder: Encoder) -> int:
        """How many are still to be embedded by this encoder."""
        from selection.embedding import plan_embedding

        return plan_embedding(self.store, encoder.slug, encoder.fingerprint).passages

    def _tried(self, encoder: Encoder) -> Choice:
        """The encoder with its mean tokens and predicted seconds, where there is enough to do."""
        passages = self._passages(encoder)
        if passages < TRIAL_FROM:
            return Choice(encoder)
        gpus = self._gpus if on_gpu(encoder) else 1
        tokens, speed, cut = measure(encoder, self._sample(GPU_TRIAL_PASSAGES if on_gpu(encoder) else TRIAL_PASSAGES))
        return Choice(encoder, tokens, passages * tokens / speed / gpus, cut)

    def _fastest(self, spec: EncoderSpec) -> Choice:
        """An unfitted encoder in torch or, on a CPU where that is faster, in OpenVINO."""
        known = self.store.manifest.encoders.get(spec.slug)
        engine = known.settings.get("engine") if known else None
        choice = self._tried(load(spec, self.device, engine or "torch"))
        if engine or not self.on_cpu or not openvino_engine.available() or choice.seconds is None:
            return choice
        in_torch = choice.seconds
        del choice  # one model in memory at a time
        release_memory()
        try:
            choice = self._tried(load(spec, self.device, "openvino"))
        except ModelError as error:
            self.report(f"trial   {error}")
            return self._tried(load(spec, self.device))
        in_openvino = choice.seconds or 0.0
        if in_torch < in_openvino:
            choice = replace(choice, encoder=load(spec, self.device), seconds=in_torch)
        taken = f"{choice.encoder.engine} is taken"
        seconds = f"torch {human_seconds(in_torch)}, openvino {human_seconds(in_openvino)}"
        self.report(f"trial   {spec.slug}, all passages: {seconds}; {taken}")
        return choice

    def compiled(self, choice: Choice) -> Choice:
        """The same encoder, on CUDA compiled where much is to be done and a trial finds that faster."""
        encoder, device = choice.encoder, self.device or best_device()
        if (choice.seconds or 0.0) < COMPILE_FROM or not isinstance(encoder, TransformerEncoder):
            return choice
        if not device.startswith("cuda") or encoder.engine != "torch":
            return choice
        if not encoder.compile():
            self.report(f"trial   {encoder.slug} cannot be compiled for {device}: plain is taken")
            return choice
        self._tried(encoder)  # a shape of its own may have it compiled once more
        compiled = self._tried(encoder)
        faster = (compiled.seconds or 0.0) < (choice.seconds or 0.0)
        if not faster:
            encoder.undo_compile()
        seconds = f"{human_seconds(choice.seconds or 0)}, compiled {human_seconds(compiled.seconds or 0)}"
        self.report(f"trial   {encoder.slug}, all passages: {seconds}; {'compiled' if faster else 'plain'} is taken")
        return compiled if faster else choice

    def _fitted(self, spec: EncoderSpec) -> Choice:
        """A fitted encoder: the store's, or a new one."""
        encoder = self._current(spec)
        if encoder is None:
            check_slug(self.store, spec.slug, spec.model)
            known = self.store.manifest.encoders.get(spec.slug)
            if self.wanted.trying and known is not None and known.shards:
                raise StoreError(
                    f"fitting {spec.slug} anew makes all of its embeddings in {self.store.path} useless, which no dry "
                    "run does: try it in another store, or build it"
                )
            if len(self.store.corpus) < FIT_FROM:
                raise ModelError(
                    f"{spec.slug} is fitted to the corpus, whose {len(self.store.corpus):,} passages are too few "
                    f"({FIT_FROM} at least): choose the model itself with --precision exact"
                )
            start = time.perf_counter()
            encoder = (self._fit_static if spec.is_static else self._fit_int8)(spec)
            self.report(f"fitted  {spec.slug} in {human_seconds(time.perf_counter() - start)}")
        return self._tried(encoder)

    def _current(self, spec: EncoderSpec) -> Encoder | None:
        """The store's, where what was fitted is whole and the model behind it the same as then."""
        known = self.store.manifest.encoders.get(spec.slug)
        if known is None or not known.files or not all(self.store.is_whole(file) for file in known.files):
            return None
        folder = self.store.path / "encoders" / spec.slug
        encoder = load(spec, self.device, fitted=folder)
        if encoder.fingerprint == known.fingerprint:
            return encoder
        if self.wanted.encoder is None:
            check_version(self.store, encoder)
        return None

    def _fit_int8(self, spec: EncoderSpec) -> Encoder:
        plain = TransformerEncoder(spec.teacher, "exact", "cpu", spec.max_tokens, "openvino", prompt=spec.prompt)
        sample = plain.prepare(self._sample(INT8_PASSAGES))
        self.report(f"int8    calibrating on {len(sample):,} passages of the corpus")
        pipeline = load_pipeline(spec.teacher, "exact", "cpu", spec.max_tokens)
        made = int8.quantize(pipeline, sample, plain.run(sample), plain.pad, self.wanted.min_recall, self.report)
        with self._kept(spec) as folder:
            made.save(folder / "model.xml")
        return self._record(spec, {"engine": "openvino", "candidate": made.candidate, **made.worth})

    def _fit_static(self, spec: EncoderSpec) -> Encoder:
        choice = self._teacher(replace(spec, model=spec.teacher))
        teacher, sample = choice.encoder, self._sample(STATIC_PASSAGES)
        assert isinstance(teacher, TransformerEncoder)
        first = ""
        if choice.seconds is not None:
            gpus = self._gpus if on_gpu(teacher) else 1
            seconds = choice.seconds * gpus * min(1.0, len(sample) / len(self.store.corpus))  # one takes it
            first = f": {human_seconds(seconds)} to encode them, then the fit; done once"
        self.report(f"static  fitting to {spec.teacher} on {len(sample):,} passages of the corpus{first}")
        model, worth = static_encoder.fit(teacher, sample, self.report)
        with self._kept(spec) as folder:
            model.save(folder)
        return self._record(spec, {"engine": "numpy", "teacher": teacher.precision, **worth})

    def _teacher(self, spec: EncoderSpec) -> Choice:
        """The model in float32 or, where that is faster, in bfloat16: a fit is blind to the difference."""
        exact = self._fastest(spec)
        if exact.seconds is None:
            return exact
        rounded = self._fastest(replace(spec, precision="bf16"))
        return rounded if rounded.seconds is not None and rounded.seconds < FASTER * exact.seconds else exact

    def _kept(self, spec: EncoderSpec) -> Any:
        return atomic_folder(self.store.path / "encoders" / spec.slug, overwrite=True)

    def _record(self, spec: EncoderSpec, settings: dict[str, Any]) -> Encoder:
        """Enters a fitted encoder into the manifest, so that a killed build does not fit it again; loads it."""
        folder = self.store.path / "encoders" / spec.slug
        encoder = load(spec, "cpu", fitted=folder)
        files = [self.store.entry(path, 0) for path in sorted(folder.iterdir())]
        known = self.store.manifest.encoders.get(spec.slug)
        kept = {name: known.settings[name] for name in LASTING if name in known.settings} if known else {"tried": True}
        settings = {**settings, **kept}
        self.store.manifest.encoders[spec.slug] = replace(EncoderEntry.of(encoder), files=files, settings=settings)
        self.store.save()
        return encoder

    def _auto(self, spec: EncoderSpec) -> Choice:
        exact = self._fastest(spec)
        limit = self.wanted.max_seconds
        if exact.seconds is None or (limit is not None and exact.seconds <= limit):
            return self._settled(spec, exact, "")
        lower = self._worthwhile(spec, exact)
        if lower is not None and (limit is None or (lower[0].seconds or 0) <= limit):
            return self._settled(spec, *lower)
        if limit is not None:
            static = replace(spec, model=STATIC + spec.model)
            return self._settled(spec, self._fitted(static), self._cost_of(static))
        return self._settled(spec, *(lower or (exact, "")))

    def _worthwhile(self, spec: EncoderSpec, exact: Choice) -> tuple[Choice, str] | None:
        """bf16 or int8 with what it costs, where it is faster than exact and keeps enough of its neighbours."""
        assert exact.seconds is not None
        limit = self.wanted.max_seconds
        found: list[tuple[Choice, str]] = []
        try:
            half = self._fastest(replace(spec, precision="bf16"))
        except ModelError as error:  # a device that knows no bfloat16
            self.report(f"bf16    {error}")
            half = exact
        if half.seconds is not None and half.seconds < FASTER * exact.seconds:
            sample = self._sample(TRIAL_PASSAGES)
            recall = neighbour_recall(half.encoder.encode(sample), exact.encoder.encode(sample), RECALL_AT)
            if recall >= self.wanted.min_recall:
                found.append((half, f"keeps {recall:.1%} of the exact neighbours"))
                if limit is not None and half.seconds <= limit:
                    return found[0]
        if self.on_cpu and int8.available() and (limit is not None or exact.seconds > 3 * FITTING_SECONDS):
            quantized = replace(spec, precision="int8")
            try:
                found.append((self._fitted(quantized), self._cost_of(quantized)))
            except ModelError as error:
                self.report(f"int8    {error}")
        fast = min(found, key=lambda choice: choice[0].seconds or 0.0, default=None)
        return fast if fast is not None and (fast[0].seconds or 0.0) < exact.seconds else None

    def _cost_of(self, spec: EncoderSpec) -> str:
        settings = self.store.manifest.encoders[spec.slug].settings
        return f"keeps {settings['recall']:.1%} of the exact neighbours among {settings['passages']:,} passages"

    def _settled(self, spec: EncoderSpec, choice: Choice, cost: str) -> Choice:
        taken = choice.encoder
        what = f"{taken.slug} in {taken.engine}"
        self.report(f"auto    {what}: {cost or 'the exact vectors'}")
        limit, seconds = self.wanted.max_seconds, choice.seconds
        if limit is not None and seconds is not None and seconds > limit:
            self.report(f"auto    no path fits into {human_seconds(limit)}: this is the fastest there is")
        entries = self.store.manifest.encoders
        if taken.slug not in entries:
            settings = {"engine": taken.engine} | ({"tried": True} if self.wanted.trying else {})
            entries[taken.slug] = replace(EncoderEntry.of(taken), settings=settings)
        for slug, other in entries.items():
            if slug == taken.slug:
                other.settings["auto"] = [spec.model, spec.max_tokens]
            else:
                other.settings.pop("auto", None)
        return choice

    def _sample(self, passages: int) -> pa.ChunkedArray:
        """Texts drawn by a fixed seed from at most `SAMPLED_SHARDS` shards, in random order."""
        if passages not in self._drawn:
            self._drawn[passages] = draw(self.store, passages)
        return self._drawn[passages]


def draw(store: Store, passages: int) -> pa.ChunkedArray:
    """At most `passages` texts from all over the corpus, in random order, by a fixed seed.

    From `SAMPLED_SHARDS` shards drawn by their size, so that a corpus of a billion passages is not read for it.
    """
    corpus, rng = store.corpus, np.random.default_rng(0)
    rows = np.array([shard.rows for shard in corpus.shards])
    count = min(SAMPLED_SHARDS, len(rows))
    shards = np.sort(rng.choice(len(rows), count, replace=False, p=rows / rows.sum()))
    pool = np.concatenate([np.arange(corpus.offsets[s], corpus.offsets[s + 1]) for s in shards])
    ids = rng.choice(pool, min(passages, len(pool)), replace=False)
    return corpus.take(ids, ["text"])["text"]


def measure(encoder: Encoder, texts: pa.ChunkedArray) -> tuple[float, float, float]:
    """(mean tokens of a text as `encoder` reads it, tokens/s, share of texts as long as it reads), by a trial.

    It runs on more and more texts for two seconds.

    On a CPU preparing shares its cores with running; with a GPU the slower of the two is what counts.
    """
    encoder.prepare(texts)  # fills the tokenizer's memory of words, as a long run would
    begun = time.perf_counter()
    prepared = encoder.prepare(texts)
    preparing = time.perf_counter() - begun
    lengths = prepared.lengths if isinstance(prepared, Ragged) else count_tokens(texts, encoder.model) + 2
    start, size, spent, most, speed = 0, 32, 0.0, 0, 1.0
    encoder.run(_part(prepared, 0, 16))
    while spent < TRIAL_SECONDS and start < len(texts):
        stop = min(start + size, len(texts))
        tokens, begun = int(lengths[start:stop].sum()), time.perf_counter()
        encoder.run(_part(prepared, start, stop))
        taken = time.perf_counter() - begun
        if tokens > most:
            most, speed = tokens, tokens / taken
        start, size, spent = stop, 2 * size, spent + taken
    times = (1 / speed, preparing / float(lengths.sum()))
    limit = encoder.limit if isinstance(encoder, TransformerEncoder) else math.inf
    speed = 1 / (max(times) if on_gpu(encoder) else sum(times))
    return float(lengths.mean()), speed, float((lengths >= limit).mean())


def _part(prepared: Any, start: int, stop: int) -> Any:
    return (
        prepared.take(np.arange(start, stop)) if isinstance(prepared, Ragged) else prepared.slice(start, stop - start)
    )
