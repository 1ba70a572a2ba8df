"""What may not enter pretraining: the task's own texts and whatever the user excludes, and a second copy of anything.

Two texts are the same when they agree after NFKC, lower-casing, and reading every run of characters that are not
letters, marks or digits as one space: a test sentence is caught whatever its entity markers or spacing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from selection.buffers import one
from selection.hashes import Hashes, Seen, text_hashes
from selection.reading import read_table, texts_of
from selection.task import Task

NOT_WORD = r"[^\pL\pM\pN]+"
PRIORITY = ("test", "dev", "train", "excluded")


def normalise(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The form in which texts are compared; a text without any letter or digit is compared as it is, trimmed."""
    folded = pc.utf8_lower(pc.utf8_normalize(one(texts).cast(pa.large_string()), "NFKC"))
    words = pc.utf8_trim(pc.replace_substring_regex(folded, NOT_WORD, " "), " ")
    return pc.if_else(pc.equal(words, ""), pc.utf8_trim_whitespace(folded), words)


@dataclass(frozen=True)
class Guard:
    """Texts that may not be selected, known by 64-bit hashes.

    That one of a billion passages is mistaken for one of 100,000 forbidden texts has a chance of 5 in a million.

    Attributes:
        forbidden: by reason (``train``, ``dev``, ``test``, ``excluded``), normalised and distinct.
    """

    forbidden: dict[str, pa.Array]

    @classmethod
    def of(cls, task: Task | None, exclude: Sequence[Path] = ()) -> Guard:
        """Forbids every text of the task's splits, where one is given, and of the files in `exclude`."""
        splits = task.splits if task is not None else {}
        forbidden = {split: pc.unique(normalise(table["text"])) for split, table in splits.items()}
        outside = [normalise(texts_of(read_table(path), path)) for path in exclude]
        if outside:
            forbidden["excluded"] = pc.unique(pa.chunked_array(outside)).drop_null()
        return cls(forbidden)

    def reasons(self, hashes: Hashes) -> dict[str, npt.NDArray[np.bool_]]:
        """For each reason, which texts it forbids (bool [n]), by the hashes of what `normalise` gives; each text once,
        test first.
        """
        taken = np.zeros(len(hashes), dtype=bool)
        found = {}
        for reason, forbidden in self._forbidden.items():
            hit = forbidden.has(hashes) & ~taken
            taken |= hit
            found[reason] = hit
        return found

    @cached_property
    def _forbidden(self) -> dict[str, Seen]:
        """Hashes of each reason's texts; test first."""
        seen = {reason: Seen() for reason in sorted(self.forbidden, key=PRIORITY.index)}
        for reason, hashes in seen.items():
            hashes.add(text_hashes(self.forbidden[reason]))
        return seen
