"""Cascade: a cheap pass scans everything, and the full encoder sees only the passages that may be neighbours.

::

    STORE/cascade/<full encoder>/part-00000.arrow    vectors of passages that were encoded in full, by shard and row

A uniform sample of passages is encoded first: it shows how full scores go with cheap ones (`selection.cascade_model`)
and so how many passages have to be encoded for the recall asked for. Where that saves too little, all are. Else they
are encoded in rounds, by falling gain, each round mending the model, until it expects the recall; and an audit of what
was left out checks it. Where the audit finds too much, expectations are raised by as much and further rounds follow.

Neighbours and scores are the full encoder's own, of the passages encoded. Those are kept, so a run that was killed goes
on, and the next task pays only for what is new; they decide nothing, so both give what an undisturbed run gives.

With a static encoder and 134,105 passages, recall 0.95 takes 6 to 19 % of them where under 1 % are wanted. A stage
between the two, inputs cut to 32 or 64 tokens, costs more than it saves (docs/log.md).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.ahead import ahead
from selection.cascade_model import Audit, Blocks, CascadeSearch, Encoded, Floats
from selection.devices import first_device
from selection.embedding import Embeddings
from selection.encoders import Encoder
from selection.encoders.recall import MIN_RECALL
from selection.errors import NearkinError, StoreError
from selection.index.exact import exact_search
from selection.index.ranking import Ids, Scores
from selection.kept import read_kept, write_kept
from selection.slugs import check_same
from selection.store import Store
from selection.stored import remember_engine
from selection.task_vectors import encode_by
from selection.vector_files import column_vectors, vector_column
from selection.wording import human_seconds

log = logging.getLogger(__name__)

Report = Callable[[str], None]

WORTH = 1.5
SAMPLE, SAMPLE_SHARE, FEWEST = 2048, 1 / 64, 256
CHEAP_SHARE = 0.01
PART = 4096
MARK = 32  # digits of a shard's fingerprint that a part says
ROUNDS, MOST_ROUNDS = 4, 40
AUDITS = 3
DOUBT = 1.6  # standard errors by which an audit may fall short


@dataclass(frozen=True)
class CascadePlan:
    """What the sample foretells.

    Attributes:
        queries, k, passages: the task's size and the corpus's.
        sampled: passages encoded for the calibration.
        encode: passages encoded in all, calibration and audit included; `passages` where all are.
        recall: of the full encoder's neighbours.
        gain: time of encoding everything over time of the cascade, cheap pass included.
        seconds: of encoding a passage in full, as the sample took it; None where that was kept from before.
    """

    queries: int
    k: int
    passages: int
    sampled: int
    encode: int
    recall: float
    gain: float
    seconds: float | None

    @property
    def everything(self) -> bool:
        return self.encode == self.passages

    def lines(self) -> list[str]:
        """The plan for a person."""
        task = f"cascade {self.queries:,} queries x {self.k} neighbours over {self.passages:,} passages"
        full = "" if self.seconds is None else f", {human_seconds(self.seconds * self.passages)}"
        if self.everything:
            why = f"the predicted gain of {self.gain:.2f} is under {WORTH}" if self.sampled else "nothing can be saved"
            return [f"{task}: {why}, so everything is encoded{full}"]
        part = "" if self.seconds is None else f", {human_seconds(self.seconds * self.encode)} (everything{full})"
        share = f"{self.encode:,} passages in full ({self.encode / self.passages:.1%})"
        return [task, f"plan    {share}{part}, gain {self.gain:.1f}, recall {self.recall:.3f} predicted"]


@dataclass(frozen=True)
class CascadeReport:
    """What came of it.

    Attributes:
        encoded: passages used, of which `reused` were kept from before.
        predicted: recall that the model expected when it stopped.
        audit: what checked it; None where everything was encoded.
        gain: as in the plan, of the passages used.
        seconds: wall time, queries and cheap pass left out.
    """

    plan: CascadePlan
    encoded: int
    reused: int
    predicted: float
    audit: Audit | None
    gain: float
    seconds: float

    def lines(self) -> list[str]:
        """The outcome for a person."""
        used = f"cascade {self.encoded:,} passages in full, {self.reused:,} of them kept from before"
        line = f"{used}; gain {self.gain:.1f}; {human_seconds(self.seconds)}"
        if self.audit is None:
            return [line]
        checked = f"{self.audit.recall:.3f} ± {self.audit.error:.3f} by an audit of {self.audit.passages:,} passages"
        return [line, f"recall  {self.predicted:.3f} predicted, {checked} of those left out"]


def cascade_neighbours(
    store: Store,
    cheap_slug: str,
    full_encoder: Encoder,
    cheap_encoder: Encoder,
    task_texts: pa.ChunkedArray,
    k: int,
    min_recall: float = MIN_RECALL,
    report: Report = log.info,
    seed: int = 0,
    device: str | None = None,
) -> tuple[Scores, Ids, CascadeReport]:
    """The full encoder's `k` nearest passages of each text, all but ``1 - min_recall`` of them.

    Holds the store's lock, so one at a time. Memory is about 300 MB for the pairs (past some 30 million passages 20
    bytes for each of a 2,000th of all pairs), 40 bytes a passage of the corpus, and 8 KB a query for each of several
    arrays; vectors are mapped from disk.

    Args:
        store: with whole embeddings `cheap_slug`, written by `cheap_encoder`.
        full_encoder: whose neighbours are wanted.
        min_recall: in (0, 1]; with 1 everything is encoded.
        report: told the plan and the outcome, a line at a time.
        seed: of the sample and the audit. Equal arguments give equal neighbours on one machine.
        device: where the last, exact search forms its products, see `selection.index.exact.exact_search`.

    Returns:
        float32 [q, k] and int64 [q, k], best first, equal scores in doc_id order, -inf and -1 where there are fewer;
        scores are those of float16 passage vectors, as a store that is wholly embedded gives them.

    Raises:
        NearkinError: `k` or `min_recall` out of range, a store that is locked, not embedded or damaged, a full disk.
    """
    check_same(store, cheap_slug, cheap_encoder)
    full = encode_by(store, full_encoder, task_texts, report)
    cheap = encode_by(store, cheap_encoder, task_texts, report)
    before = store.manifest.corpora
    with store.lock():
        if store.manifest.corpora != before:
            raise StoreError(f"{store.path} was built further meanwhile: ask again")
        remember_engine(store, cheap_slug, full_encoder)
        embeddings = Embeddings(store, cheap_slug)
        kept = Kept(store, full_encoder)
        return cascade(lambda: embeddings, full, cheap, kept, k, min_recall, report, seed, device)


def cascade(
    blocks: Blocks,
    full: Floats,
    cheap: Floats,
    vectors: Encoded,
    k: int,
    min_recall: float = MIN_RECALL,
    report: Report = log.info,
    seed: int = 0,
    device: str | None = None,
) -> tuple[Scores, Ids, CascadeReport]:
    """`cascade_neighbours` on vectors; see `CascadeSearch` for the arguments."""
    if k < 1:
        raise NearkinError("-k must be at least 1")
    if not 0 < min_recall <= 1:
        raise NearkinError(f"a recall of {min_recall} cannot be promised: choose one above 0 and at most 1")
    begun, before = time.perf_counter(), vectors.encoded
    search = CascadeSearch(blocks, full, cheap, vectors, k, np.random.default_rng(seed))
    plan = _plan(search, min_recall)
    for line in plan.lines():
        report(line)
    predicted, audit = (1.0, None) if plan.everything else _promise(search, plan, min_recall)
    ids = np.arange(search.passages) if plan.everything else np.flatnonzero(~search.left)
    parts = (vectors.take(ids[start : start + PART]) for start in range(0, len(ids), PART))
    scores, rows = exact_search(parts, full, k, first_device(device))
    reused = len(ids) - (vectors.encoded - before)
    gain, seconds = _gain(search.passages, len(ids)), time.perf_counter() - begun
    told = CascadeReport(plan, len(ids), reused, predicted, audit, gain, seconds)
    for line in told.lines():
        report(line)
    return scores, np.where(rows < 0, -1, ids[rows]), told


def _plan(search: CascadeSearch, min_recall: float) -> CascadePlan:
    """Calibrates, and foretells what is to be encoded."""
    passages = search.passages
    task = (len(search.full), search.k, passages)
    size = int(np.clip(passages * SAMPLE_SHARE, FEWEST, SAMPLE))
    if min_recall == 1 or _gain(passages, size) < WORTH or not len(search.full):
        return CascadePlan(*task, 0, passages, 1.0, 1.0, None)
    before, begun = search.vectors.encoded, time.perf_counter()
    sample = search.draw(size)
    search.vectors.take(sample)
    fresh = search.vectors.encoded - before
    spent = (time.perf_counter() - begun) / fresh if fresh else None
    search.calibrate(sample)
    needed = search.needed(min_recall)[0]
    encode = min(passages, size + len(needed) + size // 2)
    gain = _gain(passages, encode)
    if gain < WORTH:
        return CascadePlan(*task, size, passages, 1.0, gain, spent)
    return CascadePlan(*task, size, encode, min_recall, gain, spent)


def _gain(passages: int, encoded: int) -> float:
    return passages / max(CHEAP_SHARE * passages + encoded, 1)


def _promise(search: CascadeSearch, plan: CascadePlan, min_recall: float) -> tuple[float, Audit]:
    """Encodes until model and audit agree that the recall is reached: (what the model expects, the last audit)."""
    for _ in range(AUDITS):
        expected = _rounds(search, min_recall)
        audit = search.audit(plan.sampled // 2)
        if audit.recall + DOUBT * audit.error >= min_recall or not search.left.any():
            return expected, audit
        search.mend(audit, expected)
    log.warning("the last audit of %d still found too much left out: more was encoded, and not audited again", AUDITS)
    return _rounds(search, min_recall), audit


def _rounds(search: CascadeSearch, min_recall: float) -> float:
    """Encodes in rounds until the recall is expected; returns what is."""
    for turn in range(MOST_ROUNDS):
        ids, expected = search.needed(min_recall)
        if len(ids) == 0:
            break
        search.encode(ids if turn + 1 >= ROUNDS else ids[: max(PART, -(-len(ids) // 2))])
    return expected


class Kept:
    """Full vectors of passages in STORE/cascade, encoded when they are first asked for. The store must be locked.

    Attributes:
        encoded: passages encoded by this object, files from before left out.
    """

    def __init__(self, store: Store, encoder: Encoder) -> None:
        self._corpus, self._encoder = store.corpus, encoder
        self.folder = store.path / "cascade" / encoder.slug
        self.encoded, self._next = 0, 0
        places: dict[str, list[int]] = {}  # where passages of a text begin; equal shards may stand twice
        for shard, start in zip(self._corpus.shards, self._corpus.offsets.tolist(), strict=False):
            places.setdefault(shard.text[:MARK], []).append(start)
        self._places = places
        # Where a passage's vector is: part and row, -1 for nowhere.
        self._part = np.full(len(self._corpus), -1, dtype=np.int32)
        self._row = np.zeros(len(self._corpus), dtype=np.int32)
        self._parts: list[npt.NDArray[np.float16]] = []
        for path in sorted(self.folder.glob("part-*.arrow")):
            self._next = max(self._next, int(path.stem.removeprefix("part-")) + 1)
            self._open(path)

    def _open(self, path: Path) -> None:
        """Takes a part in, or removes it where it is damaged, of another encoder, or none of its texts is here."""
        kept = read_kept(path)
        if kept is None or kept[1].get("encoder") != self._encoder.fingerprint or "shards" not in kept[1]:
            del kept  # some systems remove no file that is mapped
            path.unlink()
            return
        batch, about = kept
        shard, row = (batch.column(number).to_numpy() for number in (0, 1))
        vectors = column_vectors(batch.column(2), self._encoder.dim)
        places = [self._places.get(text, []) for text in json.loads(about["shards"])]
        if not any(places):
            del kept, batch, vectors
            path.unlink()
            return
        for copy in range(max(map(len, places))):
            starts = np.array([at[copy] if len(at) > copy else -1 for at in places])[shard]
            here = np.flatnonzero(starts >= 0)
            ids = starts[here] + row[here]
            self._part[ids], self._row[ids] = len(self._parts), here
        self._parts.append(vectors)

    def take(self, ids: Ids) -> npt.NDArray[np.float16]:
        """float16 [n, dim] of passages `ids`, ascending, each once.

        Raises:
            NearkinError: the disk is full, or the store may not be written.
        """
        new = ids[self._part[ids] < 0]
        parts = [new[start : start + PART] for start in range(0, len(new), PART)]

        def prepare(part: Ids) -> Any:
            return self._encoder.prepare(self._corpus.take(part, ["text"])["text"])

        with closing(ahead(prepare, parts)) as made:
            for part, prepared in zip(parts, made, strict=True):
                self._write(part, self._encoder.run(prepared).astype(np.float16))
        out = np.empty((len(ids), self._encoder.dim), dtype=np.float16)
        held = self._part[ids]
        if (held < 0).any():
            raise NearkinError(f"{self.folder}: vectors that were written cannot be read again: check the disk")
        for number in np.unique(held).tolist():
            mine = held == number
            out[mine] = self._parts[number][self._row[ids[mine]]]
        return out

    def _write(self, ids: Ids, vectors: npt.NDArray[np.float16]) -> None:
        """Keeps vectors of ascending `ids`, by the text of their shard and their row in it."""
        of = np.searchsorted(self._corpus.offsets, ids, "right") - 1
        shards, which = np.unique(of, return_inverse=True)
        row = ids - self._corpus.offsets[of]
        arrays = [pa.array(which.astype(np.int32)), pa.array(row.astype(np.int32)), vector_column(vectors)]
        batch = pa.RecordBatch.from_arrays(arrays, ["shard", "row", "vector"])
        texts = [self._corpus.shards[number].text[:MARK] for number in shards]
        path = self.folder / f"part-{self._next:05d}.arrow"
        write_kept(path, batch, {"shards": json.dumps(texts), "encoder": self._encoder.fingerprint})
        self._next += 1
        self.encoded += len(ids)
        self._open(path)
