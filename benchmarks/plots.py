"""Plots, where people would rather look: matplotlib, an optional extra (``pip install 'nearkin[plots]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Row
from selection.plotting import save


def plot_throughput(rows: Sequence[Row], path: Path) -> None:
    """Recall against passages/s (logarithmic), a point a path; the format is that of the file's name.

    Args:
        rows: of `benchmarks.throughput.throughput`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    placed: list[Row] = []
    for row in sorted(rows, key=lambda row: row["passages_s"]):
        ours = row["path"].startswith("nearkin")
        axes.plot(row["passages_s"], row["recall_50"], "o" if ours else "s", color="tab:blue" if ours else "tab:gray")
        near = [
            other
            for other in placed
            if row["passages_s"] < 5 * other["passages_s"] and abs(other["recall_50"] - row["recall_50"]) < 0.1
        ]
        placed.append(row)
        axes.annotate(
            f"{row['path']} ({row['ratio']:.3g}x)",
            (row["passages_s"], row["recall_50"]),
            xytext=(0, 8 if not near else -4 - 13 * len(near)),  # one below the other where points lie close
            textcoords="offset points",
            fontsize=8,
            ha="left" if row["passages_s"] < 1000 else "right",
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.08)
    axes.set_xlabel("passages/s")
    axes.set_ylabel("recall@50 of the exact neighbours")
    axes.grid(alpha=0.3)
    save(figure, path)


def plot_search(rows: Sequence[Row], path: Path) -> None:
    """Recall against the seconds of making and searching together (logarithmic), a panel a corpus size.

    Args:
        rows: of `benchmarks.search.search`.
    """
    from matplotlib.figure import Figure

    sizes = sorted({row["passages"] for row in rows})
    figure = Figure(figsize=(6.5 * len(sizes), 4.8), layout="constrained")
    for number, size in enumerate(sizes):
        axes = figure.add_subplot(1, len(sizes), number + 1)
        mine = sorted((row for row in rows if row["passages"] == size), key=lambda row: row["total_s"])
        for row in mine:
            ours = row["path"].startswith("nearkin")
            point = (row["total_s"], row["recall_k"])
            axes.plot(*point, "o" if ours else "s", color="tab:blue" if ours else "tab:gray")
            up = 1 if row["recall_k"] > 0.99 else -1  # exact ones above, the others below
            axes.annotate(
                row["path"],
                point,
                xytext=(3, 5 * up),
                textcoords="offset points",
                fontsize=8,
                rotation=40 * up,
                rotation_mode="anchor",
                va="bottom" if up > 0 else "top",
            )
        axes.set_xscale("log")
        axes.set_xlim(0.7 * mine[0]["total_s"], 5 * mine[-1]["total_s"])
        axes.set_ylim(min(row["recall_k"] for row in mine) - 0.03, 1.04)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        axes.set_title(f"{size:,} passages, {mine[0]['queries']:,} queries")
        axes.set_xlabel("seconds, making the index and searching it")
        axes.set_ylabel(f"recall@{mine[0]['k']}")
        axes.grid(alpha=0.3)
    save(figure, path)
