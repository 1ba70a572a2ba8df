"""Columns and lines of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

EIGHTHS = " ▏▎▍▌▋▊▉█"


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


def cut(text: str, width: int) -> str:
    """At most `width` characters, an ellipsis where more are left."""
    return text if len(text) <= width else text[: width - 1] + "…"


def text_bar(share: float, width: int) -> str:
    """`share`, 0 to 1, of `width` characters in steps of an eighth, as block characters; what is not 0 is seen."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(max(eighths, 1) if share > 0 else eighths, 8)
    return (EIGHTHS[8] * whole + (EIGHTHS[rest] if rest else "")).ljust(width)
