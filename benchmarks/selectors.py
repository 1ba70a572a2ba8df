"""Selection methods side by side: what each costs and what it picks, at equal token budgets, peers beside them.

Each cell, a method on a task, runs in a process of its own on a copy of the store in which nothing is kept from earlier
tasks: once as on a fresh store (``first_s``), once more with what the first run kept (``again_s``: vectors of the task,
hashed n-grams). Rows are written as they come, and what is in the file is not measured again. What a set is worth
without training is measured afterwards, by another process.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.processes import alone, megabytes
from benchmarks.results import Row, read_rows, write_rows
from benchmarks.selector_peers import PEERS, installed
from selection.augmentation import Budget, select
from selection.diversity import diversity
from selection.embedding import Embeddings
from selection.errors import InputError
from selection.memory import children_peak, peak_memory
from selection.ngrams import NgramFeatures, kl_divergence, text_counts
from selection.selectors import Selector
from selection.selectors.pool import Pool
from selection.selectors.registry import find_selector
from selection.slugs import open_encoder
from selection.store import Store
from selection.task import read_task

METHODS = ("knn", "random", "dsir", "bm25", "tsds", "ot", "cluster", "classifier", "mix:knn=0.8,random=0.2")
NEAREST = 10
KEPT = ("manifest.json", "corpus", "embeddings", "encoders", "index")


def selectors(
    store: Path | str,
    tasks: Sequence[str],
    *,
    methods: Sequence[str] = METHODS,
    peers: Sequence[str] = tuple(PEERS),
    tokens: int = 1_000_000,
    seed: int = 0,
    encoder: str | None = None,
    out: Path | None = None,
    scratch: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measures every method on every task.

    Args:
        store: with its embeddings.
        tasks: folders; ``FOLDER=SOURCE`` names the corpus of the store that is the task's own domain, for ``purity``.
        methods: as ``--method`` takes them.
        peers: which of `benchmarks.selector_peers.PEERS`.
        tokens: budget of each set.
        out: rows are added to this Parquet file as they are measured, and what it has is not measured again.
        scratch: for copies of the store and the sets; default beside `store`. The sets are left there.

    Returns:
        One row a task and method asked for, whenever it was measured:
        ``task``, ``method``, ``encoder``, ``corpus`` (its passages), ``seed``, ``budget``,
        ``passages``, ``tokens``, ``first_s``, ``again_s``, of the first run ``encode_s``, ``rank_s`` and ``fill_s``,
        ``passages_s`` (of the corpus, first run),
        ``memory_mb`` (peak of the process, or of one it started), ``purity`` (share of the set's text from the task's
        own domain) and ``base`` (that share of the corpus), ``kl_reduction`` (nats on hashed n-grams, DSIR's measure),
        ``coverage`` (share of task examples with one of their `NEAREST` nearest passages in the set), ``cosine`` (mean
        between the set's passages), ``vendi`` (score, of their embeddings), ``leaks`` (kept out, near ones too).

    Raises:
        NearkinError: no such method or corpus.
    """
    opened = Store(store)
    slug = open_encoder(opened, encoder)
    named = [_named(opened, task) for task in tasks]
    for method in methods:
        find_selector(method)
    folder = scratch or Path(f"{store}.bench-selectors")
    rows = read_rows(out)
    same = {"encoder": slug, "corpus": len(opened.corpus), "seed": seed, "budget": tokens}
    done = {(row["task"], row["method"]) for row in rows if same.items() <= row.items()}
    for path, domain in named:
        examples, judge = read_task(path), None
        for method in [*methods, *peers]:
            if (examples.name, method) in done:
                continue
            if method in PEERS and not installed(method):
                say(f"left out: {method} is not installed")
                continue
            target = folder / f"{examples.name}-{method.replace(':', '-').replace(',', '-')}"
            how = PEERS[method]() if method in PEERS else method
            options = {"encoder": slug, "budget": Budget(tokens=tokens), "seed": seed}
            row = alone(time_selection, Path(store), path, how, target, options)
            judge = judge or _Judge(opened, path, domain, slug)
            rows.append({"task": examples.name, "method": method, **same, **row, **judge(target)})
            say(f"{examples.name}: {method} {row['first_s']:.1f} s, again {row['again_s']:.1f} s")
            write_rows(rows, out)
    places = {(read_task(path).name, method) for path, _ in named for method in [*methods, *peers]}
    return [row for row in rows if same.items() <= row.items() and (row["task"], row["method"]) in places]


def _named(store: Store, task: str) -> tuple[Path, str | None]:
    path, _, domain = task.partition("=")
    names = [corpus.name for corpus in store.manifest.corpora]
    if domain and domain not in names:
        raise InputError(f"{task}: the store has no corpus {domain!r}, it has {', '.join(names)}")
    return Path(path), domain or None


