"""Figures to files, where people would rather look: matplotlib, an optional extra (``pip install 'nearkin[plots]'``).

A figure is made without pyplot, so no window system is asked for, and the same figure gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selection.errors import NearkinError
from selection.files import atomic_write

DPI = 150
UNDATED: dict[str, dict[str, None]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "ps": {"CreationDate": None},
    "eps": {"CreationDate": None},
}


def require_plots(option: str, path: Path | None = None) -> None:
    """Asked before a long run, not after it.

    Args:
        option: what needs the plots, as the user wrote it: ``--plot``.
        path: the file, whose ending is checked.

    Raises:
        NearkinError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise NearkinError(f"{option} needs matplotlib: pip install 'nearkin[plots]'")
    if path is not None:
        from matplotlib.figure import Figure

        _kind_of(Figure(), path)


def _kind_of(figure: Any, path: Path) -> str:
    kind = path.suffix.removeprefix(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise NearkinError(f"{path}: no figure can be written as .{kind}; use one of {', '.join(sorted(known))}")
    return kind


def save(figure: Any, path: Path | str) -> None:
    """Writes a figure whole or not at all; the format is that of the file's name, PNG where it has no ending.

    Args:
        figure: a `matplotlib.figure.Figure`.
        path: the file.

    Raises:
        NearkinError: an ending that matplotlib does not write; the file cannot be written.
    """
    import matplotlib

    path = Path(path)
    kind = _kind_of(figure, path)
    with matplotlib.rc_context({"svg.hashsalt": "nearkin"}), atomic_write(path) as aside:
        figure.savefig(aside, format=kind, dpi=DPI, metadata=UNDATED.get(kind))


def heat_map(percent: npt.NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str) -> Any:
    """A square matrix of things compared with each other, a value in each cell, as a `matplotlib.figure.Figure`.

    The colours span the values off the diagonal, since how near a thing is to itself says nothing; 0 to 100 where there
    is but one pair.

    Args:
        percent: float64 [n, n], symmetric.
        rows, columns: the n names down the side and along the foot.
        title: what the cells hold.
    """
    from matplotlib.figure import Figure

    count = len(rows)
    apart = np.ma.masked_array(percent, np.eye(count, dtype=bool))
    low, high = (float(apart.min()), float(apart.max())) if count > 2 else (0.0, 100.0)
    size = max(3.0, 0.62 * count + 1.0)
    figure = Figure(figsize=(size + 2.0, size + 0.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(apart, cmap="YlGnBu", vmin=low, vmax=max(high, low + 1))
    for row, column in np.ndindex(percent.shape):
        colour = "0.55" if row == column else _ink(image, percent[row, column])
        axes.text(column, row, f"{percent[row, column]:.1f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_facecolor("0.93")
    axes.set_xticks(range(count), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), rows)
    axes.tick_params(length=0, labelsize=9)
    edges = np.arange(count - 1) + 0.5
    axes.hlines(edges, -0.5, count - 0.5, "white", linewidth=1.5)
    axes.vlines(edges, -0.5, count - 0.5, "white", linewidth=1.5)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="%").outline.set_visible(False)
    return figure


def _ink(image: Any, value: float) -> str:
    """White on dark cells, black on light ones, by the luma of the colour that `value` has."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "0.1"
