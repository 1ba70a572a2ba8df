"""What this process holds of the machine's memory, and giving it back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of one ``ru_maxrss``."""


def current_memory() -> int | None:
    """Resident bytes of this process; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return peak_memory()


def peak_memory() -> int | None:
    """The most bytes of memory this process has held so far; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure is inherited from the process that started this one
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * 1024
    return _most_held("RUSAGE_SELF")


def children_peak() -> int | None:
    """The most bytes that any one process held which this one started and has waited for; None as `peak_memory`."""
    return _most_held("RUSAGE_CHILDREN")


def _most_held(who: str) -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return int(resource.getrusage(getattr(resource, who)).ru_maxrss) * RSS_UNIT


def release_memory() -> None:
    """Gives freed memory back to the system. glibc keeps what several threads freed, and a long build would grow by it.

    Some milliseconds; without glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
