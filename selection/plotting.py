"""Figures to files, where people would rather look: matplotlib, an optional extra (``pip install 'nearkin[plots]'``).

A figure is made without pyplot, so no window system is asked for, and the same figure gives the same bytes.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selection.errors import NearkinError
from selection.files import atomic_write

DPI = 150
UNDATED: dict[str, dict[str, None]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "ps": {"CreationDate": None},
    "eps": {"CreationDate": None},
}


def require_plots(option: str) -> None:
    """Asked before a long run, not after it.

    Args:
        option: what needs the plots, as the user wrote it: ``--plot``.

    Raises:
        NearkinError: matplotlib is missing.
    """
    if find_spec("matplotlib") is None:
        raise NearkinError(f"{option} needs matplotlib: pip install 'nearkin[plots]'")


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
    kind = path.suffix.removeprefix(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise NearkinError(f"{path}: no figure can be written as .{kind}; use one of {', '.join(sorted(known))}")
    with matplotlib.rc_context({"svg.hashsalt": "nearkin"}), atomic_write(path) as aside:
        figure.savefig(aside, format=kind, dpi=DPI, metadata=UNDATED.get(kind))
