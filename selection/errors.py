"""The one exception family: every error a user can cause or repair.

The message is one plain sentence: what is wrong, in which file, what to do. The command line prints it and exits
with code 1; anything else that escapes is a bug and says so.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class NearkinError(Exception):
    """Base of every error that nearkin raises on purpose."""


class InputError(NearkinError):
    """A corpus, task or text file that cannot be used as it is."""


class StoreError(NearkinError):
    """A store that is missing, locked, stale or damaged."""


class ModelError(NearkinError):
    """A model that cannot be found, or that is not safe or fit to load."""


class MissingPackageError(NearkinError):
    """A package that this command needs is not installed."""


def did_you_mean(name: str, names: Iterable[str], alike: float = 0.5) -> str:
    """``", did you mean X?"`` with the nearest of `names`, whatever their case; empty where none is near."""
    known = {one.lower(): one for one in names}
    close = difflib.get_close_matches(name.lower(), list(known), 1, alike)
    return f", did you mean {known[close[0]]}?" if close else ""


DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def explain_os_error(error: OSError, doing: str) -> NearkinError:
    """One sentence for an operating-system error met while `doing` something (``"writing FILE"``)."""
    if error.errno in DISK_FULL:
        return NearkinError(
            f"no space left while {doing}: free some, or choose another disk, and run the same command again "
            "(what was finished is kept)"
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return NearkinError(f"no permission while {doing}: {error.strerror}")
    return NearkinError(f"failed while {doing}: {error.strerror or error}")
