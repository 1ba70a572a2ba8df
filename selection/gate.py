"""The gate every candidate passes, whatever the method: nothing of the task, nothing excluded, nothing twice."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from selection.guard import Duplicates, Guard, normalise


@dataclass
class Removed:
    """Candidates that were not let in, by reason."""

    duplicates: int = 0
    leaks: dict[str, int] = field(default_factory=dict)


class Gate:
    """Lets candidates in, in rank order, and counts those that it does not.

    Args:
        guard: what may not be selected.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._seen = Duplicates()
        self.removed = Removed(leaks=dict.fromkeys(guard.forbidden, 0))

    def admit(self, rows: pa.Table) -> npt.NDArray[np.intp]:
        """Positions of the passages (``text``) that may enter; those that come before count as seen by the later."""
        texts = normalise(rows["text"])
        forbidden = np.zeros(len(texts), dtype=bool)
        for reason, hit in self._guard.reasons(texts).items():
            self.removed.leaks[reason] += int(hit.sum())
            forbidden |= hit
        repeated = self._seen.repeated(texts) & ~forbidden
        self.removed.duplicates += int(repeated.sum())
        kept = np.flatnonzero(~forbidden & ~repeated)
        self._seen.add(texts.take(pa.array(kept)))
        return kept
