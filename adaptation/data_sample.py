"""Low-resource tasks: a sample of a parent task, which the same seed draws on every machine.

Rows are ranked by a 64-bit mix of seed and row number (SplitMix64) and the first ones are taken. The generators of
NumPy and Python may change their streams between versions; this arithmetic cannot.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adaptation.cards import Card
from selection.errors import InputError
from selection.hashes import spread_bits
from selection.reading import read_table
from selection.task import SPLITS
from selection.writing import write_table

Rows = npt.NDArray[np.int64]
_STEP = 0x9E3779B97F4A7C15


def draw_rows(labels: pa.Array | pa.ChunkedArray, count: int, seed: int, *, stratified: bool) -> Rows:
    """Row numbers of a sample, rising.

    Args:
        labels: string [n], the class of each row.
        count: rows to draw, at most n.
        seed: 0 to 2**64 - 1; another one gives another sample.
        stratified: each class in the share it has (largest remainder), but at least once.

    Returns:
        int64 [count].

    Raises:
        InputError: fewer rows than are to be drawn, or fewer to be drawn than there are classes.
    """
    if count > len(labels):
        raise InputError(f"{count:,} examples are to be drawn and there are {len(labels):,}")
    start = spread_bits(np.array([seed], dtype=np.uint64) + np.uint64(_STEP))
    ranks = spread_bits(start + np.arange(1, len(labels) + 1, dtype=np.uint64) * np.uint64(_STEP))
    order = np.argsort(ranks, kind="stable")
    if not stratified:
        return np.sort(order[:count]).astype(np.int64)
    names = pc.unique(labels).sort()
    classes = np.asarray(pc.index_in(labels, value_set=names))
    quotas = _quotas(np.bincount(classes, minlength=len(names)), count)
    taken = [order[classes[order] == number][:quota] for number, quota in enumerate(quotas)]
    return np.sort(np.concatenate(taken)).astype(np.int64)


def _quotas(sizes: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """How many of each class: its share of `count`, rounded so that the sum is right and none is left out."""
    if count < len(sizes):
        raise InputError(f"{count:,} examples cannot hold all {len(sizes)} classes: draw more, or not stratified")
    # Whole numbers: a remainder in floating point could fall to another side on another machine.
    quotas, remainders = np.divmod(sizes * count, sizes.sum())
    remainders[quotas == 0] = -1
    quotas = np.maximum(quotas, 1)
    missing = count - int(quotas.sum())
    if missing > 0:
        quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    for _ in range(-missing):
        quotas[np.argmax(quotas)] -= 1
    return quotas


def derive_task(card: Card, parent: Path, folder: Path) -> None:
    """Writes into `folder` the splits of a derived card.

    Args:
        card: with ``[derive]``: ``seed``, ``stratified``, and ``dev`` and ``test``, each a count or ``"all"``.
        parent: task folder of the parent. train is drawn from its train split, dev from dev, test from test.

    Raises:
        InputError: the parent is too small.
    """
    rule = card["derive"]
    for split in SPLITS:
        source = parent / f"{split}.jsonl"
        if split != "train" and rule[split] == "all":
            shutil.copyfile(source, folder / source.name)
            continue
        table = read_table(source).select(["text", "label"])
        labels = table["label"].cast(pa.string())
        try:
            rows = draw_rows(labels, card[split], rule["seed"], stratified=rule["stratified"])
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        write_table(table.set_column(1, "label", labels).take(rows), folder / source.name)