def time_selection(store: Path, task: Path, how: str | Selector, target: Path, options: Mapping[str, Any]) -> Row:
    """Selects twice, in this process, from a copy of the store that knows nothing of the task.

    Args:
        how: as `selection.augmentation.select` takes a method.
        options: further arguments of it.
        target: where the set stays; the copy of the store lies beside it meanwhile.

    Returns:
        ``passages``, ``tokens``, ``first_s``, ``again_s``, ``encode_s``, ``rank_s``, ``fill_s``, ``passages_s``,
        ``memory_mb``, ``leaks``, as `selectors` describes them.
    """
    fresh = target.with_name(target.name + ".store")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name in KEPT:
        if (store / name).exists():
            (fresh / name).symlink_to((store / name).resolve())
    taken, chosen = [], None
    for _ in range(2):
        start = time.perf_counter()
        again = select(fresh, task, target, how, overwrite=True, **options)
        taken.append(time.perf_counter() - start)
        chosen = chosen or again
    assert chosen is not None
    held = [peak for peak in (peak_memory(), children_peak()) if peak is not None]
    shutil.rmtree(fresh)
    for worker in multiprocessing.active_children():  # a peer's, which would keep this process waiting for minutes
        worker.terminate()
    removed = chosen.removed
    return {
        "passages": chosen.passages,
        "tokens": chosen.tokens,
        "first_s": taken[0],
        "again_s": taken[1],
        **{f"{stage}_s": chosen.stages.get(stage, 0.0) for stage in ("encode", "rank", "fill")},
        "passages_s": len(Store(store).corpus) / taken[0],
        "memory_mb": megabytes(max(held, default=None)),
        "leaks": sum(removed.leaks.values()) + sum(removed.near_leaks.values()),
    }


class _Judge:
    """What a set is worth without training; holds what all sets of a task are held against."""

    def __init__(self, store: Store, task: Path, domain: str | None, slug: str) -> None:
        self._domain = domain
        examples = read_task(task)
        pool = Pool(store, examples, slug)
        self._embeddings = Embeddings(store, slug)
        self._nearest = np.concatenate([t["doc_id"].to_numpy() for t in pool.neighbours(NEAREST)])
        self._corpus = NgramFeatures(store).counts()
        self._task = text_counts(examples.train_texts)
        sizes = {corpus.name: corpus.text_bytes for corpus in store.manifest.corpora}
        self._base = sizes[domain] / sum(sizes.values()) if domain else None

    def __call__(self, folder: Path) -> Row:
        table = pq.read_table(folder / "augmentation.parquet")
        ids = table["doc_id"].to_numpy()
        covered = np.isin(self._nearest, ids).reshape(-1, NEAREST).any(axis=1)
        cosine, vendi = diversity(vectors for _, vectors in self._embeddings.parts(ids))
        chosen = text_counts(table["text"])
        return {
            "purity": self._purity(table),
            "base": self._base,
            "kl_reduction": kl_divergence(self._task, self._corpus) - kl_divergence(self._task, chosen),
            "coverage": float(covered.mean()),
            "cosine": cosine,
            "vendi": vendi,
        }

    def _purity(self, table: pa.Table) -> float | None:
        if self._domain is None:
            return None
        sizes = pc.binary_length(table["text"]).to_numpy()
        own = pc.equal(table["source"], self._domain).to_numpy()
        return float(sizes[own].sum() / sizes.sum())


def plot_selectors(rows: Sequence[Row], path: Path) -> None:
    """What is picked against what it costs: purity (or KL reduction, where no domain is named), a panel a task."""
    from matplotlib.figure import Figure

    from selection.plotting import save

    names = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(6 * len(names), 4.8), layout="constrained")
    for number, task in enumerate(names):
        axes = figure.add_subplot(1, len(names), number + 1)
        mine = sorted((row for row in rows if row["task"] == task), key=lambda row: row["first_s"])
        measure = "kl_reduction" if mine[0]["purity"] is None else "purity"
        for place, row in enumerate(mine):
            point = (row["first_s"], row[measure])
            peer = row["method"] in PEERS
            axes.plot(*point, "s" if peer else "o", color="tab:gray" if peer else "tab:blue")
            axes.plot([row["again_s"], row["first_s"]], [row[measure]] * 2, color="tab:blue", alpha=0.25)
            up = 6 if place % 2 == 0 else -13
            axes.annotate(row["method"], point, xytext=(0, up), textcoords="offset points", fontsize=8, ha="center")
        if mine[0]["base"] is not None:
            axes.axhline(mine[0]["base"], color="tab:gray", linestyle=":", label="share in the corpus")
            axes.legend(fontsize=8, loc="lower right")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{task}, {mine[0]['budget']:,} tokens")
        axes.set_xlabel("seconds on a fresh store; line: when asked again")
        axes.set_ylabel("text from the task's own domain" if measure == "purity" else "KL reduction, nats")
        axes.grid(alpha=0.3)
    save(figure, path)
