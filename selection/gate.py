"""The gate every candidate passes, whatever the method: nothing of the task or excluded, nothing twice, nothing near.

In this order, each candidate out for the first reason that applies: it is a text of the task or an excluded one; it
holds a piece of dev, test or an excluded text, or is too near one in meaning; it is a copy, or a near copy, of a
better-ranked candidate. Training texts are compared whole only: the passage that a training sentence was taken from is
what one looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.guard import Guard, normalise
from selection.hashes import Seen, text_hashes
from selection.near import Contained, Copies, Leaks, NearDuplicates
from selection.near_cosine import CosineDuplicates, CosineLeaks

NEAR = ("off", "ngrams", "all")
REMOVED = pa.schema(
    [
        ("doc_id", pa.int64()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("likeness", pa.float32()),
        ("other_doc_id", pa.int64()),
        ("other_text", pa.large_string()),
        ("text", pa.large_string()),
    ]
)
EVALUATION = ("test", "dev", "excluded")

Mask = npt.NDArray[np.bool_]
Vectors = npt.NDArray[np.floating]


@dataclass
class Removed:
    """Candidates that were not let in, by reason.

    Attributes:
        duplicates: the same text as a better-ranked candidate's.
        near_duplicates: nearly that, by runs of words or by cosine.
        leaks: by split, texts of the task; ``excluded``, texts named with ``--exclude``.
        near_leaks: likewise, passages that hold a piece of one, or whose cosine with one is too high.
    """

    duplicates: int = 0
    near_duplicates: int = 0
    leaks: dict[str, int] = field(default_factory=dict)
    near_leaks: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Nearness:
    """How near is too near.

    Attributes:
        ngrams: whether runs of words are compared.
        vectors_of: gives float16 [n, dim] of doc_ids int64 [n]; None where cosines are not compared.
        forbidden: vectors of dev, test and excluded texts by reason, where they are.
        device: where cosines are formed.
    """

    ngrams: bool = False
    vectors_of: Callable[[npt.NDArray[np.int64]], Vectors] | None = None
    forbidden: Mapping[str, Vectors] = field(default_factory=dict)
    device: str | None = None


@dataclass(frozen=True)
class Forbidden:
    """What is prepared of dev, test and excluded texts, once for all gates: a set may take several.

    Attributes:
        pieces, near: None where runs of words, or cosines, are not compared.
    """

    pieces: Contained | None
    near: CosineLeaks | None

    @classmethod
    def of(cls, guard: Guard, nearness: Nearness) -> Forbidden:
        """From the texts of a guard and the vectors that go with them."""
        by_cosine = nearness.vectors_of is not None
        return cls(
            Contained(_evaluation(guard)) if nearness.ngrams else None,
            CosineLeaks(nearness.forbidden, device=nearness.device) if by_cosine else None,
        )


def _evaluation(guard: Guard) -> dict[str, pa.Array]:
    return {reason: texts for reason, texts in guard.forbidden.items() if reason in EVALUATION}


class Gate:
    """Lets candidates in, in rank order, and counts those that it does not.

    Memory: 8 bytes a candidate, and what `selection.near` says; with `keep`, all
    that was removed.

    Args:
        guard: what may not be selected.
        nearness: how near is too near.
        keep: whether `report` shall tell of each one.
        forbidden: what was prepared of these; None prepares it.
    """

    def __init__(
        self, guard: Guard, nearness: Nearness | None = None, keep: bool = False, forbidden: Forbidden | None = None
    ) -> None:
        self._guard, self._nearness, self._keep = guard, nearness or Nearness(), keep
        self._seen = Seen()
        self._forbidden = forbidden or Forbidden.of(guard, self._nearness)
        self._copies = NearDuplicates() if self._nearness.ngrams else None
        by_cosine, device = self._nearness.vectors_of is not None, self._nearness.device
        self._near_copies = CosineDuplicates(device=device) if by_cosine else None
        self._doc_ids = [np.empty(0, np.int64)]
        self._told: list[pa.Table] = []
        self._out: list[_Out] = []
        self.removed = Removed(
            leaks=dict.fromkeys(guard.forbidden, 0),
            near_leaks=dict.fromkeys(_evaluation(guard), 0) if self._nearness.ngrams or by_cosine else {},
        )

    def admit(self, doc_ids: npt.NDArray[np.int64], rows: pa.Table) -> npt.NDArray[np.intp]:
        """Positions of the passages (``id``, ``text``, ``source``) that may enter; `settle` then counts the others."""
        texts = normalise(rows["text"])
        hashes = text_hashes(texts)
        if self._keep:
            self._doc_ids.append(doc_ids)
        self._out = []
        candidates = _Candidates(doc_ids, rows, np.ones(len(texts), dtype=bool))
        for reason, hit in self._guard.reasons(hashes).items():
            self._take_out(candidates, hit, "leaks", reason)
        vectors = None if self._nearness.vectors_of is None else self._nearness.vectors_of(doc_ids)
        if self._forbidden.pieces is not None:
            self._take_leaks(candidates, self._forbidden.pieces.find(texts))
        if vectors is not None and self._forbidden.near is not None:
            self._take_leaks(candidates, self._forbidden.near.find(vectors), texts=False)
        first_seen = hashes[candidates.still]
        self._take_out(candidates, self._seen.repeated(hashes) & candidates.still, "duplicates", "duplicate")
        self._seen.add(first_seen)
        if self._copies is not None:
            self._take_copies(candidates, self._copies.find(texts, candidates.still))
        if vectors is not None and self._near_copies is not None:
            self._take_copies(candidates, self._near_copies.find(vectors, candidates.still))
        return np.flatnonzero(candidates.still)

    def settle(self, stop: int) -> None:
        """Counts those kept out among the first `stop` candidates of the last block: the set may end there."""
        for out in self._out:
            count = int((out.rows < stop).sum())
            counts = getattr(self.removed, out.kind)
            if isinstance(counts, dict):
                counts[out.split] += count
            else:
                setattr(self.removed, out.kind, counts + count)
        told = [(out.rows[out.rows < stop], out.told) for out in self._out if out.told is not None]
        if told:  # in rank order, whatever the reasons
            place = np.argsort(np.concatenate([rows for rows, _ in told]), kind="stable")
            table = pa.concat_tables([table.slice(0, len(rows)) for rows, table in told])
            self._told.append(table.take(pa.array(place)))
        self._out = []

    def report(self) -> pa.Table:
        """`REMOVED`: each candidate that was not let in, why, and which text or passage it is too near."""
        return pa.concat_tables([REMOVED.empty_table(), *self._told])

    def _take_leaks(self, candidates: _Candidates, leaks: Leaks, texts: bool = True) -> None:
        for reason, hit in leaks.masks.items():
            other = pa.nulls(len(hit), pa.large_string())
            if self._keep and texts:
                found = pa.array(np.where(hit, leaks.row, 0), mask=~hit)
                other = self._guard.forbidden[reason].take(found)
            self._take_out(candidates, hit, "near_leaks", f"near {reason}", other_text=other)

    def _take_copies(self, candidates: _Candidates, copies: Copies) -> None:
        original = np.concatenate(self._doc_ids)[copies.of] if self._keep else None
        self._take_out(candidates, copies.mask, "near_duplicates", "near duplicate", copies.likeness, original)

    def _take_out(
        self,
        candidates: _Candidates,
        hit: Mask,
        kind: str,
        reason: str,
        likeness: npt.NDArray[np.float32] | None = None,
        other: npt.NDArray[np.int64] | None = None,
        other_text: pa.Array | None = None,
    ) -> None:
        """Takes those that are still in and hit out, for this reason."""
        out = np.flatnonzero(hit & candidates.still)
        candidates.still[out] = False
        told = None
        if self._keep and len(out):
            at, count = pa.array(out), len(out)
            rows = candidates.rows.take(at)
            columns = {
                "doc_id": pa.array(candidates.doc_ids[out]),
                "reason": pa.repeat(pa.scalar(reason), count),
                "likeness": pa.nulls(count, pa.float32()) if likeness is None else pa.array(likeness[out]),
                "other_doc_id": pa.nulls(count, pa.int64()) if other is None else pa.array(other[out]),
                "other_text": pa.nulls(count, pa.large_string()) if other_text is None else other_text.take(at),
                **{name: rows[name] for name in ("id", "source", "text")},
            }
            told = pa.table([columns[name] for name in REMOVED.names], schema=REMOVED)
        self._out.append(_Out(out, kind, reason.removeprefix("near "), told))


@dataclass(frozen=True)
class _Out:
    """Rows of a block taken out for one reason: the field of `Removed` that counts them, its split, what is told."""

    rows: npt.NDArray[np.intp]
    kind: str
    split: str
    told: pa.Table | None


@dataclass
class _Candidates:
    doc_ids: npt.NDArray[np.int64]
    rows: pa.Table
    still: Mask
