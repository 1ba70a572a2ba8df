"""Cascade: a cheap pass scans everything, and the full encoder sees only the passages that may be neighbours.

::

    STORE/cascade/<full encoder>/part-00000.arrow    doc_id and vector of passages that were encoded in full

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

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.cascade_model import Audit, Blocks, CascadeSearch, Encoded, Floats
from selection.embedding import Embeddings
from selection.encoders import Encoder
from selection.errors import NearkinError
from selection.files import fingerprint
from selection.index.exact import exact_search
from selection.index.ranking import Ids, Scores
from selection.kept import read_kept, write_kept
from selection.store import Store
from selection.wording import human_seconds

log = logging.getLogger(__name__)

Report = Callable[[str], None]

WORTH = 1.5
SAMPLE, SAMPLE_SHARE, FEWEST = 2048, 1 / 64, 256
CHEAP_SHARE = 0.01
PART = 4096
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
    task_texts: pa.Array | pa.ChunkedArray,
    k: int,
    min_recall: float = 0.95,
    report: Report = log.info,
    seed: int = 0,
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

    Returns:
        float32 [q, k] and int64 [q, k], best first, equal scores in doc_id order, -inf and -1 where there are fewer;
        scores are those of float16 passage vectors, as a store that is wholly embedded gives them.

    Raises:
        NearkinError: `k` or `min_recall` out of range, a store that is locked, not embedded or damaged, a full disk.
    """
    full, cheap = full_encoder.encode(task_texts), cheap_encoder.encode(task_texts)
    with store.lock():
        embeddings = Embeddings(store, cheap_slug)
        return cascade(lambda: embeddings, full, cheap, Kept(store, full_encoder), k, min_recall, report, seed)


def cascade(
    blocks: Blocks,
    full: Floats,
    cheap: Floats,
    vectors: Encoded,
    k: int,
    min_recall: float = 0.95,
    report: Report = log.info,
    seed: int = 0,
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
    scores, rows = exact_search(parts, full, k)
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
        # Where a passage's vector is: part and row, -1 for nowhere.
        self._part = np.full(len(self._corpus), -1, dtype=np.int32)
        self._row = np.zeros(len(self._corpus), dtype=np.int32)
        self._parts: list[npt.NDArray[np.float16]] = []
        for path in sorted(self.folder.glob("part-*.arrow")):
            self._next = max(self._next, int(path.stem.removeprefix("part-")) + 1)
            self._open(path)

    def _made_of(self, shards: int) -> dict[str, str]:
        """What a part says of its encoder and of the corpus, by its first `shards`."""
        texts = [shard.text for _, _, shard in self._corpus.shards[:shards]]
        return {"shards": str(shards), "corpus": fingerprint(*texts), "encoder": self._encoder.fingerprint}

    def _open(self, path: Path) -> None:
        """Takes a part in, or removes it where it is damaged or of other texts or another encoder."""
        kept = read_kept(path)
        # Passages added behind the shards that it knows changed no doc_id of theirs.
        if kept is None or kept[1] != self._made_of(int(kept[1].get("shards", 0))):
            path.unlink()
            return
        batch, _ = kept
        ids = batch.column(0).to_numpy()
        vectors = batch.column(1).flatten().to_numpy(zero_copy_only=True).reshape(-1, self._encoder.dim)
        self._part[ids], self._row[ids] = len(self._parts), np.arange(len(ids))
        self._parts.append(vectors)

    def take(self, ids: Ids) -> npt.NDArray[np.float16]:
        """float16 [n, dim] of passages `ids`, ascending, each once.

        Raises:
            NearkinError: the disk is full, or the store may not be written.
        """
        new = ids[self._part[ids] < 0]
        for start in range(0, len(new), PART):
            self._encode(new[start : start + PART])
        out = np.empty((len(ids), self._encoder.dim), dtype=np.float16)
        parts = self._part[ids]
        if (parts < 0).any():
            raise NearkinError(f"{self.folder}: vectors that were written cannot be read again: check the disk")
        for number in np.unique(parts).tolist():
            mine = parts == number
            out[mine] = self._parts[number][self._row[ids[mine]]]
        return out

    def _encode(self, ids: Ids) -> None:
        vectors = self._encoder.encode(self._corpus.take(ids, ["text"])["text"]).astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        batch = pa.RecordBatch.from_arrays([pa.array(ids), column], ["doc_id", "vector"])
        path = self.folder / f"part-{self._next:05d}.arrow"
        write_kept(path, batch, self._made_of(len(self._corpus.shards)))
        self._next += 1
        self.encoded += len(ids)
        self._open(path)
