"""Sizes, times and lists as a person would say them."""

from __future__ import annotations

from collections.abc import Iterable


def human_bytes(count: float) -> str:
    """`count` bytes for a person: ``"1.2 GB"``."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def human_seconds(seconds: float) -> str:
    """`seconds` for a person: ``"42 s"``, ``"3 min 10 s"``, ``"2 h 5 min"``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def mean_and_sd(mean: float, sd: float | None = None, digits: int = 1) -> str:
    """A mean with its standard deviation, where there is one: ``"63.2 (1.4)"``, ``"63.2"``."""
    return f"{mean:.{digits}f}" + (f" ({sd:.{digits}f})" if sd is not None else "")


def or_dash(value: float | None, form: str) -> str:
    """A number in a format such as ``",d"``; ``"-"`` where there is none."""
    return "-" if value is None else format(value, form)


def join(parts: Iterable[str]) -> str:
    """A list for a sentence: ``"a, b and c"``."""
    items = list(parts)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "nothing"
