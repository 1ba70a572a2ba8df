"""Columns and lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from selection.pages import cut


def plain(text: str, width: int) -> str:
    """At most `width` characters as one line: white space run together, what would steer the terminal left out."""
    return cut(printable(" ".join(text[: 4 * width].split())), width)


def printable(line: str) -> str:
    """The line with U+FFFD in place of control characters."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def aligned(rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2) -> list[str]:
    """Columns for a terminal, `gap` spaces apart, the first `left` of them to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [c.ljust(w) if at < left else c.rjust(w) for at, (c, w) in enumerate(zip(r, widths, strict=True))] for r in rows
    )
    return [(" " * gap).join(row).rstrip() for row in cells]
