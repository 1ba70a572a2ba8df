"""Pool: what a selector may draw on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.cascade import cascade_neighbours
from selection.choosing import full_encoder
from selection.corpus import Corpus
from selection.devices import check_devices
from selection.embedding import Embeddings
from selection.encoders import CASCADE, STATIC, Encoder, model_of_cascade
from selection.encoders.recall import MIN_RECALL
from selection.errors import NearkinError, StoreError
from selection.index.kinds import BY_NAME
from selection.index.plan import memory_of_machine
from selection.index.ranking import neighbour_table
from selection.index.search import Searcher
from selection.models import DEFAULT_ENCODER
from selection.slugs import open_encoder, slug_held
from selection.store import Store
from selection.stored import stored_encoder
from selection.task import Task
from selection.task_vectors import encode_task

log = logging.getLogger(__name__)

BLOCK_PAIRS, STREAM_PAIRS = 8_000_000, 64_000_000
PAIR_SHARE = 400  # bytes of the machine's memory for a pair that is searched at once, which takes some 50


@dataclass
class Pool:
    """What a selector may draw on: the corpus, the task, and vectors and neighbours on request.

    An encoder is looked for only when a method asks for vectors, so methods that read text alone work on a store
    without embeddings.

    Attributes:
        store, task: what was named.
        encoder: one of the store's, or ``cascade[:MODEL]``; None where it has only one.
        seed: for methods that draw.
        device: where task texts are encoded and products formed.
        index: the kind of index; None is the one in use.
        index_used: the kind that a method searched, or asked for centroids; None while none did.
        centroids: whose ``cluster`` took: a kind of index, or ``k-means``.
        min_recall: what a cascade promises; None is `MIN_RECALL`.
        report: told what a method plans and finds.
        everything: whether there is no budget.
        seconds: what its encoding of the task (``encode``) took; `assemble` adds other stages.

    Raises:
        NearkinError: this machine has no such device; or, once vectors are asked for, an index was named for a cascade.
    """

    store: Store
    task: Task
    encoder: str | None = None
    seed: int = 0
    device: str | None = None
    index: str | None = None
    min_recall: float | None = None
    report: Callable[[str], None] = log.info
    everything: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    index_used: str | None = field(default=None, init=False)
    centroids: str | None = field(default=None, init=False)
    _encoders: tuple[Encoder, Encoder] | None = field(default=None, repr=False)
    _told: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_devices(self.device)

    @cached_property
    def _resolved(self) -> tuple[str, bool]:
        """(slug of the encoder whose embeddings are searched, whether it only says which passages to encode in full).

        Raises:
            StoreError: the store has no such embeddings.
            NearkinError: an index was named for a cascade.
        """
        store, model = self.store, model_of_cascade(self.encoder)
        if model is None:
            return open_encoder(store, self.encoder), False
        static = [slug for slug, entry in store.manifest.encoders.items() if entry.model.startswith(STATIC)]
        slug = static[0] if self.encoder == CASCADE and len(static) == 1 else slug_held(store, STATIC + model)
        if slug is None:
            raise StoreError(
                f"{store.path} has no static embeddings for a cascade: "
                f"run `nearkin build {store.path} --encoder {self.encoder}` first"
            )
        entry = store.manifest.encoders[slug]
        full = slug_held(store, entry.model.removeprefix(STATIC), entry.settings.get("cascade", "exact"))
        if full is not None:
            whole = store.manifest.encoders[full]
            if whole.prompt == entry.prompt and whole.covers(store.corpus.fingerprints):
                return full, False  # everything is encoded already
        if self.index is not None:
            raise NearkinError(
                f"--index {self.index} cannot serve a cascade, which scans all cheap embeddings: leave it out, or run "
                f"`nearkin build {store.path} --encoder {entry.model.removeprefix(STATIC)}` to encode every passage"
            )
        return slug, True

    @property
    def slug(self) -> str:
        """The encoder whose embeddings are searched."""
        return self._resolved[0]

    @property
    def cascade(self) -> bool:
        """Whether that encoder, a static one, only says which passages the full one has to see."""
        return self._resolved[1]

    @property
    def promised(self) -> float:
        """The share of the full encoder's neighbours that a cascade promises."""
        return MIN_RECALL if self.min_recall is None else self.min_recall

    def tell_unused(self) -> None:
        """Warns of what was asked for and had no say in what a method did."""
        if self.index is not None and self.index_used is None:
            log.warning("--index %s was not used: no index was searched", self.index)
        if self.min_recall is not None and not ("_resolved" in self.__dict__ and self.cascade):
            log.warning("--min-recall %g was not used: it is what a cascade promises", self.min_recall)

    @property
    def encoder_name(self) -> str | None:
        """The encoder, as ``--encoder`` names it; None where no method asked for one."""
        if "_resolved" not in self.__dict__:
            return None
        model = self.store.manifest.encoders[self.slug].model
        return f"{CASCADE}:{model.removeprefix(STATIC)}" if self.cascade else self.slug

    @cached_property
    def tokenizer(self) -> str:
        """The model whose tokenizer counts tokens: that of the encoder, else the default one's."""
        if self.encoder is not None or "_resolved" in self.__dict__:
            return self.store.manifest.encoders[self.slug].model.removeprefix(STATIC)
        models = [self.store.manifest.encoders[slug].model for slug in self.store.manifest.in_use]
        return models[0].removeprefix(STATIC) if models else DEFAULT_ENCODER

    @cached_property
    def corpus(self) -> Corpus:
        return self.store.corpus

    @cached_property
    def embeddings(self) -> Embeddings:
        """The corpus's vectors, shard by shard."""
        return Embeddings(self.store, self.slug)

    def all_embeddings(self, method: str) -> Embeddings:
        """The same, for a method that looks at every passage.

        Raises:
            StoreError: there are only those that a cascade looks at first.
        """
        if self.cascade:
            model = self.store.manifest.encoders[self.slug].model
            raise StoreError(
                f"method {method} compares every passage, and a cascade has no full embeddings of most: "
                f"run `nearkin build {self.store.path} --encoder {model.removeprefix(STATIC)}`, "
                f"or use --encoder {model}"
            )
        return self.embeddings

    @cached_property
    def queries(self) -> npt.NDArray[np.float32]:
        """Vectors float32 [n, dim] of the task's training texts by the store's own encoder."""
        start = time.perf_counter()
        vectors = encode_task(self.store, self.slug, self.task, self.device, self.report)
        self.seconds["encode"] = time.perf_counter() - start
        return vectors

    def count(self, k: int | None, wanted: int) -> int:
        """How many candidates a method owes that ranks all passages once: `k` a task example, else `wanted`."""
        return min(len(self.corpus), wanted if k is None else k * len(self.task.train_texts))

    def neighbours(self, k: int) -> Iterator[pa.Table]:
        """The `k` nearest passages of each training text, as `selection.index.search.NEIGHBOURS`.

        In tables of at most `BLOCK_PAIRS`. So many are searched at once; or, since exact search reads all embeddings
        each time, up to `STREAM_PAIRS` there, as far as the machine's memory goes. By a cascade in one.
        """
        if self.cascade:
            if self._encoders is None:
                full = full_encoder(self.store, self.slug, self.device, self.report)
                self._encoders = full, stored_encoder(self.store, self.slug, self.device)
            full, cheap = self._encoders
            scores, ids, _ = cascade_neighbours(
                self.store,
                self.slug,
                full,
                cheap,
                self.task.train_texts,
                k,
                self.promised,
                self.report,
                self.seed,
                self.device,
            )
            yield neighbour_table(scores, ids)
            return
        entry = self.store.manifest.encoders[self.slug]
        if self.encoder is None and "cascade" in entry.settings and not self._told:
            self._told = True
            log.warning("static vectors answer here: `--encoder cascade` finds the neighbours of the full encoder")
        queries = self.queries
        searcher = Searcher(self.store, self.slug, self.index, self.device)
        self.index_used = searcher.entry.kind
        pairs = BLOCK_PAIRS
        if BY_NAME[searcher.entry.kind].exact:
            pairs = max(pairs, min(STREAM_PAIRS, memory_of_machine() // PAIR_SHARE))
        at_once = max(1, pairs // k)
        for start in range(0, len(queries), at_once):
            found = searcher.search(queries[start : start + at_once], k, start)
            for row in range(0, len(found), BLOCK_PAIRS):
                yield found.slice(row, BLOCK_PAIRS)
