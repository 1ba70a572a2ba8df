"""The cascade: what it encodes, foretells and finds, over queries, k and corpus sizes, beside encoding everything.

The store holds embeddings by both encoders, so nothing is encoded but task examples: vectors come from the store when
the cascade asks for them, and the neighbours it should have found are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.results import Row
from selection.cascade import cascade as run_cascade
from selection.embedding import Embeddings
from selection.encoders.recall import MIN_RECALL
from selection.errors import NearkinError
from selection.index.exact import exact_search
from selection.index.ranking import Ids
from selection.index.tune import recall_of
from selection.plotting import save
from selection.slugs import open_encoder
from selection.store import Store
from selection.task import read_task
from selection.task_vectors import encode_task

BLOCK = 8192
APART = 0.75  # length of what is added to a repeated unit vector: two copies are then 0.64 alike
GOAL_GAIN, GOAL_WANTED = 5.0, 0.01

Halves = npt.NDArray[np.float16]


def cascade(
    store: Path | str,
    tasks: Sequence[Path | str],
    cheap: str,
    full: str,
    *,
    queries: Sequence[int] = (30, 100, 300, 1000, 4000),
    ks: Sequence[int] = (5, 20, 50),
    sizes: Sequence[int] = (),
    min_recall: float = MIN_RECALL,
    seeds: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Runs the cascade of two encoders that a store holds, for subsets of each task's training texts.

    Args:
        cheap, full: encoders, as ``--encoder`` names them.
        queries: how many texts; counts above a task's own are left out.
        sizes: passages, default the corpus. Fewer are a random subset. More are the corpus repeated, each copy of a
            passage moved by one random vector in both encoders' spaces, so that what the cheap encoder gets wrong is
            repeated too; its share of a score is then a little smaller than it was.
        seeds: runs of each, of other texts and samples.

    Returns:
        One row a run: ``task``, ``passages``, ``queries``, ``k``, ``seed``, ``min_recall``, ``wanted`` (the share of
        the corpus that is some query's neighbour), ``planned`` and ``encoded`` (shares), ``gain`` (over encoding
        everything, cheap pass and calibration included), ``predicted``, ``checked``, ``error`` and ``recall`` (true).
    """
    opened = Store(store)
    slugs = [open_encoder(opened, name) for name in (cheap, full)]
    read = [np.concatenate(list(Embeddings(opened, slug))) for slug in slugs]
    if read[0].shape != read[1].shape:
        raise NearkinError(f"{slugs[0]} and {slugs[1]} have vectors of different lengths: this chart needs equal ones")
    rows: list[Row] = []
    examples = [read_task(path) for path in tasks]
    encoded = [[encode_task(opened, slug, task) for slug in slugs] for task in examples]
    for size in sizes or [len(read[0])]:
        cheap_vectors, full_vectors = resized(read[0], read[1], size)
        for task, (cheap_queries, full_queries) in zip(examples, encoded, strict=True):
            for count in [n for n in queries if n <= len(full_queries)]:
                for seed in range(seeds):
                    drawn = np.sort(np.random.default_rng(seed).permutation(len(full_queries))[:count])
                    texts = (cheap_queries[drawn], full_queries[drawn])
                    for row in _runs(cheap_vectors, full_vectors, *texts, ks, min_recall, seed):
                        rows.append({"task": task.name, **row})
                        say(", ".join(f"{n} {v:.3f}" if isinstance(v, float) else f"{v}" for n, v in rows[-1].items()))
    if not rows:
        raise NearkinError(f"no task has {min(queries):,} examples: ask for fewer with --queries")
    return rows


def resized(cheap: Halves, full: Halves, size: int) -> tuple[Halves, Halves]:
    """Both encoders' vectors of `size` passages; see `cascade`."""
    rng = np.random.default_rng(0)
    if size <= len(full):
        kept = np.sort(rng.permutation(len(full))[:size])
        return cheap[kept], full[kept]
    made = np.empty((2, size, full.shape[1]), dtype=np.float16)
    for start in range(0, size, BLOCK):
        rows = np.arange(start, min(start + BLOCK, size))
        move = rng.normal(scale=APART / full.shape[1] ** 0.5, size=(len(rows), full.shape[1]))
        for out, vectors in zip(made, (cheap, full), strict=True):
            moved = vectors[rows % len(full)] + move
            out[rows] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return made[0], made[1]


class _Vectors:
    """Vectors that are there, counted as if they were encoded when they are first asked for."""

    def __init__(self, vectors: Halves) -> None:
        self._vectors, self.encoded = vectors, 0
        self._seen = np.zeros(len(vectors), dtype=np.bool_)

    def take(self, ids: Ids) -> Halves:
        self.encoded += int((~self._seen[ids]).sum())
        self._seen[ids] = True
        return self._vectors[ids]


def _blocks(vectors: Halves) -> Iterator[Halves]:
    return (vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK))


def _runs(
    cheap: Halves,
    full: Halves,
    cheap_queries: npt.NDArray[np.float32],
    full_queries: npt.NDArray[np.float32],
    ks: Sequence[int],
    min_recall: float,
    seed: int,
) -> Iterator[Row]:
    _, nearest = exact_search(_blocks(full), full_queries, max(ks))
    for k in ks:
        _, ids, told = run_cascade(
            lambda: _blocks(cheap),
            full_queries,
            cheap_queries,
            _Vectors(full),
            k,
            min_recall,
            report=lambda line: None,
            seed=seed,
        )
        exact = nearest[:, :k]
        yield {
            "passages": len(full),
            "queries": len(full_queries),
            "k": k,
            "seed": seed,
            "min_recall": min_recall,
            "wanted": len(np.unique(exact)) / len(full),
            "planned": told.plan.encode / len(full),
            "encoded": told.encoded / len(full),
            "gain": told.gain,
            "predicted": told.predicted,
            "checked": told.audit.recall if told.audit else 1.0,
            "error": told.audit.error if told.audit else 0.0,
            "recall": recall_of(ids, exact)[0],
        }


def plot_cascade(rows: Sequence[Row], path: Path) -> None:
    """Gain and recall against the share of the corpus that is wanted, a colour a task, a marker a corpus size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    tasks, sizes = (list(dict.fromkeys(row[name] for row in rows)) for name in ("task", "passages"))
    for row in rows:
        style = {
            "color": f"C{tasks.index(row['task'])}",
            "marker": "osD^v"[sizes.index(row["passages"]) % 5],
            "alpha": 0.7,
            "linestyle": "none",
            "markersize": 3 + row["queries"] ** 0.25,
        }
        above.plot(row["wanted"], row["gain"], **style)
        below.plot(row["wanted"], row["recall"], **style)
    for number, task in enumerate(tasks):
        above.plot([], [], "o", color=f"C{number}", label=task)
    for number, size in enumerate(sizes if len(sizes) > 1 else []):
        above.plot([], [], "osD^v"[number % 5], color="tab:gray", label=f"{size:,} passages")
    above.plot([min(row["wanted"] for row in rows), GOAL_WANTED], [GOAL_GAIN] * 2, "k--", label="goal")
    for asked in {row["min_recall"] for row in rows}:
        below.axhline(asked, color="k", linestyle="--")
    above.set(xscale="log", yscale="log", ylabel="gain over encoding everything")
    above.set_yticks([1, 2, 5, 10, 20], labels=["1", "2", "5", "10", "20"])
    below.set(xlabel="share of the corpus that is some query's neighbour", ylabel="recall@k")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.legend(fontsize=8)
    save(figure, path)
