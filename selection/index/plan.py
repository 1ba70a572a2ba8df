"""Which index a corpus gets: exact search while it is affordable, inverted lists past that."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from selection.errors import NearkinError

KINDS = ("auto", "flat", "ivf")
FLAT_ROWS = 5_000_000
POINTS_PER_LIST = 64


@dataclass(frozen=True)
class IndexPlan:
    """What will be built.

    Attributes:
        kind: ``flat`` or ``ivf``.
        nlist: inverted lists, 0 for flat.
        bytes: size of the FAISS file.
        memory: bytes that building it holds; a flat file is written shard by shard.
        why: the reason, for the printed plan.
    """

    kind: str
    nlist: int
    bytes: int
    memory: int
    why: str


def memory_of_machine() -> int:
    """Bytes of physical memory; 8 GB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 8 << 30


def plan_index(rows: int, dim: int, kind: str = "auto") -> IndexPlan:
    """Chooses the index for `rows` vectors of `dim` float32.

    ``auto`` is exact up to `FLAT_ROWS` passages that fit half the memory: 4,000 queries over 5M x 384 are 15 Tflop,
    minutes on two cores. Past that, inverted lists visit a few per cent of the corpus for a measured recall.

    Raises:
        NearkinError: unknown kind, or an index that would not fit this machine's memory.
    """
    if kind not in KINDS:
        raise NearkinError(f"unknown index kind {kind!r}: choose one of {', '.join(KINDS)}")
    flat = rows * dim * 4
    memory = memory_of_machine()
    if kind == "auto":
        affordable = rows <= FLAT_ROWS and flat <= memory // 2
        kind, why = (
            ("flat", "exact search is affordable") if affordable else ("ivf", "too many passages for exact search")
        )
    else:
        why = "as asked"
    if kind == "flat":
        plan = IndexPlan("flat", 0, flat, 0, why)
    else:
        nlist = max(1, min(int(4 * math.sqrt(rows)), rows // POINTS_PER_LIST))
        size = flat + rows * 8 + nlist * dim * 4
        plan = IndexPlan("ivf", nlist, size, size, why)
    if plan.memory > memory * 0.9:
        raise NearkinError(
            f"a {plan.kind} index of {rows} x {dim} takes {plan.memory / 1e9:.0f} GB to build and this machine has "
            f"{memory / 1e9:.0f} GB: use a smaller corpus (--where) or a machine with more memory"
        )
    return plan
